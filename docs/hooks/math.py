"""Equations of the documentation, ``$…$`` and ``$$…$$``, as MathML: browsers draw it without a script."""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.S)
_MATH = re.compile(r"\$\$(.+?)\$\$|(?<![\w$\\])\$([^\s$](?:[^$\n]*?[^\s$\\])?)\$(?!\w)", re.S)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs's event: what is code stays as it is."""
    parts = _CODE.split(markdown)
    return "".join(part if i % 2 else _MATH.sub(_drawn, part) for i, part in enumerate(parts))


def _drawn(match: re.Match[str]) -> str:
    block, inline = match.groups()
    if block:
        return convert(block.strip(), display="block")
    return f"<span>{convert(inline.strip())}</span>"  # a line that begins with <math> would end its paragraph

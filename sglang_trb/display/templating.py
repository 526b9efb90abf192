"""Pages from Jinja templates: one document with nothing from outside, in which every text is escaped.

What models write is untrusted. A text that a template shows is made visible (control and direction characters) and then
escaped; only what a template or `markupsafe.Markup` itself says is markup.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sglang_trb.display.completions import number, visible


def environment(*packages: str) -> Environment:
    """The templates of some packages, from their folders ``templates``; a name that is missing is an error."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    made.filters["number"] = number
    return made


def script(made: Environment, name: str) -> tuple[Markup, str]:
    """A script as it stands in its file, and what a page's policy calls it."""
    assert made.loader is not None
    text = made.loader.get_source(made, name)[0]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(text), f"'sha256-{digest}'"  # a file of ours


def _shown(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

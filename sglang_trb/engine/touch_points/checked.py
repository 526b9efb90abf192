"""The SGLang that this package was checked with, and what its sources say of each touch point (`checked.json`).

This is the one place of the version number; whatever else names it is compared with it by a test. To move to another
SGLang, install it, read what `trb doctor --sglang` says has changed, have all tests pass, then write the file anew:
``python -m sglang_trb.engine.touch_points.checked``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sglang_trb.engine.touch_points.source import Sources
from sglang_trb.engine.touch_points.table import TOUCH_POINTS

FILE = Path(__file__).with_name("checked.json")

_CHECKED: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))

CHECKED_SGLANG: str = _CHECKED["sglang"]

DIGESTS: dict[str, str] = _CHECKED["digests"]
"""Full name → `Definition.digest`."""


def described(sources: Sources) -> str:
    """The file's text for these sources.

    Raises:
        LookupError: names the touch points that are not there.
    """
    names = sorted({name for point in TOUCH_POINTS for name in point.names()})
    found = {name: sources.find(name) for name in names}
    if gone := [name for name, definition in found.items() if definition is None]:
        raise LookupError(f"not in sglang {sources.version}: {', '.join(gone)}")
    digests = {name: definition.digest for name, definition in found.items() if definition}
    return json.dumps({"sglang": sources.version, "digests": digests}, indent=1) + "\n"


if __name__ == "__main__":
    installed = Sources.installed()
    assert installed is not None, "sglang is not installed"
    FILE.write_text(described(installed), encoding="utf-8")

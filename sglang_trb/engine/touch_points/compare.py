"""Compares an SGLang's sources with those that every touch point was checked against."""

from __future__ import annotations

import dataclasses
import enum

from sglang_trb.engine.touch_points.checked import DIGESTS
from sglang_trb.engine.touch_points.points import TouchPoint
from sglang_trb.engine.touch_points.source import Sources
from sglang_trb.engine.touch_points.table import TOUCH_POINTS


class State(enum.Enum):
    """What has become of a definition."""

    SAME = "same"
    CHANGED = "changed"
    GONE = "gone"


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One definition in one SGLang.

    Attributes:
        state: compared with the one that was checked.
        path: the file, from the package's folder on; empty where the definition is gone.
        line: from 1; 0 where it is gone.
    """

    state: State
    path: str = ""
    line: int = 0


def compare(sources: Sources) -> dict[str, Finding]:
    """Every definition that was checked, by its full name."""
    return {name: _finding(sources, name, digest) for name, digest in DIGESTS.items()}


def point_of() -> dict[str, TouchPoint]:
    """Full name of a definition → the first touch point that names it."""
    points: dict[str, TouchPoint] = {}
    for point in TOUCH_POINTS:
        for name in point.names():
            points.setdefault(name, point)
    return points


def _finding(sources: Sources, name: str, digest: str) -> Finding:
    found = sources.find(name)
    if found is None:
        return Finding(State.GONE)
    return Finding(State.SAME if found.digest == digest else State.CHANGED, found.path, found.line)

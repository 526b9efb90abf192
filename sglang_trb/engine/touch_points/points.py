"""A touch point: an object of SGLang that is overridden, wrapped, subclassed, or used for what it does inside."""

from __future__ import annotations

import dataclasses
import enum
import pkgutil
from collections.abc import Iterator
from typing import Any

from sglang_trb.engine.touch_points.source import PACKAGE

_OURS = "sglang_trb.engine"


class How(enum.Enum):
    """What is done with the object."""

    REPLACED = "replaced"  # our subclass stands in its place, everywhere
    WRAPPED = "wrapped"  # our function is called instead, with the original as its first argument
    PRECEDED = "preceded"  # our function is called before it, with its arguments
    SUBCLASSED = "subclassed"  # our own code makes objects of the subclass
    USED = "used"  # called or read


HOOKED = frozenset({How.REPLACED, How.WRAPPED, How.PRECEDED})
"""What SGLang's plug-in loader has to put in place."""


@dataclasses.dataclass(frozen=True, slots=True)
class TouchPoint:
    """One object of SGLang that this package leans on.

    Attributes:
        name: of a class, function, constant or module, below ``sglang``.
        how: what is done with it.
        ours: what replaces, wraps or subclasses it, or the module that uses it, below ``sglang_trb.engine``.
        reason: what for.
        proof: how start-up or a test shows that it is in force; for what is used, what would show that it has changed.
        members: its methods, attributes or (of a module) definitions that ours overrides or relies on.
    """

    name: str
    how: How
    ours: str
    reason: str
    proof: str
    members: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        """The object's full name."""
        return f"{PACKAGE}.{self.name}"

    def names(self) -> Iterator[str]:
        """Full names of the object and its members, each with a definition of its own."""
        yield self.target
        for member in self.members:
            yield f"{self.target}.{member}"

    def replacement(self) -> Any:
        """Our class or function. Imports it, and with it SGLang."""
        return pkgutil.resolve_name(f"{_OURS}.{self.ours}")

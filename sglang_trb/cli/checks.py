"""One line of `trb doctor`'s report."""

from __future__ import annotations

import dataclasses

BAD = ("MISSING", "WRONG")


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """``status`` is OK, NOTE, MISSING or WRONG; ``remedy`` says what to do about it."""

    status: str
    what: str
    remedy: str = ""


def verdict(good: bool, what: str, remedy: str, otherwise: str = "WRONG") -> Check:
    """OK, or ``otherwise`` with its remedy."""
    return Check("OK", what) if good else Check(otherwise, what, remedy)

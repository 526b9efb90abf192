"""Which members of a column of a table are set bold, and which underlined."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from trainer.statistics import CONFIDENCE

_LEVEL = round(1 - CONFIDENCE, 12)


@dataclasses.dataclass(frozen=True)
class Marks:
    """The marked members, the highest mean first.

    Attributes:
        bold: the best, and all that tie with it.
        underlined: the best of the others, and those of them that tie with it; nobody where all tie with the best.
    """

    bold: tuple[str, ...]
    underlined: tuple[str, ...]


def marks(means: Mapping[str, float], p_values: Mapping[tuple[str, str], float], level: float = _LEVEL) -> Marks:
    """Two members tie unless p of their paired difference is below the level: unless its interval excludes 0.

    The p-values are taken as they are: those of many members want a correction before.

    Args:
        means: by member; equal ones keep their order.
        p_values: by a pair of members in either order, as `trainer.study.inference.paired_difference` has them; at
            least the pairs with the best, and with the best of those that do not tie with it.
        level: above 0, below 1.

    Raises:
        ValueError: no member, a mean that is not finite, ``level``, a pair that is missing, a p-value outside [0, 1].
    """
    if not means or not all(math.isfinite(mean) for mean in means.values()):
        raise ValueError(f"means: got {dict(means)}; allowed: a member or more, finite means")
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}; allowed: above 0, below 1")
    ordered = sorted(means, key=lambda name: -means[name])
    bold = _with_ties(ordered, p_values, level)
    return Marks(bold, _with_ties([name for name in ordered if name not in bold], p_values, level))


def _with_ties(ordered: list[str], p_values: Mapping[tuple[str, str], float], level: float) -> tuple[str, ...]:
    return tuple(name for name in ordered if name == ordered[0] or _p_value(p_values, ordered[0], name) >= level)


def _p_value(p_values: Mapping[tuple[str, str], float], one: str, other: str) -> float:
    value = p_values.get((one, other), p_values.get((other, one)))
    if value is None or not 0 <= value <= 1:
        raise ValueError(f"p_values: got {value} for ({one!r}, {other!r}); allowed: 0 to 1 for every pair of members")
    return value

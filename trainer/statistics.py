"""What an evaluation says, with its uncertainty, and which of several is the best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class PassAt1:
    """pass@1 = mean over problems of c/n (App. A.1), with a bootstrap interval over the problems.

    Attributes:
        mean, low, high: 0 to 1; NaN where no problem has a graded answer.
        problems: how many.
    """

    mean: float
    low: float
    high: float
    problems: int


def pass_at_1(shares: Sequence[float], seed: int = 0) -> PassAt1:
    """pass@1 and its percentile interval.

    Args:
        shares: c/n of each problem, the right ones of its graded answers; without any problem all values are NaN.
        seed: of the resampling.
    """
    if not shares:
        return PassAt1(math.nan, math.nan, math.nan, 0)
    values = np.asarray(shares, np.float64)
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [
            values[generator.integers(0, len(values), (RESAMPLES // 100, len(values)))].mean(1)
            for _ in range(100)  # in parts: 10,000 × 1,319 problems would take 100 MB
        ]
    )
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return PassAt1(float(values.mean()), float(low), float(high), len(values))


def best_of(items: Iterable[Item], score: Callable[[Item], float]) -> Item | None:
    """The item with the highest score, the earliest of equals.

    An item whose score is NaN is never the best, whatever it is compared with: None where there is no other.
    """
    return max((item for item in items if not math.isnan(score(item))), key=score, default=None)


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """The chance that one of the positive scores is above one of the negative, equal ones counting half.

    Args:
        positive, negative: one score or more each, none NaN.
    """
    below = np.sort(np.asarray(negative, np.float64))
    above = np.searchsorted(below, positive, "left") + np.searchsorted(below, positive, "right")
    return float(above.mean() / (2 * len(below)))

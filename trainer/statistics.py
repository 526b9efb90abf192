"""What an evaluation says, with its uncertainty."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class PassAt1:
    """pass@1 = mean over problems of c/n (App. A.1), with a bootstrap interval over the problems.

    Attributes:
        mean, low, high: 0 to 1.
        problems: how many.
    """

    mean: float
    low: float
    high: float
    problems: int


def pass_at_1(shares: Sequence[float], seed: int = 0) -> PassAt1:
    """Args: the share c/n of right answers of each problem; at least one. The interval is the percentile one."""
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

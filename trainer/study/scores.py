"""Scores as the statistics of a study take them: mean correctness of each problem, checked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = ArrayLike | Mapping[str, ArrayLike]
"""Of one benchmark, or of a suite by benchmark, whose mean is the unweighted mean over its benchmarks. Each is
[problems] for one seed or [seeds, problems] for several, every value c/n in [0, 1], the problems in one order."""


def checked(name: str, scores: ArrayLike) -> NDArray[np.float64]:
    """[seeds, problems] of one benchmark.

    Args:
        name: of the argument, for the error.
        scores: [problems] or [seeds, problems].

    Raises:
        ValueError: no numbers, another number of dimensions, no seed, fewer than two problems, a value that is not in
            [0, 1] (NaN is not).
    """
    try:
        values = np.asarray(scores, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: got {type(scores).__name__}; allowed: an array of numbers") from error
    if values.ndim not in (1, 2) or not len(values) or values.shape[-1] < 2:
        raise ValueError(
            f"{name}: got shape {values.shape}; allowed: [problems] or [seeds, problems], two problems or more"
        )
    wrong = values[~((values >= 0) & (values <= 1))]
    if len(wrong):
        raise ValueError(f"{name}: got {wrong[0]}; allowed: 0 to 1")
    return np.atleast_2d(values)


def checked_suite(name: str, scores: Scores) -> dict[str, NDArray[np.float64]]:
    """[seeds, problems] of each benchmark, by its name; a benchmark alone has the name "".

    Raises:
        ValueError: as `checked`; no benchmark; benchmarks with different numbers of seeds.
    """
    if not isinstance(scores, Mapping):
        return {"": checked(name, scores)}
    suite = {benchmark: checked(f"{name}[{benchmark!r}]", values) for benchmark, values in scores.items()}
    seeds = {len(values_SP) for values_SP in suite.values()}
    if len(seeds) != 1:
        raise ValueError(f"{name}: got {sorted(seeds)} seeds; allowed: a benchmark or more, all with the same seeds")
    return suite

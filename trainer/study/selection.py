"""Which checkpoint stands for a family of runs, and what of its score is the luck of having been chosen.

_C candidates, a member's checkpoint each, _P problems, _R splits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainer.study.scores import checked_suite

Family = Mapping[str, Mapping[int, Mapping[str, ArrayLike]]]
"""Scores by member, step and benchmark: [problems], or [seeds, problems], which are averaged over the seeds."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """The checkpoint with the highest mean over the benchmarks.

    Attributes:
        name: of the member.
        step: updates.
        mean: of ``scores``, pass@1 by benchmark.
    """

    name: str
    step: int
    mean: float
    scores: dict[str, float]


@dataclasses.dataclass(frozen=True)
class SplitSelection:
    """Scores on problems that did not take part in the choice.

    Attributes:
        mean: of ``scores``, pass@1 by benchmark.
        chosen: the share of the choices that fell on a member's checkpoint, by (member, step), the largest first.
    """

    mean: float
    scores: dict[str, float]
    chosen: dict[tuple[str, int], float]


def select(family: Family) -> Selection:
    """The checkpoint with the highest suite mean, reported on the problems that chose it: the paper's way (App. A.1).

    The suite mean is the unweighted mean over the benchmarks. Equal means (to 1e-12) go to the earlier step, then to
    the name that sorts first. The winner's luck is a part of its score: see `select_split`.

    Raises:
        ValueError: as `select_split`.
    """
    candidates, scores = _candidates(family)
    means = {benchmark: scores_CP.mean(1) for benchmark, scores_CP in scores.items()}
    suite_C = np.mean(list(means.values()), 0)
    best = int(_first_highest(suite_C))
    name, step = candidates[best]
    return Selection(name, step, float(suite_C[best]), {key: float(means_C[best]) for key, means_C in means.items()})


def select_split(family: Family, seed: int = 0, splits: int = 100) -> SplitSelection:
    """Chosen as in `select` on a random half of each benchmark's problems, reported on the other half.

    Both ways round, averaged, and averaged over ``splits`` such halvings, which leaves less to the seed. Unbiased for
    the checkpoint that half of the problems would choose. A checkpoint that training luck made better is better on both
    halves: that luck takes other seeds.

    Args:
        family: the members.
        seed: of the halves.
        splits: 1 or more.

    Raises:
        ValueError: no member; a member without checkpoints; other benchmarks, or another number of problems, in one
            checkpoint than in another; scores as `trainer.study.scores.checked_suite` refuses them; ``splits``.
    """
    if splits < 1:
        raise ValueError(f"splits: got {splits}; allowed: 1 or more")
    candidates, scores = _candidates(family)
    generator = np.random.default_rng(seed)
    halves = [_halves(scores_CP, generator, splits) for scores_CP in scores.values()]
    one, other = (np.stack(parts) for parts in zip(*halves, strict=True))  # [benchmarks, C, R]
    reported, choices = [], []
    for choosing, reporting in ((one, other), (other, one)):
        chosen_R = _first_highest(choosing.mean(0))
        choices.append(chosen_R)
        reported.append(reporting[:, chosen_R, np.arange(splits)].mean(1))
    means = np.mean(reported, 0)
    counts_C = np.bincount(np.concatenate(choices), minlength=len(candidates)) / (2 * splits)
    shares = {candidates[i]: float(counts_C[i]) for i in np.argsort(-counts_C, kind="stable") if counts_C[i]}
    return SplitSelection(float(means.mean()), dict(zip(scores, means.tolist(), strict=True)), shares)


def _halves(
    scores_CP: NDArray[np.float64], generator: np.random.Generator, splits: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means [C, R] over each half."""
    problems = scores_CP.shape[1]
    half = problems // 2
    in_one_PR = (generator.random((splits, problems)).argsort(1) < half).T.astype(np.float64)
    return scores_CP @ in_one_PR / half, scores_CP @ (1 - in_one_PR) / (problems - half)


def _first_highest(means: NDArray[np.float64]) -> NDArray[np.intp]:
    return np.argmax(np.round(means, 12), 0)


def _candidates(family: Family) -> tuple[list[tuple[str, int]], dict[str, NDArray[np.float64]]]:
    """(member, step) in the order that decides equals, and [C, P] by benchmark."""
    empty = [name for name, steps in family.items() if not steps]
    if not family or empty:
        what = f"member {empty[0]!r} without checkpoints" if empty else "no member"
        raise ValueError(f"family: got {what}; allowed: a member or more, each with a checkpoint or more")
    candidates = sorted(((name, step) for name, steps in family.items() for step in steps), key=lambda c: (c[1], c[0]))
    suites = []
    for name, step in candidates:
        where = f"family[{name!r}][{step}]"
        suites.append({key: v.mean(0) for key, v in checked_suite(where, family[name][step]).items()})
        shapes, first = ({key: len(v) for key, v in suite.items()} for suite in (suites[-1], suites[0]))
        if shapes != first:
            raise ValueError(f"{where}: got problems {shapes}; allowed: those of the others, {first}")
    return candidates, {key: np.stack([suite[key] for suite in suites]) for key in suites[0]}

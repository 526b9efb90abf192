"""The paper's Table 1 of a study: a family a row, its best checkpoint, and which differences are more than noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from trainer.study.inference import Difference, Interval, interval, paired_difference
from trainer.study.marks import Marks, marks
from trainer.study.results import MemberResult, StudyResult
from trainer.study.selection import select, select_split

BASELINE = "vanilla"
"""The family that the others are compared with."""

MEAN = "mean"
"""Column of the unweighted mean over the benchmarks."""


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A family.

    Attributes:
        family, title: its name, and how it is shown.
        member: the setting that represents it.
        step: of the checkpoint: the highest suite mean of all settings and evaluated steps (App. A.1).
        columns: pass@1 with its interval by benchmark, and of `MEAN`.
        corrected: the suite mean when one half of the problems chooses and the other is reported.
        settings: how many were tried.
        difference: from the baseline's row, over the seeds that both have; None for the baseline, or without one.
    """

    family: str
    title: str
    member: MemberResult
    step: int
    columns: dict[str, Interval]
    corrected: float
    settings: int
    difference: Difference | None


@dataclasses.dataclass(frozen=True)
class Table:
    """A study's table.

    Attributes:
        rows: in the order of the study's file; families without a complete run have none.
        marks: what is bold and what is underlined, by column.
    """

    rows: Sequence[TableRow]
    marks: dict[str, Marks]

    @property
    def columns(self) -> list[str]:
        """Benchmarks, and `MEAN` where there are several."""
        return list(self.marks)


def make_table(study: StudyResult) -> Table:
    """Table 1; empty where no run is complete."""
    chosen = {family: _chosen(members) for family, members in study.families().items()}
    baseline = chosen.get(BASELINE)
    rows = [
        TableRow(
            family,
            member.title,
            member,
            step,
            _columns(member, step),
            corrected,
            len(study.families()[family]),
            None if baseline is None or family == BASELINE else difference(member, step, *baseline[:2]),
        )
        for family, (member, step, corrected) in chosen.items()
    ]
    columns = list(rows[0].columns) if rows else []
    return Table(rows, {column: _marks(rows, column) for column in columns})


def difference(one: MemberResult, step: int, other: MemberResult, other_step: int) -> Difference | None:
    """Suite mean of one checkpoint minus another's, paired by seed and problem; None without a seed of both."""
    seeds = [seed for seed in one.seeds() if seed in other.seeds()]
    return paired_difference(one.suite(step, seeds), other.suite(other_step, seeds)) if seeds else None


def _chosen(members: Sequence[MemberResult]) -> tuple[MemberResult, int, float]:
    family = {member.setting: {step: member.suite(step) for step in member.steps()} for member in members}
    best = select(family)
    member = next(member for member in members if member.setting == best.name)
    return member, best.step, select_split(family).mean


def _columns(member: MemberResult, step: int) -> dict[str, Interval]:
    suite = member.suite(step)
    columns = {name: interval(scores) for name, scores in suite.items()}
    return columns | ({MEAN: interval(suite)} if len(suite) > 1 else {})


def _marks(rows: Sequence[TableRow], column: str) -> Marks:
    means = {row.family: row.columns[column].mean for row in rows}
    p_values = {}
    for i, one in enumerate(rows):
        for other in rows[:i]:
            p_values[one.family, other.family] = _p_value(one, other, column)
    return marks(means, p_values)


def _p_value(one: TableRow, other: TableRow, column: str) -> float:
    """1, a tie, where no seed is common."""
    seeds = [seed for seed in one.member.seeds() if seed in other.member.seeds()]
    if not seeds:
        return 1.0
    a, b = one.member.suite(one.step, seeds), other.member.suite(other.step, seeds)
    return paired_difference(a, b).p_value if column == MEAN else paired_difference(a[column], b[column]).p_value

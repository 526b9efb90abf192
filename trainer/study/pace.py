"""How far a study is, and how long the rest takes, by what its runs have taken so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.records import METRICS_FILE, RecordsBroken, Row, fields, read_rows
from trainer.study.plan import PlannedRun


@dataclasses.dataclass(frozen=True)
class Pace:
    """Of some runs.

    Attributes:
        made, wanted: updates.
        seconds: that the made ones took, evaluations and checkpoints included; start-up is not.
    """

    made: int
    wanted: int
    seconds: float

    @classmethod
    def of(cls, runs: Sequence[PlannedRun]) -> Pace:
        """Read the runs' records, as far as there are any."""
        rows = {run.name: rows_of(run.config.run_folder) for run in runs}
        made = {name: int(of_run[-1]["step"]) if of_run else 0 for name, of_run in rows.items()}
        seconds = sum(_seconds(row) for of_run in rows.values() for row in of_run)
        return cls(sum(made.values()), sum(run.config.steps for run in runs), seconds)

    @property
    def left(self) -> float | None:
        """Seconds that one worker still needs; None where nothing was measured yet."""
        return (self.wanted - self.made) * self.seconds / self.made if self.made else None


def rows_of(run_folder: Path) -> list[Row]:
    """What a run has recorded; nothing where its records are damaged, which its own start tells of."""
    path = run_folder / METRICS_FILE
    try:
        return read_rows(path) if path.is_file() else []
    except RecordsBroken:
        return []


def _seconds(row: Mapping[str, float]) -> float:
    return sum(value for name, value in row.items() if fields.TIME.member(name) is not None)

"""Run folders as the report sees them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sglang_trb.display.completions import visible
from trainer.errors import TrainerError
from trainer.records import METRICS_FILE, Evaluation, Row, fields, read_evaluations, read_rows, read_settings

LONGEST_NAME = 36


class NothingToReport(TrainerError, ValueError):
    """There is no run, or nothing in it; the message names the folder."""


@dataclasses.dataclass(frozen=True)
class Score:
    """One evaluation on one benchmark: pass@1 after ``step`` updates; the interval's ends, or None."""

    step: int
    value: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: its rows (none if it has not begun), its settings ({} if none were written), and what was evaluated
    apart from it.

    ``name`` is safe to display: no control characters.
    """

    name: str
    rows: list[Row]
    settings: dict[str, Any]
    evaluations: list[Evaluation] = dataclasses.field(default_factory=list)

    @property
    def last_step(self) -> int:
        """Of the rows; 0 where there is none."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    def series(self, field: str) -> tuple[list[int], list[float]]:
        """Steps and values of the rows that have ``field``; infinities are NaN, so that a curve breaks there."""
        points = [(int(row["step"]), row[field]) for row in self.rows if field in row]
        return [step for step, _ in points], [v if math.isfinite(v) else math.nan for _, v in points]

    def scores(self, benchmark: str) -> list[Score]:
        """pass@1 on a benchmark, by step."""
        name, low, high = (f.of(benchmark) for f in (fields.PASS_AT_1, fields.PASS_AT_1_LOW, fields.PASS_AT_1_HIGH))
        return [Score(int(r["step"]), r[name], r.get(low), r.get(high)) for r in self.rows if name in r]

    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds by what they were spent on."""
        names = {name: what for row in self.rows for name in row if (what := fields.TIME.member(name))}
        return {what: sum(row.get(name, 0.0) for row in self.rows) for name, what in names.items()}

    def warmup(self) -> tuple[int, int] | None:
        """The updates that were made from blended rollouts (ε > 0): completed updates before the first and after the
        last of them, or None."""
        steps = [step for step, epsilon in zip(*self.series(fields.EPSILON), strict=True) if epsilon > 0]
        return (steps[0] - 1, steps[-1]) if steps else None

    def not_finite(self) -> Iterator[tuple[str, list[int]]]:
        """Fields with NaN or infinite values, and the steps where."""
        for field in dict.fromkeys(name for row in self.rows for name in row):
            steps = [int(row["step"]) for row in self.rows if field in row and not math.isfinite(row[field])]
            if steps:
                yield field, steps


def benchmarks(runs: Sequence[Run]) -> list[str]:
    """The benchmarks that any of the runs was evaluated on, in order of first appearance."""
    names = dict.fromkeys(name for run in runs for row in run.rows for name in row)
    return [benchmark for name in names if (benchmark := fields.PASS_AT_1.member(name))]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders; each is named by the end of its path, as much of it as tells them apart.

    Raises:
        NothingToReport: no folder, a folder without a metrics file, or no row in any of them.
        RecordsBroken, SettingsBroken: a file is damaged.
    """
    if not folders:
        raise NothingToReport("run folders: got none; name at least one")
    for folder in folders:
        if not (folder / METRICS_FILE).is_file():
            raise NothingToReport(f"{folder}: no {METRICS_FILE} in it; allowed: the folder of a run that has begun")
    paths = [folder.resolve() for folder in folders]
    repeated = next((path for i, path in enumerate(paths) if path in paths[:i]), None)
    if repeated:
        raise NothingToReport(f"{repeated}: named twice; allowed: each run once")
    named = zip(_names(paths), paths, strict=True)
    runs = [
        Run(name, read_rows(path / METRICS_FILE), read_settings(path), read_evaluations(path)) for name, path in named
    ]
    if not any(run.rows for run in runs):
        where = ", ".join(str(folder / METRICS_FILE) for folder in folders)
        raise NothingToReport(f"{where}: no step is recorded yet")
    return runs


def _names(paths: Sequence[Path]) -> list[str]:
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return [_short(visible("/".join(path.parts[-depth:]))) for path in paths]


def _short(name: str) -> str:
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half + 1 :]}"

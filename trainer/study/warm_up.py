"""Fig. 3: does the warm-up bring the student to prefixes where the teacher is surer, and does it pay afterwards?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from trainer.config.behaviour import TemperatureWarmup, TrustRegion
from trainer.records import fields
from trainer.report.charts import Chart
from trainer.report.draw import FONT, number_values
from trainer.report.style import SHADE
from trainer.study.drawing import PLOT_HEIGHT, Picture, colour, finish, panels_in, style
from trainer.study.inference import Interval, interval
from trainer.study.results import MemberResult
from trainer.study.table import Table

_TITLE = "Teacher entropy and pass@1"
_HEADS = ("method", "step", "teacher_entropy", "runs", "pass_at_1", "low", "high", "seeds")


def warm_up(table: Table) -> Picture:
    """The teacher's entropy (nats a token, of a step's rollouts) over pass@1, on one axis of steps.

    Shaded are steps 0 to K of the methods whose rollouts anneal, darker where several do.
    """
    rows = [(row.title, *values) for row in table.rows for values in _series(row.member)]
    ends = sorted({end for row in table.rows for end in _ends(row.member)})

    def draw() -> Figure:
        figure, (above, below) = panels_in(1.35 * PLOT_HEIGHT, 2, _TITLE, [row.title for row in table.rows])
        for i, row in enumerate(table.rows):
            line: dict[str, Any] = {"color": colour(i), "linestyle": style(i)}
            own = [values[1:] for values in rows if values[0] == row.title]
            above.plot(*_columns(own, 0, 1), **line)
            below.plot(*_columns(own, 0, 3), marker="o", markersize=2.5, **line)
        for axis, name in ((above, "entropy, nats a token"), (below, "pass@1")):
            axis.set_ylabel(name, size=FONT - 1)
            axis.grid(axis="y")
            number_values(axis)
            for end in ends:
                axis.axvspan(0, end, color=SHADE, alpha=0.7, linewidth=0, zorder=0)
        figure.align_ylabels([above, below])
        return finish(figure, below, "step")

    named = " and ".join(map(str, ends))
    shaded = f" Shaded: the warm-up, steps 0 to {named}." if ends else ""
    caption = (
        "Above: mean entropy of the teacher’s next token over the prefixes of a step’s rollouts, high where it is "
        f"lost. Below: the student’s share of correct answers.{shaded}"
    )
    return Picture(Chart("teacher_entropy", _TITLE, caption), _HEADS, rows, draw)


def _series(member: MemberResult) -> Iterator[tuple[Any, ...]]:
    """`_HEADS` without the method, of each step that has one of the two."""
    entropies = member.series(fields.TEACHER_ENTROPY)
    scores = {step: interval(member.suite(step)) for step in member.steps()}
    for step in sorted(entropies.keys() | scores.keys()):
        values = entropies.get(step, [])
        yield (step, float(np.mean(values)) if values else None, len(values), *_score(scores.get(step)))


def _score(found: Interval | None) -> tuple[Any, ...]:
    return (None,) * 4 if found is None else (found.mean, found.low, found.high, found.seeds)


def _columns(rows: list[tuple[Any, ...]], x: int, y: int) -> tuple[list[Any], list[Any]]:
    there = [row for row in rows if row[y] is not None]
    return [row[x] for row in there], [row[y] for row in there]


def _ends(member: MemberResult) -> Iterator[int]:
    """K, where the rollouts of the first complete run anneal (Eq. 3)."""
    for run in member.done[:1]:
        behaviour = run.config().rollouts.behaviour
        if isinstance(behaviour, TrustRegion | TemperatureWarmup):
            yield behaviour.warmup_steps

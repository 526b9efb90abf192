"""The chart of where the time went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from trainer.records import fields
from trainer.report.runs import Run
from trainer.report.style import INK, SERIES

_KNOWN = {"rollout": SERIES[0], "train": SERIES[2], "push": SERIES[3], "eval": SERIES[4]}
_OTHERS = (SERIES[7], SERIES[6], SERIES[5], SERIES[1])


def time_colours(runs: Sequence[Run]) -> dict[str, str]:
    """What time was spent on, in the order of drawing, and its colour."""
    spent = dict.fromkeys(what for run in runs for what in run.seconds())
    others = [what for what in spent if what not in _KNOWN]
    return {what: colour for what, colour in _KNOWN.items() if what in spent} | {
        what: _OTHERS[i % len(_OTHERS)] for i, what in enumerate(others)
    }


def draw_times(axis: Any, runs: Sequence[Run]) -> None:
    """One run: seconds of each step, stacked. Several: a bar each of its whole time."""
    if len(runs) == 1:
        _by_step(axis, runs[0], time_colours(runs))
    else:
        _by_run(axis, runs, time_colours(runs))


def _by_step(axis: Any, run: Run, colours: dict[str, str]) -> None:
    rows = [row for row in run.rows if row["step"] > 0]
    axis.set_title("seconds a step", pad=4)
    if not rows:
        return
    edges = [rows[0]["step"] - 1, *(row["step"] for row in rows)]
    below = [0.0] * len(rows)
    for what, colour in colours.items():
        above = [base + row.get(fields.TIME.of(what), 0.0) for base, row in zip(below, rows, strict=True)]
        axis.stairs(above, edges, baseline=below, fill=True, color=colour, linewidth=0)
        below = above
    axis.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))


def _by_run(axis: Any, runs: Sequence[Run], colours: dict[str, str]) -> None:
    longest = max(sum(run.seconds().values()) for run in runs)
    divisor, unit = (3600, "hours") if longest > 7200 else (60, "minutes") if longest > 120 else (1, "seconds")
    axis.set_title(unit, pad=4)
    for i, run in enumerate(runs):
        start = 0.0
        for what, colour in colours.items():
            length = run.seconds().get(what, 0.0) / divisor
            axis.barh(i, length, 0.42, left=start, color=colour, linewidth=0)
            start += length
        axis.text(0, i - 0.27, run.name, color=INK, va="bottom", size="small")
    axis.set_ylim(len(runs) - 0.6, -0.75)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x")

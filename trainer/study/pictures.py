"""The pictures of a study, each with the numbers behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from trainer.records import fields
from trainer.report.charts import Chart
from trainer.report.draw import FONT
from trainer.report.style import INK, LINE, SERIES, SOFT
from trainer.study.drawing import PLOT_HEIGHT, Picture, axes_in, colour, finish, short, style
from trainer.study.inference import interval
from trainer.study.probe import CONTINUATIONS, read_probe
from trainer.study.results import MemberResult, StudyResult
from trainer.study.table import BASELINE, Table
from trainer.study.warm_up import warm_up

ROW = 0.2
"""Inches of a setting."""
FIRST_UPDATES = 25
"""That rollouts are pooled over for Fig. 7: the paper's warm-up."""


def pictures(study: StudyResult, table: Table) -> Iterator[Picture]:
    """Those that the study has numbers for."""
    for picture in (_trajectories(table), warm_up(table), _prefixes(study), _settings(study), _separation(study)):
        if picture.rows:
            yield picture


def _trajectories(table: Table) -> Picture:
    """Fig. 2."""
    rows = [
        (row.title, step, found.mean, found.low, found.high, found.seeds)
        for row in table.rows
        for step in row.member.steps()
        for found in [interval(row.member.suite(step))]
    ]

    def draw() -> Figure:
        figure, axis = axes_in(PLOT_HEIGHT, "pass@1 by method", [row.title for row in table.rows])
        for i, row in enumerate(table.rows):
            own = [values for values in rows if values[0] == row.title]
            steps, means, lows, highs = (list(column) for column in list(zip(*own, strict=True))[1:5])
            axis.plot(steps, means, color=colour(i), linestyle=style(i), marker="o", markersize=2.5, zorder=3)
            axis.fill_between(steps, lows, highs, color=colour(i), alpha=0.1, linewidth=0)
        axis.set_ylabel("share of correct answers", size=FONT - 1)
        return finish(figure, axis, "step")

    caption = (
        "The setting that represents each family: mean over seeds, with the 95% interval over problems (and seeds, "
        "where there are several)."
    )
    return Picture(
        Chart("trajectories", "pass@1 by method", caption),
        ("method", "step", "pass_at_1", "low", "high", "seeds"),
        rows,
        draw,
    )


def _prefixes(study: StudyResult) -> Picture:
    """Fig. 4, of the first run that was probed."""
    probes = ((m.name, found) for m in study.members for run in m.runs if (found := read_probe(run.folder)))
    name, found = next(probes, ("", None))
    kinds = [] if found is None else sorted({(s.length, s.continuation) for s in found.successes})
    rows = [(length, who, *found.gain(who, length)) for length, who in kinds if found is not None]
    rows = [row for row in rows if all(map(math.isfinite, row[2:]))]
    title = "What the blend's prefixes gain"

    def draw() -> Figure:
        figure, axis = axes_in(PLOT_HEIGHT, title, [f"the {who} goes on" for who in CONTINUATIONS])
        lengths = sorted({row[0] for row in rows})
        for i, who in enumerate(CONTINUATIONS):
            own = [(lengths.index(length) + 0.36 * (i - 0.5), *gain) for length, kind, *gain in rows if kind == who]
            places, means, lows, highs = (np.array(column) for column in zip(*own, strict=True))
            axis.bar(places, 100 * means, 0.32, color=colour(i), alpha=0.75)
            axis.vlines(places, 100 * lows, 100 * highs, color=INK, linewidth=1)
        axis.axhline(0, color=SOFT, linewidth=0.8)
        axis.set_ylabel("success gained, %", size=FONT - 1)
        finish(figure, axis, "tokens of the prefix")
        axis.set_xticks(range(len(lengths)), lengths)
        return figure

    caption = (
        f"Prefixes by {name} at its first step against the untrained student’s own, on the same prompts, each "
        "continued by the student and by the teacher; 95% intervals over the prompts."
    )
    return Picture(
        Chart("prefixes", title, caption), ("length", "continuation", "relative_gain", "low", "high"), rows, draw
    )


def _settings(study: StudyResult) -> Picture:
    """Fig. 5 and 6."""
    rows = []
    for members in study.families().values():
        for member in members:
            found = max(
                ((interval(member.suite(step)), step) for step in member.steps()), key=lambda pair: pair[0].mean
            )
            rows.append((member.name, found[1], found[0].mean, found[0].low, found[0].high, found[0].seeds))
    families = [i for i, members in enumerate(study.families().values()) for _ in members]
    baseline = next((m.name for m in study.families().get(BASELINE, [])), None)

    def draw() -> Figure:
        figure, axis = axes_in(ROW * len(rows) + 0.1, "Every setting", [], left=2.1)
        for place, (row, family) in enumerate(zip(rows, families, strict=True)):
            axis.plot(row[3:5], [place, place], color=colour(family), linewidth=2.5, alpha=0.35)
            axis.plot(row[2], place, "o", color=colour(family), markersize=4)
        for row in rows:
            if row[0] == baseline:
                axis.axvline(row[2], color=SOFT, linestyle=":", linewidth=1, zorder=0)
        axis.set_yticks(range(len(rows)), [short(row[0]) for row in rows], size=FONT - 2)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        return finish(figure, axis, "pass@1 at the best checkpoint", grid="x")

    caption = (
        "The best checkpoint of each setting, with its 95% interval; the best of many is too high by luck, the more so "
        "the more there are. Dotted: vanilla OPD."
    )
    heads = ("setting", "step", "pass_at_1", "low", "high", "seeds")
    return Picture(Chart("settings", "Every setting", caption), heads, rows, draw)


def _separation(study: StudyResult) -> Picture:
    """Fig. 7."""
    title = "Teacher log-probability and separability"
    rows = []
    for member in study.members:
        if member.family in (BASELINE, "trb", "fixed_epsilon"):
            pooled = [_early(member, field) for field in (fields.TEACHER_LOGPROB, fields.SEPARATION, fields.REWARD)]
            if all(math.isfinite(value) for value in pooled):
                rows.append((member.name, *pooled))

    def draw() -> Figure:
        figure, axis = axes_in(PLOT_HEIGHT, title, [], left=0.78)
        _, xs, ys, rewards = zip(*rows, strict=True)
        colours = LinearSegmentedColormap.from_list("reward", [LINE, SERIES[0], INK])
        axis.scatter(xs, ys, c=rewards, cmap=colours, edgecolor=SOFT, linewidth=0.6, zorder=3)
        for name, x, y, reward in rows:
            right = x > (min(xs) + max(xs)) / 2
            place: dict[str, Any] = {"xytext": (-5 if right else 5, 0), "ha": "right" if right else "left"}
            text = f"{short(str(name))}, reward {reward:.2f}"
            axis.annotate(text, (x, y), textcoords="offset points", va="center", size=FONT - 3, color=SOFT, **place)
        axis.set_ylabel("AUROC", size=FONT - 1)
        return finish(figure, axis, "mean log-probability by the teacher, nats a token")

    caption = (
        f"Rollouts of the first {FIRST_UPDATES} updates. AUROC: how well a rollout’s mean log q − log p tells right "
        "answers from wrong ones; the mean of the steps’. The darker, the more reward."
    )
    heads = ("setting", "teacher_logprob", "auroc", "reward")
    return Picture(Chart("separation", title, caption), heads, rows, draw)


def _early(member: MemberResult, field: str) -> float:
    """Mean over the first updates and the runs; NaN where there is nothing."""
    values = [v for step, per_run in member.series(field).items() if step <= FIRST_UPDATES for v in per_run]
    return float(np.mean(values)) if values else math.nan

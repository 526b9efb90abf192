"""The report's page: one HTML document with nothing from outside; a pure function of the runs and their charts.

Names and settings are untrusted text: every string is escaped, and the page's policy lets nothing run. The markup is in
``templates/``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from sglang_trb.display.completions import number
from sglang_trb.display.page import BETA_LEVELS
from sglang_trb.display.templating import environment
from trainer.records import fields
from trainer.report.charts import Chart, not_recorded
from trainer.report.runs import Run, Score, benchmarks
from trainer.report.style import DARK_SERIES, SERIES, SHADE
from trainer.report.times import time_colours
from trainer.statistics import best_of
from trainer.text import duration

STEPS_NAMED = 8
LEFT_OUT = {fields.REFUSED: "rollouts that could not be had", fields.GRADER_FAULTS: "rollouts without a verdict"}
LEFT_OUT_SO_FAR = {fields.PROMPTS_LEFT_OUT: "prompts not used", fields.SKIPPED_UPDATES: "skipped updates"}
"""Counted at each step, and up to it."""

Shown = dict[str, Any]
"""What a template shows of something: texts, numbers, lists of these."""


@cache
def _templates() -> Environment:
    return environment("trainer.report", "sglang_trb.display")


def page(runs: Sequence[Run], charts: Sequence[tuple[Chart, str]]) -> str:
    """Render the report.

    Args:
        runs: at least one with a row.
        charts: each with its ``<svg>`` element.

    Returns:
        The document; write it as UTF-8.
    """
    named = [{"name": run.name, "place": place, "last_step": run.last_step} for place, run in enumerate(runs)]
    kinds = list(time_colours(runs))
    different, same = _settings(runs)
    return (
        _templates()
        .get_template("report.html.j2")
        .render(
            title=f"Training report: {runs[0].name}" if len(runs) == 1 else f"Training report: {len(runs)} runs",
            runs=named,
            charts=[(Markup(svg), chart.caption) for chart, svg in charts],  # drawn by us
            notes=list(_notes(runs)),
            scores=list(_scores(runs, named)),
            evaluations=list(_evaluations(runs, named)),
            kinds=tuple(kind.capitalize() for kind in kinds),
            times=list(_times(runs, named, kinds)),
            different=different,
            same=same,
            levels=BETA_LEVELS,
            shade=SHADE,
            series=SERIES,
            dark_series=DARK_SERIES,
        )
    )


def _notes(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    """What must be seen: a loud part, and the rest."""
    for run in runs:
        if not run.rows:
            yield "", f"{run.name}: no step is recorded yet."
    for run in runs:
        for field, steps in run.not_finite():
            named = ", ".join(map(str, steps[:STEPS_NAMED])) + (" …" if len(steps) > STEPS_NAMED else "")
            yield f"{run.name}: {field} is not a finite number", f" at step{'s' * (len(steps) > 1)} {named}."
    for run in runs:
        if counted := _counted(run):
            yield "", f"{run.name}: {counted}."
    if missing := not_recorded(runs):
        yield "", f"Not recorded, so not drawn: {', '.join(missing)}."


def _counted(run: Run) -> str:
    """What a run left out, as far as there is anything."""
    counts = {field: sum(run.series(field)[1]) for field in LEFT_OUT}
    counts |= {field: (run.series(field)[1] or [0.0])[-1] for field in LEFT_OUT_SO_FAR}
    said = LEFT_OUT | LEFT_OUT_SO_FAR
    return ", ".join(f"{said[field]}: {number(count, 0)}" for field, count in counts.items() if count)


def _scores(runs: Sequence[Run], named: Sequence[Shown]) -> Iterator[Shown]:
    """pass@1 before and after, a row for each benchmark and run."""
    for benchmark in benchmarks(runs):
        for run, shown in zip(runs, named, strict=True):
            if scores := run.scores(benchmark):
                best = best_of(scores, lambda score: score.value)
                yield {
                    "run": shown,
                    "benchmark": benchmark,
                    "before": _score(scores[0]),
                    "after": _score(scores[-1]),
                    "change": _change(scores[0], scores[-1]),
                    "best": _score(best) if best else None,
                }


def _score(score: Score) -> Shown:
    interval = "" if score.low is None or score.high is None else f"[{number(score.low, 3)}, {number(score.high, 3)}]"
    return {
        "value": number(score.value, 3),
        "interval": interval,
        "step": score.step,
        "share": _percent(score.value),
    }


def _change(before: Score, after: Score) -> Shown:
    if before.step == after.step or not math.isfinite(after.value - before.value):
        return {"text": "–", "sign": "", "remark": ""}
    change: Shown = {"text": f"{after.value - before.value:+.3f}".replace("-", "−"), "sign": "", "remark": ""}
    if before.low is None or before.high is None or after.low is None or after.high is None:
        return change
    if after.low > before.high:
        return change | {"sign": "up", "remark": "intervals apart"}
    if after.high < before.low:
        return change | {"sign": "down", "remark": "intervals apart"}
    return change | {"remark": "intervals overlap"}


def _evaluations(runs: Sequence[Run], named: Sequence[Shown]) -> Iterator[Shown]:
    """What `trb evaluate` measured, a row each."""
    for run, shown in zip(runs, named, strict=True):
        for measured in run.evaluations:
            value = math.nan if measured.pass_at_1 is None else measured.pass_at_1
            drawn = _flatten(_how_drawn(measured.settings))
            yield {
                "run": shown,
                "benchmark": measured.benchmark,
                "score": _score(Score(measured.step, value, measured.low, measured.high)),
                "problems": measured.problems,
                "faults": measured.faults,
                "drawn": ", ".join(f"{name} {value}" for name, value in drawn),
            }


def _how_drawn(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an evaluation's settings that tells it from others of the run."""
    benchmark = settings.get("benchmark")
    samples = {"n": benchmark.get("samples")} if isinstance(benchmark, dict) else {}
    return samples | {name: settings[name] for name in ("temperature", "max_new_tokens") if name in settings}


def _times(runs: Sequence[Run], named: Sequence[Shown], kinds: Sequence[str]) -> Iterator[Shown]:
    for run, shown in zip(runs, named, strict=True):
        seconds = run.seconds()
        total = sum(seconds.values())
        spent = [(kind, seconds.get(kind, 0.0)) for kind in kinds]
        yield {
            "run": shown,
            "total": duration(total),
            "cells": [(k.capitalize(), duration(s), _percent(s / total if total else 0.0)) for k, s in spent],
        }


def _settings(runs: Sequence[Run]) -> tuple[list[Shown], list[Shown]]:
    """The settings that differ between runs, with a text for each run, and those that do not, with one."""
    flat = [dict(_flatten(run.settings)) for run in runs]
    different, same = [], []
    for name in dict.fromkeys(name for settings in flat for name in settings):
        texts = [settings.get(name, "–") for settings in flat]
        if len({settings.get(name) for settings in flat}) > 1:
            different.append({"name": name, "texts": texts})
        else:
            same.append({"name": name, "texts": texts[:1]})
    return different, same


def _flatten(settings: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and the values as text; lists of plain values stay on one line."""
    if isinstance(settings, dict) and settings:
        for key, value in settings.items():
            yield from _flatten(value, f"{name}.{key}" if name else key)
    elif isinstance(settings, list) and any(isinstance(value, dict | list) for value in settings):
        for i, value in enumerate(settings):
            yield from _flatten(value, f"{name}.{i}")
    else:
        yield name, settings if isinstance(settings, str) else json.dumps(settings, ensure_ascii=False)


def _percent(share: float) -> float:
    return 100 * min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0

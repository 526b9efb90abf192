"""The report's page: one HTML document with nothing from outside; a pure function of the runs and their charts.

Names and settings are untrusted text: every string is escaped, and the page's policy lets nothing run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from sglang_trb.display.assets import STYLE as GENERATED_PAGE_STYLE
from sglang_trb.display.completions import number, visible
from trainer.records import fields
from trainer.report.charts import Chart, not_recorded
from trainer.report.runs import Run, Score, benchmarks
from trainer.report.style import STYLE
from trainer.report.times import time_colours
from trainer.statistics import best_of
from trainer.text import duration

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"
LEAD = """Curves are over optimiser steps. Shaded steps were trained on blended rollouts, inside a trust region of
<b>ε</b> nats a token around the student (KL(μ ∥ student) ≤ ε); the rest on the student’s own."""
FOOTER = """<p>pass@1 is the mean over problems of the share of correct answers. Two intervals that are apart show a
change that is more than the noise of the evaluation; two that overlap show nothing by themselves.</p>
<p>p is the student, q the teacher, μ ∝ p<sup>1−β</sup> q<sup>β</sup> the blend that rollouts were drawn from. KLs and
entropies are in nats. ε and β belong to the rollouts of a step, pass@1 to the student after it.</p>"""
STEPS_NAMED = 8
LEFT_OUT = {fields.REFUSED: "rollouts that could not be had", fields.GRADER_FAULTS: "rollouts without a verdict"}
LEFT_OUT_SO_FAR = {fields.PROMPTS_LEFT_OUT: "prompts not used", fields.SKIPPED_UPDATES: "skipped updates"}
"""Counted at each step, and up to it."""


def page(runs: Sequence[Run], charts: Sequence[tuple[Chart, str]]) -> str:
    """Render the report.

    Args:
        runs: at least one with a row.
        charts: each with its ``<svg>`` element.

    Returns:
        The document; write it as UTF-8.
    """
    title = f"Training report: {runs[0].name}" if len(runs) == 1 else f"Training report: {len(runs)} runs"
    figures = "".join(
        f'<figure class="chart card">{svg}<figcaption>{escape(chart.caption)}</figcaption></figure>'
        for chart, svg in charts
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{_text(title)}</title><style>{GENERATED_PAGE_STYLE}{STYLE}</style></head><body>
<header><h1>{_text(title)}</h1><p class="lead">{LEAD}</p>{_notes(runs)}{_scores(runs)}</header>
<main><h2>Curves</h2><div class="charts">{figures}</div>{_evaluations(runs)}{_times(runs)}{_settings(runs)}</main>
<footer>{FOOTER}</footer></body></html>
"""


def _notes(runs: Sequence[Run]) -> str:
    notes = [f"{_text(run.name)}: no step is recorded yet." for run in runs if not run.rows]
    for run in runs:
        for field, steps in run.not_finite():
            named = ", ".join(map(str, steps[:STEPS_NAMED])) + (" …" if len(steps) > STEPS_NAMED else "")
            where = f"step{'s' * (len(steps) > 1)} {named}"
            notes.append(f"<b>{_text(run.name)}: {_text(field)} is not a finite number</b> at {where}.")
    notes += [f"{_text(run.name)}: {_text(counted)}." for run in runs if (counted := _counted(run))]
    missing = not_recorded(runs)
    if missing:
        notes.append(f"Not recorded, so not drawn: {_text(', '.join(missing))}.")
    items = "".join(f"<li>{note}</li>" for note in notes)
    return f'<ul class="notes card">{items}</ul>' if notes else ""


def _counted(run: Run) -> str:
    """What a run left out, as far as there is anything."""
    counts = {field: sum(run.series(field)[1]) for field in LEFT_OUT}
    counts |= {field: (run.series(field)[1] or [0.0])[-1] for field in LEFT_OUT_SO_FAR}
    said = LEFT_OUT | LEFT_OUT_SO_FAR
    return ", ".join(f"{said[field]}: {number(count, 0)}" for field, count in counts.items() if count)


def _scores(runs: Sequence[Run]) -> str:
    """pass@1 before and after, a row for each run and benchmark."""
    rows = [
        (run, benchmark, scores) for benchmark in benchmarks(runs) for run in runs if (scores := run.scores(benchmark))
    ]
    if not rows:
        steps = "".join(_row(_run_cell(runs, run), {"Steps": f"{run.last_step}"}) for run in runs)
        return _table(("Run", "Steps"), steps)
    body = "".join(
        _row(
            _run_cell(runs, run),
            {
                "Benchmark": _text(benchmark),
                "Before": _score(scores[0]),
                "After": _score(scores[-1]),
                "Change": _change(scores[0], scores[-1]),
                "Best": _score(best) if (best := best_of(scores, lambda score: score.value)) else "–",
            },
        )
        for run, benchmark, scores in rows
    )
    return _table(("Run", "Benchmark", "Before", "After", "Change", "Best"), body)


def _score(score: Score) -> str:
    interval = "" if score.low is None or score.high is None else f"[{number(score.low, 3)}, {number(score.high, 3)}]"
    shown = f'{number(score.value, 3)} <span class="range">{interval}</span>'
    return f"{shown} <small>step {score.step}</small>{_bar(score.value)}"


def _change(before: Score, after: Score) -> str:
    if before.step == after.step or not math.isfinite(after.value - before.value):
        return "–"
    change = f"{after.value - before.value:+.3f}".replace("-", "−")
    if before.low is None or before.high is None or after.low is None or after.high is None:
        return change
    if after.low > before.high:
        return f'{change} <span class="good">↑</span><br><small>intervals apart</small>'
    if after.high < before.low:
        return f'{change} <span class="bad">↓</span><br><small>intervals apart</small>'
    return f"{change}<br><small>intervals overlap</small>"


def _evaluations(runs: Sequence[Run]) -> str:
    """What `trb evaluate` measured, a row each."""
    rows = []
    for run in runs:
        for measured in run.evaluations:
            value = math.nan if measured.pass_at_1 is None else measured.pass_at_1
            cells = {
                "Benchmark": _text(measured.benchmark),
                "pass@1": _score(Score(measured.step, value, measured.low, measured.high)),
                "Problems": f"{measured.problems}",
                "Faults": f"{measured.faults}",
                "Drawn": _text(", ".join(f"{name} {value}" for name, value in _flatten(_how_drawn(measured.settings)))),
            }
            rows.append(_row(_run_cell(runs, run), cells))
    heads = ("Run", "Benchmark", "pass@1", "Problems", "Faults", "Drawn")
    return f"<h2>Evaluated apart</h2>{_table(heads, ''.join(rows))}" if rows else ""


def _how_drawn(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an evaluation's settings that tells it from others of the run."""
    benchmark = settings.get("benchmark")
    samples = {"n": benchmark.get("samples")} if isinstance(benchmark, dict) else {}
    return samples | {name: settings[name] for name in ("temperature", "max_new_tokens") if name in settings}


def _times(runs: Sequence[Run]) -> str:
    kinds = list(time_colours(runs))
    if not kinds:
        return ""
    rows = []
    for run in runs:
        seconds = run.seconds()
        total = sum(seconds.values())
        cells = {"Steps": f"{run.last_step}", "Total": duration(total)}
        for kind in kinds:
            share = seconds.get(kind, 0.0) / total if total else 0.0
            cells[kind.capitalize()] = f"{duration(seconds.get(kind, 0.0))} <small>{share:.0%}</small>{_bar(share)}"
        rows.append(_row(_run_cell(runs, run), cells))
    heads = ("Run", "Steps", "Total", *(kind.capitalize() for kind in kinds))
    return f"<h2>Time</h2>{_table(heads, ''.join(rows))}"


def _settings(runs: Sequence[Run]) -> str:
    flat = [dict(_flatten(run.settings)) for run in runs]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    if not names:
        return ""
    different = [name for name in names if len({settings.get(name) for settings in flat}) > 1]
    parts = ["<h2>Settings</h2>"]
    if different:
        parts.append(f'<div class="card differ">{_settings_table(runs, flat, different, "What differs")}</div>')
    same = [name for name in names if name not in different]
    if same:
        first = "Setting" if len(runs) == 1 else "The same in all"
        table = _settings_table(runs[:1], flat[:1], same, first)
        opened = " open" if len(runs) == 1 else ""
        parts.append(f'<details class="card"{opened}><summary>{len(same)} settings</summary>{table}</details>')
    return "".join(parts)


def _settings_table(runs: Sequence[Run], flat: Sequence[Mapping[str, str]], names: Sequence[str], first: str) -> str:
    heads = "".join(f'<th scope="col">{_text(name)}</th>' for name in (first, *(run.name for run in runs)))
    rows = "".join(
        f'<tr><th scope="row">{_text(name).replace(".", ".<wbr>")}</th>'
        + "".join(f"<td>{_text(settings.get(name, '–'))}</td>" for settings in flat)
        + "</tr>"
        for name in names
    )
    return f'<div class="settings"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


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


def _run_cell(runs: Sequence[Run], run: Run) -> str:
    rule = f'<i class="rule r{runs.index(run)}" aria-hidden="true"></i>' if len(runs) > 1 else ""
    return f"{rule}{_text(run.name)}"


def _row(name: str, cells: Mapping[str, str]) -> str:
    data = "".join(f'<td data-name="{_text(head)}">{cell}</td>' for head, cell in cells.items())
    return f'<tr><th scope="row">{name}</th>{data}</tr>'


def _table(heads: Sequence[str], body: str) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in heads)
    return f'<div class="glance card"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _bar(share: float) -> str:
    width = 100 * min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0
    return f'<svg class="bar" aria-hidden="true"><rect width="{width:.1f}%" height="5"/></svg>'


def _text(text: str) -> str:
    return escape(visible(text))

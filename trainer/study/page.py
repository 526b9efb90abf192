"""A study's page: Table 1 with its uncertainty, the pictures, time, checks and what deviates from the paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup

from sglang_trb.display.completions import number
from sglang_trb.display.page import BETA_LEVELS, SURPRISING
from sglang_trb.display.templating import environment, script
from trainer.atomic import write_file
from trainer.records import fields
from trainer.report.style import DARK_SERIES, SERIES, SHADE
from trainer.statistics import CONFIDENCE
from trainer.study.deviations import deviations
from trainer.study.drawing import Picture
from trainer.study.efficiency import HEADS as MEMORY_HEADS
from trainer.study.efficiency import Efficiency, efficiency
from trainer.study.inference import Difference, Interval
from trainer.study.pictures import pictures
from trainer.study.queue import State
from trainer.study.results import StudyResult, read_study
from trainer.study.side_by_side import HEADS, SideBySide, side_by_side
from trainer.study.small_budgets import budget_rows, small_budgets
from trainer.study.student_t import quantile
from trainer.study.table import MEAN, Table, TableRow, make_table
from trainer.study.theory import LEAST_MASS, Theory, theory
from trainer.text import duration

PAGE, REPORT = "index.html", "report"

Shown = dict[str, Any]


@cache
def _templates() -> Environment:
    return environment("trainer.study", "trainer.report", "sglang_trb.display")


def write_study_report(folder: Path, out: Path | None = None) -> Path:
    """Draw a study as far as it is: a page, a PNG and a CSV for each picture, and a CSV for each table.

    Args:
        folder: of the study.
        out: where the files go; None is ``report/`` in the study's folder. Each is replaced atomically.

    Returns:
        The page.

    Raises:
        NothingToReport, OtherStudy, ScoresBroken, RecordsBroken, SettingsBroken: as `read_study`.
        JournalBroken: a run's rollouts are damaged.
        OSError: a file cannot be written.
    """
    study = read_study(folder)
    out = out or folder / REPORT
    out.mkdir(parents=True, exist_ok=True)
    table = make_table(study)
    write_file(out / "table.csv", _csv(_TABLE_HEADS, _table_rows(table)))
    drawn = []
    laws = theory(study)
    for picture in (*pictures(study, table), *([small_budgets(laws)] if laws else [])):
        png, svg = picture.images()
        write_file(out / f"{picture.chart.name}.png", png)
        write_file(out / f"{picture.chart.name}.csv", _csv(picture.heads, picture.rows))
        drawn.append((picture, svg))
    rollouts = side_by_side(study, table)
    if isinstance(rollouts, SideBySide):
        write_file(out / "rollouts.csv", _csv(HEADS, rollouts.rows()))
    memory = efficiency(study)
    if memory is not None:
        write_file(out / "memory.csv", _csv(MEMORY_HEADS, memory.rows()))
    write_file(out / PAGE, _page(study, table, drawn, rollouts, memory, laws).encode())
    return out / PAGE


_TABLE_HEADS = (
    "family", "setting", "step", "column", "pass_at_1", "low", "high", "seed_spread", "seeds", "problems",
    "mean_chosen_on_other_half", "difference_from_vanilla", "difference_low", "difference_high", "p_value",
)  # fmt: skip


def _table_rows(table: Table) -> Iterator[tuple[Any, ...]]:
    for row in table.rows:
        for column, found in row.columns.items():
            whole = column == MEAN or len(row.columns) == 1  # corrected and difference are of the suite's mean
            d = row.difference if whole else None
            yield (
                row.family, row.member.setting, row.step, column, found.mean, found.low, found.high, found.spread,
                found.seeds, found.problems, row.corrected if whole else None,
                *((d.mean, d.low, d.high, d.p_value) if d else (None,) * 4),
            )  # fmt: skip


def _csv(heads: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return text.getvalue()


def _page(
    study: StudyResult,
    table: Table,
    drawn: Sequence[tuple[Picture, str]],
    rollouts: SideBySide | tuple[str, str],
    memory: Efficiency | None,
    laws: Theory | None,
) -> str:
    counts = study.counts()
    text, policy = script(_templates(), "page.js")
    there = isinstance(rollouts, SideBySide)
    return (
        _templates()
        .get_template("study.html.j2")
        .render(
            title=f"Study: {study.name}",
            progress=f"{counts[State.DONE]} of {sum(counts.values())} runs are done",
            notes=[*_notes(study), *([] if isinstance(rollouts, SideBySide) else [rollouts])],
            columns=table.columns,
            rows=[_row(table, row) for row in table.rows],
            charts=[(Markup(svg), picture.chart.caption) for picture, svg in drawn],  # drawn by us
            times=list(_times(table)),
            kinds=_kinds(table),
            chains=list(_chains(study)),
            loss=", ".join(f"{name} {value}" for name, value in study.base.loss.model_dump(mode="json").items()),
            deviations=deviations(study.base),
            rollouts=rollouts if there else None,
            memory=memory,
            laws=laws,
            budgets=list(budget_rows(laws)) if laws else [],
            least_mass=LEAST_MASS,
            surprising=SURPRISING,
            script=text,
            script_policy=policy if there else "'none'",
            levels=BETA_LEVELS,
            shade=SHADE,
            series=SERIES,
            dark_series=DARK_SERIES,
        )
    )


def _notes(study: StudyResult) -> Iterator[tuple[str, str]]:
    named = {run.name: run for member in study.members for run in member.runs}
    for run in named.values():
        if run.state is State.FAILED:
            yield f"{run.name} failed", "; it counts nowhere."
    seeds = {len(row.done) for row in study.members if row.done}
    if seeds and max(seeds) == 1:
        yield "One seed", ": the intervals are over problems alone, and say nothing of another seed."
    for benchmark, count in study.problems_left_out.items():
        yield "", f"{benchmark}: {count} problems without a graded answer in some run are left out of all."


def _row(table: Table, row: TableRow) -> Shown:
    cells = []
    for column, found in row.columns.items():
        marked = table.marks[column]
        kind = "best" if row.family in marked.bold else "second" if row.family in marked.underlined else ""
        tie = kind == "best" and len(marked.bold) > 1
        cells.append({"name": column, "text": _points(found.mean), "range": _range(found), "kind": kind, "tie": tie})
    found = row.columns.get(MEAN) or next(iter(row.columns.values()))
    return {
        "title": row.title,
        "setting": row.member.setting,
        "step": row.step,
        "settings": row.settings,
        "seeds": found.seeds,
        "spread": "–" if found.spread is None else _points(found.spread),
        "cells": cells,
        "corrected": _points(row.corrected),
        "difference": _difference(row.difference),
    }


def _points(value: float) -> str:
    """As the paper's tables: percent."""
    return number(100 * value, 1)


def _range(found: Interval) -> str:
    return f"[{_points(found.low)}, {_points(found.high)}]"


def _difference(found: Difference | None) -> Shown | None:
    if found is None:
        return None
    text = f"{100 * found.mean:+.1f}".replace("-", "−")
    ends = f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]".replace("-", "−")
    sign = "" if found.p_value >= 0.05 else "up" if found.mean > 0 else "down"
    p = "p < 0.001" if found.p_value < 0.001 else f"p = {found.p_value:.3f}"
    return {"text": text, "range": ends, "sign": sign, "p": p}


def _kinds(table: Table) -> list[str]:
    names = {
        what: None for row in table.rows for run in row.member.done for r in run.rows for name in r
        if (what := fields.TIME.member(name))
    }  # fmt: skip
    return list(names)


def _times(table: Table) -> Iterator[Shown]:
    """Seconds of a run of the member that represents a family, mean over its seeds, by phase."""
    for row in table.rows:
        runs = row.member.done
        spent = {
            kind: sum(r.get(fields.TIME.of(kind), 0.0) for run in runs for r in run.rows) / len(runs)
            for kind in _kinds(table)
        }
        total = sum(spent.values())
        cells = [
            {"name": kind, "text": duration(s), "share": 100 * s / total if total else 0.0} for kind, s in spent.items()
        ]
        yield {"title": row.title, "total": duration(total), "cells": cells}


def _chains(study: StudyResult) -> Iterator[Shown]:
    """KL of whole rollouts, estimated in two ways, against T epsilon (App. G), over the updates with a budget."""
    for member in study.members:
        rows = [row for run in member.runs for row in run.rows if row.get(fields.EPSILON, 0.0) > 0]
        if rows and member.family in ("trb", "fixed_epsilon"):
            yield {"title": member.name, **_chain(rows)}


def _chain(rows: Sequence[dict[str, float]]) -> Shown:
    def mean(field: str) -> float:
        return float(np.mean([row.get(field, np.nan) for row in rows]))

    bound = float(np.mean([row[fields.EPSILON] * row.get(fields.RESPONSE_LENGTH, np.nan) for row in rows]))
    apart = [row.get(fields.LOG_RATIO_KL, np.nan) - row[fields.SUM_KL] for row in rows]
    several = len(apart) > 1
    half = quantile(CONFIDENCE, len(apart) - 1) * np.std(apart, ddof=1) / len(apart) ** 0.5 if several else np.nan
    return {
        "sum": number(mean(fields.SUM_KL), 3),
        "log_ratio": f"{number(mean(fields.LOG_RATIO_KL), 3)} ± {number(half, 3)}",
        "bound": number(bound, 3),
        "updates": len(rows),
    }

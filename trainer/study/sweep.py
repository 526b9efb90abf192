"""Several runs that differ in chosen fields, and which checkpoint represents them (docs/methods.md, "Evaluation
protocol")."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from trainer.config.file import WrongConfig, load_config
from trainer.config.run import RunConfig
from trainer.records import METRICS_FILE, Row, fields, read_rows
from trainer.statistics import best_of


@dataclasses.dataclass(frozen=True)
class Setting:
    """One run of a sweep.

    Attributes:
        overrides: what `trb train` gets, the run's name among them.
        config: checked.
    """

    overrides: tuple[str, ...]
    config: RunConfig


@dataclasses.dataclass(frozen=True)
class Result:
    """The best checkpoint of a run: the highest mean over the benchmarks.

    Attributes:
        name: of the run.
        step: updates.
        mean: of ``scores``, pass@1 by benchmark.
    """

    name: str
    step: int
    mean: float
    scores: dict[str, float]


def settings(config: str | Path, varied: Sequence[str], overrides: Sequence[str]) -> list[Setting]:
    """All combinations, the last field changing fastest; each is checked before any is run.

    Args:
        config: of the runs.
        varied: ``key.sub=[value, value]`` each.
        overrides: of all runs.

    Raises:
        WrongConfig: a field, or a combination that is not allowed.
    """
    fields = [_values(text) for text in varied]
    base = load_config(config, overrides).name
    found = []
    for values in itertools.product(*(values for _, values in fields)):
        chosen = {name: value for (name, _), value in zip(fields, values, strict=True)}
        own = [f"{name}={json.dumps(value)}" for name, value in chosen.items()]
        all_of_it = (*overrides, *own, f"name={base}-{_slug(chosen)}")
        found.append(Setting(all_of_it, load_config(config, all_of_it)))
    names = [setting.config.name for setting in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise WrongConfig(f"--vary: got {twice.pop()!r} twice; allowed: different values")
    return found


def best(run: Path) -> Result | None:
    """Of the evaluations that a run recorded; on all of its benchmarks, as `best_of` compares them."""
    rows = read_rows(run / METRICS_FILE) if (run / METRICS_FILE).is_file() else []
    evaluations = [(int(row["step"]), _scores(row)) for row in rows]
    benchmarks = set().union(*(scores for _, scores in evaluations))
    results = [
        Result(run.name, step, statistics.fmean(scores.values()), scores)
        for step, scores in evaluations
        if scores and scores.keys() == benchmarks
    ]
    return best_of(results, lambda result: result.mean)


def _scores(row: Row) -> dict[str, float]:
    return {benchmark: value for name, value in row.items() if (benchmark := fields.PASS_AT_1.member(name))}


def _values(text: str) -> tuple[str, list[Any]]:
    name, _, listed = text.partition("=")
    try:
        values = yaml.safe_load(listed)
    except yaml.YAMLError:
        values = None
    if not name or not isinstance(values, list) or not values:
        raise WrongConfig(f"--vary: got {text!r}; allowed: key.sub=[value, value]")
    return name, values


def _slug(chosen: Mapping[str, Any]) -> str:
    """A part of a name: the last words of the fields, and their values."""
    parts = [f"{name.rsplit('.', 1)[-1]}-{json.dumps(value)}" for name, value in chosen.items()]
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(parts)).strip("-")

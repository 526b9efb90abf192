"""Which charts a report has: what each shows, in which unit, under which name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from enum import Enum

from trainer.records import fields
from trainer.report.runs import Run, benchmarks


class Scale(Enum):
    """How a vertical axis is laid out."""

    FREE = "whatever the values span"
    FROM_ZERO = "from 0"
    LOG = "logarithmic"


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes: fields and what the legend calls them ("" where there is only one)."""

    title: str
    fields: dict[str, str]
    scale: Scale = Scale.FROM_ZERO


@dataclasses.dataclass(frozen=True)
class Chart:
    """Panels under one another that share the axis of steps; ``name`` is the PNG's."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...] = ()

    def fields(self) -> list[str]:
        """The fields of the rows that are drawn as curves."""
        return [field for panel in self.panels for field in panel.fields]


@dataclasses.dataclass(frozen=True)
class ScoreChart(Chart):
    """pass@1 on one benchmark, with its intervals."""

    benchmark: str = ""

    def fields(self) -> list[str]:
        return [fields.PASS_AT_1.of(self.benchmark)]


@dataclasses.dataclass(frozen=True)
class TimeChart(Chart):
    """Where the time went: by step for one run, by run for several."""


CURVES = (
    Chart(
        "reward",
        "Reward of the rollouts",
        "Share of verified answers among the rollouts that were trained on.",
        (Panel("share", {fields.REWARD: ""}),),
    ),
    Chart(
        "reverse_kl",
        "Reverse KL to the teacher",
        "KL(student ∥ teacher) over the student’s top 16, mean over tokens.",
        (Panel("nats a token", {fields.REVERSE_KL: ""}),),
    ),
    Chart(
        "trust_region",
        "Trust region",
        "The budget ε, the KL(μ ∥ student) that the blend used of it, and the teacher’s exponent β.",
        (
            Panel("nats a token", {fields.MEAN_KL: "mean KL", fields.EPSILON: "budget ε"}),
            Panel("mean β", {fields.MEAN_BETA: ""}),
        ),
    ),
    Chart(
        "entropy",
        "Entropy on visited prefixes",
        "Mean over the tokens of the rollouts.",
        (Panel("nats", {fields.STUDENT_ENTROPY: "student", fields.TEACHER_ENTROPY: "teacher"}),),
    ),
    Chart(
        "responses",
        "Responses",
        "Mean length, and the share that ended with a stop token rather than at the limit.",
        (
            Panel("length, tokens", {fields.RESPONSE_LENGTH: ""}),
            Panel("finished, share", {fields.FINISHED_SHARE: ""}, Scale.FREE),
        ),
    ),
    Chart(
        "update",
        "Update",
        "The loss, and the norm of the gradient before clipping.",
        (
            Panel("loss", {fields.LOSS: ""}, Scale.FREE),
            Panel("gradient norm", {fields.GRAD_NORM: ""}),
        ),
    ),
    Chart(
        "support_mass",
        "Probability on the support",
        "What each model gives to the student’s top 16; a truncated reverse KL gets unreliable as it shrinks.",
        (
            Panel(
                "probability",
                {fields.SUPPORT_MASS_STUDENT: "student", fields.SUPPORT_MASS_TEACHER: "teacher"},
                Scale.FREE,
            ),
        ),
    ),
    Chart(
        "drift",
        "Drift of trainer and server",
        "Difference of the student’s log-probabilities of drawn tokens between the two.",
        (Panel("nats", {fields.DRIFT_MEAN: "mean", fields.DRIFT_MAX: "largest"}, Scale.LOG),),
    ),
)

_TIME = TimeChart("time", "Where the time went", "Wall-clock time, as far as it was spent on what is named.")


def charts_for(runs: Sequence[Run]) -> Iterator[Chart]:
    """The charts that at least one run has a value for, without the panels and fields that none has."""
    for benchmark in benchmarks(runs):
        name = f"pass_at_1_{re.sub(r'[^A-Za-z0-9.-]', '_', benchmark)}"
        caption = "Share of correct answers of the student after that many updates, with its interval."
        yield ScoreChart(name, f"pass@1, {benchmark}", caption, benchmark=benchmark)
    recorded = _recorded(runs)
    for chart in CURVES:
        panels = []
        for panel in chart.panels:
            there = {field: label for field, label in panel.fields.items() if field in recorded}
            panels += [dataclasses.replace(panel, fields=there)] * bool(there)
        if panels:
            yield dataclasses.replace(chart, panels=tuple(panels))
    if any(run.seconds() for run in runs):
        yield _TIME


def not_recorded(runs: Sequence[Run]) -> list[str]:
    """The fields that a chart would show and no run has."""
    recorded = _recorded(runs)
    wanted = [field for chart in CURVES for field in chart.fields()]
    missing = [field for field in wanted if field not in recorded]
    missing += [] if benchmarks(runs) else [fields.PASS_AT_1]
    return missing + ([] if any(run.seconds() for run in runs) else [fields.TIME])


def _recorded(runs: Sequence[Run]) -> set[str]:
    return {name for run in runs for row in run.rows for name in row}

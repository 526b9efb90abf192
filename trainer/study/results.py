"""What a study's runs have brought so far, from its folder alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from trainer.config.run import RunConfig
from trainer.errors import TrainerError
from trainer.records import METRICS_FILE, SETTINGS_FILE, Row, fields, read_rows, read_scores, read_settings
from trainer.records.files import SettingsBroken
from trainer.report.runs import NothingToReport
from trainer.study.plan import RUNS
from trainer.study.queue import STUDY_FILE, OtherStudy, State, state_of

Suite = dict[str, np.ndarray]
"""Scores by benchmark, float64 [seeds, problems]."""


class ScoresBroken(TrainerError, ValueError):
    """Runs that cannot be compared, or have lost a part of what they recorded; the message names them."""


@dataclasses.dataclass(frozen=True)
class RunResult:
    """One run of a member.

    Attributes:
        name, folder: where it is.
        seed: of the run.
        state: done, failed, or to do (begun or not).
        rows: its records, steps counted with those that came before its own.
        scores: of each problem by step (counted the same way) and benchmark; NaN for problems without a graded answer.
    """

    name: str
    folder: Path
    seed: int
    state: State
    rows: Sequence[Row]
    scores: Mapping[int, Mapping[str, np.ndarray]]

    def config(self) -> RunConfig:
        """The settings that it was trained with.

        Raises:
            SettingsBroken: its folder says none, or some that no run has.
        """
        try:
            return RunConfig.model_validate(read_settings(self.folder))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise SettingsBroken(f"{self.folder / SETTINGS_FILE}: {where}: {first['msg']}") from None


@dataclasses.dataclass(frozen=True)
class MemberResult:
    """One setting of a family.

    Attributes:
        family, title, setting: as in `trainer.study.plan.Member`.
        runs: one a seed.
    """

    family: str
    title: str
    setting: str
    runs: Sequence[RunResult]

    @property
    def name(self) -> str:
        """Of the family and the setting."""
        return f"{self.title}, {self.setting}" if self.setting else self.title

    @property
    def done(self) -> list[RunResult]:
        """The runs that are complete."""
        return [run for run in self.runs if run.state is State.DONE]

    def seeds(self) -> list[int]:
        """Of the complete runs."""
        return [run.seed for run in self.done]

    def steps(self) -> list[int]:
        """At which every complete run was evaluated on all benchmarks that any was."""
        runs = self.done
        if not runs:
            return []
        names = {name for run in runs for scores in run.scores.values() for name in scores}
        return sorted(
            step
            for step in set.intersection(*(set(run.scores) for run in runs))
            if all(run.scores[step].keys() == names for run in runs)
        )

    def suite(self, step: int, seeds: Sequence[int] | None = None) -> Suite:
        """The complete runs' scores after ``step`` updates; of these seeds, or of all."""
        runs = [run for run in self.done if seeds is None or run.seed in seeds]
        return {name: np.stack([run.scores[step][name] for run in runs]) for name in runs[0].scores[step]}

    def series(self, field: str) -> dict[int, list[float]]:
        """A field's values by step, of the runs that have recorded it there."""
        found: dict[int, list[float]] = {}
        for run in self.runs:
            for row in run.rows:
                if field in row:
                    found.setdefault(int(row["step"]), []).append(row[field])
        return dict(sorted(found.items()))


@dataclasses.dataclass(frozen=True)
class StudyResult:
    """A study.

    Attributes:
        name: of its folder.
        base: the run that its families change.
        members: in the order of its file.
        problems_left_out: problems that some run has no graded answer to, by benchmark; they count nowhere.
    """

    name: str
    base: RunConfig
    members: Sequence[MemberResult]
    problems_left_out: Mapping[str, int]

    def families(self) -> dict[str, list[MemberResult]]:
        """The members by family, only those with a complete run."""
        found: dict[str, list[MemberResult]] = {}
        for member in self.members:
            if member.steps():
                found.setdefault(member.family, []).append(member)
        return found

    def counts(self) -> dict[State, int]:
        """How many runs there are of each state, shared ones once."""
        states = {run.name: run.state for member in self.members for run in member.runs}
        return {state: list(states.values()).count(state) for state in State}


def is_study(folder: Path) -> bool:
    """Whether `trb study` has begun a study there."""
    return (folder / STUDY_FILE).is_file()


def read_study(folder: Path) -> StudyResult:
    """Read what there is.

    Raises:
        NothingToReport: no study, or no run of it has recorded anything.
        OtherStudy: its record is damaged.
        ScoresBroken: two runs were evaluated on different problems, or a complete one lacks updates.
        SettingsBroken: a run's settings are damaged.
        RecordsBroken: a run's file is damaged.
    """
    base, members = _recorded(folder)
    if not any(run.rows for member in members for run in member.runs):
        raise NothingToReport(f"{folder}: no run of the study has recorded anything yet")
    return StudyResult(folder.resolve().name, base, *_without_ungraded(members))


def _recorded(folder: Path) -> tuple[RunConfig, list[MemberResult]]:
    """The base run and the members, with their runs as they are now."""
    path = folder / STUDY_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        described, base = record["members"], RunConfig.model_validate(record["base"])
        parts = [
            (m["family"], m["title"], m["setting"], int(m["first_step"]), [(int(s), n) for s, n in m["runs"].items()])
            for m in described
        ]
    except FileNotFoundError:
        raise NothingToReport(f"{folder}: no {STUDY_FILE} in it; allowed: the folder of a study") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise OtherStudy(f"{path}: got a damaged record ({error!r}); allowed: what trb study wrote") from None
    problems: dict[str, tuple[str, str]] = {}
    return base, [
        MemberResult(family, title, setting, [_run(folder, name, seed, first, problems) for seed, name in runs])
        for family, title, setting, first, runs in parts
    ]


def _run(folder: Path, name: str, seed: int, first_step: int, problems: dict[str, tuple[str, str]]) -> RunResult:
    where = folder / RUNS / name
    rows = read_rows(where / METRICS_FILE) if (where / METRICS_FILE).is_file() else []
    state, last = state_of(folder, name), int(rows[-1]["step"]) if rows else 0
    steps = read_settings(where).get("steps") if state is State.DONE else last
    if last != steps:
        raise ScoresBroken(f"{where / METRICS_FILE}: got {last} updates of a run that is complete with {steps}")
    scores: dict[int, dict[str, np.ndarray]] = {}
    for row in rows:
        for benchmark in filter(None, map(fields.PASS_AT_1.member, row)):
            kept = read_scores(where, int(row["step"]), benchmark)
            if kept is None:
                raise ScoresBroken(
                    f"{where}: got no scores of {benchmark} after update {row['step']}, which has a pass@1"
                )
            digest, first = problems.setdefault(benchmark, (kept.problems, name))
            if digest != kept.problems or len(kept.right) < 2:
                raise ScoresBroken(f"{name}: {benchmark} has other problems than in {first}; they cannot be compared")
            scores.setdefault(int(row["step"]) + first_step, {})[benchmark] = kept.shares()
    shifted = [{**row, "step": row["step"] + first_step} for row in rows]
    return RunResult(name, where, seed, state, shifted, scores)


def _without_ungraded(members: Sequence[MemberResult]) -> tuple[list[MemberResult], dict[str, int]]:
    """Only problems that every complete run has an answer to at every step: pairs need both."""
    graded: dict[str, np.ndarray] = {}
    for member in members:
        for run in member.done:
            for scores in run.scores.values():
                for name, shares in scores.items():
                    there = np.isfinite(shares)
                    graded[name] = graded.get(name, np.ones(len(shares), bool)) & there

    def kept(run: RunResult) -> RunResult:
        scores = {
            step: {n: shares[graded[n]] if n in graded else shares for n, shares in by_name.items()}
            for step, by_name in run.scores.items()
        }
        return dataclasses.replace(run, scores=scores)

    changed = [dataclasses.replace(member, runs=[kept(run) for run in member.runs]) for member in members]
    return changed, {name: int((~there).sum()) for name, there in graded.items() if not there.all()}

"""A study's file, and the runs that it stands for."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from trainer.config.file import WrongConfig, explained, load_config, read_yaml
from trainer.config.run import RunConfig
from trainer.config.section import Section
from trainer.learner.checkpoints import STUDENT as STUDENT_FOLDER
from trainer.learner.checkpoints import CheckpointStore
from trainer.study.methods import BEHAVIOUR, LOSS, METHODS, Method

RUNS = "runs"
"""Of a study's folder: the folders of its runs."""

_SERVERS_AT = ["http://127.0.0.1:1", "http://127.0.0.1:2"]
"""Stand for the study's servers while runs are planned; where they are does not matter to a run."""


_PLACE: dict[str, Any] = {
    **dict.fromkeys(("name", "folder", "server", "push", "records"), True),
    "evaluation": {"beside_training"},
}
"""Settings that say where and when, not what comes out."""


class Family(Section):
    """One row of the table: a method of `METHODS` with its grid, or with what is given here instead."""

    title: str | None = Field(None, description="as tables call it; null: the method's")
    set: dict[str, Any] | None = Field(None, description="fields of the base run that make it, as key.sub: value")
    grid: dict[str, tuple[Any, ...]] | None = Field(None, description="fields and the values that are tried")
    sft_updates: tuple[int, ...] | None = Field(None, description="supervised updates before, each a member")

    @model_validator(mode="after")
    def _has_values(self) -> Family:
        for name, values in (self.grid or {}).items():
            if not values:
                raise ValueError(f"grid.{name}: got no value; allowed: at least one")
        if any(updates < 1 for updates in self.sft_updates or ()):
            raise ValueError(f"sft_updates: got {list(self.sft_updates or ())}; allowed: 1 and more")
        return self


class StudyConfig(Section):
    """A whole study."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the study's folder")
    folder: str = Field("studies", description="where the study's folder is made")
    base: str = Field(description="configuration of a run (YAML), which the families change")
    set: dict[str, Any] = Field(default_factory=dict, description="fields of every run, as key.sub: value")
    seeds: tuple[int, ...] = Field((0,), description="each family is run with each of them")
    processes: int = Field(1, ge=1, description="of a training; more than one: torchrun starts them, on this machine")
    families: dict[str, Family] = Field(min_length=1, description="by name; the methods that are known need no more")

    @field_validator("families", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """A list of names is short for methods as they are."""
        if isinstance(given, list) and all(isinstance(name, str) for name in given):
            return {name: {} for name in given}
        if isinstance(given, dict):
            return {name: {} if family is None else family for name, family in given.items()}
        return given

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"got {list(seeds)}; allowed: different numbers, 0 and more")
        return seeds

    @property
    def study_folder(self) -> Path:
        """The study's own folder."""
        return Path(self.folder).expanduser() / self.name

    def method(self, family: str) -> Method:
        """What a family changes. Raises: WrongConfig: neither known nor described."""
        given, known = self.families[family], METHODS.get(family)
        if known is None and given.set is None:
            raise WrongConfig(
                f"families.{family}: got no such method; allowed: {', '.join(METHODS)}, or any name with 'set'"
            )
        known = known or Method(family)
        return Method(
            given.title or known.title,
            known.set if given.set is None else given.set,
            known.grid if given.grid is None else given.grid,
            known.sft_updates if given.sft_updates is None else given.sft_updates,
        )


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One training of a study.

    Attributes:
        name: of its folder.
        config: checked; ``server.urls`` are to be those that it is run on.
        after: the run whose checkpoint it starts from, or None.
        first_step: what its step 0 is to the other runs: supervised updates were made before.
    """

    name: str
    config: RunConfig
    after: str | None = None
    first_step: int = 0

    def digest(self) -> str:
        """Of all that decides what comes out."""
        values = self.config.model_dump(mode="json", exclude=_PLACE)
        return hashlib.sha256(json.dumps([values, self.first_step], sort_keys=True).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Member:
    """One setting of a family: a run for each seed.

    Attributes:
        family, title: the family's name, and how it is shown.
        setting: swept fields (their last words) and values, "" for a family of one.
        runs: by seed.
    """

    family: str
    title: str
    setting: str
    runs: Mapping[int, PlannedRun]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a study runs.

    Attributes:
        study: its file.
        base: the base run, as the study changes it.
        members: of all families, in the file's order.
        runs: all, those that others start from before them; no two are alike.
    """

    study: StudyConfig
    base: RunConfig
    members: tuple[Member, ...]
    runs: tuple[PlannedRun, ...]

    def recorded(self) -> dict[str, str]:
        """Names of the runs and their digests."""
        return {run.name: run.digest() for run in self.runs}

    def described(self) -> list[dict[str, Any]]:
        """The members for the study's record: what the report needs to know of them."""
        return [
            {
                "family": member.family,
                "title": member.title,
                "setting": member.setting,
                "first_step": next(iter(member.runs.values())).first_step,
                "runs": {str(seed): run.name for seed, run in member.runs.items()},
            }
            for member in self.members
        ]


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read and check a study's file; paths in it are as seen from where the command is given.

    Raises:
        WrongConfig: with every wrong field.
    """
    try:
        return StudyConfig.model_validate(read_yaml(path, overrides))
    except ValidationError as error:
        raise WrongConfig("\n".join(explained(error, StudyConfig))) from None


def make_plan(study: StudyConfig) -> Plan:
    """All runs of a study; each is checked before any is begun.

    Raises:
        WrongConfig: a family or one of its combinations; the message names it.
    """
    runs: dict[str, PlannedRun] = {}  # by digest: what two families have in common is run once
    names: dict[str, str] = {}
    members = []
    for family in study.families:
        method = study.method(family)
        for chosen, updates in _settings(method):
            slug = _slug(chosen) + (f"sft-{updates}" if updates else "")
            by_seed = {}
            for seed in study.seeds:
                for run in _runs(study, family, method, chosen, updates, slug, seed):
                    known = runs.setdefault(run.digest(), run)
                    if names.setdefault(known.name, known.digest()) != known.digest():
                        raise WrongConfig(f"families.{family}: got two settings of one name, {known.name!r}")
                by_seed[seed] = known
            members.append(Member(family, method.title, _told(chosen, updates), by_seed))
    base = load_config(study.base, _overrides(study.set))
    return Plan(study, base, tuple(members), tuple(runs.values()))


def _settings(method: Method) -> Iterator[tuple[dict[str, Any], int]]:
    for values in itertools.product(*method.grid.values()):
        for updates in method.sft_updates or (0,):
            yield dict(zip(method.grid, values, strict=True)), updates


def _runs(
    study: StudyConfig, family: str, method: Method, chosen: Mapping[str, Any], updates: int, slug: str, seed: int
) -> Iterator[PlannedRun]:
    """The runs of one setting and seed; the last is the setting's own."""
    common = {**study.set, "seed": seed, "folder": str(study.study_folder / RUNS)}
    values = {**common, **method.set, **chosen}
    warm: PlannedRun | None = None
    if updates:
        warm = _warmup(study, common, method, seed)
        start = CheckpointStore(warm.config.run_folder / "checkpoints", 1).path(updates) / STUDENT_FOLDER
        base = load_config(study.base, _overrides(common))
        if updates >= base.steps:
            raise WrongConfig(f"families.{family}.sft_updates: got {updates}; allowed: less than steps, {base.steps}")
        yield warm
        values |= {
            "models.student": str(start),
            "steps": base.steps - updates,
            "optimisation.warmup_steps": 0,  # it goes on at the full learning rate
            "data.first_prompt": base.data.first_prompt + updates * base.rollouts.prompts_per_step,
        }
    name = "-".join(filter(None, (family, slug, f"seed-{seed}")))
    yield _run(study, family, name, values, warm.name if warm else None, updates)


def _warmup(study: StudyConfig, common: Mapping[str, Any], method: Method, seed: int) -> PlannedRun:
    """Supervised updates on the teacher's responses to the prompts of the first steps (Table 4)."""
    updates = method.sft_updates
    values = {
        **common,
        BEHAVIOUR: {"method": "teacher"},
        LOSS: {"name": "sft"},
        "steps": max(updates),
        "checkpoints.every": math.gcd(*updates),
        "checkpoints.keep_last": max(updates) // math.gcd(*updates),
        "evaluation.every": 0,
    }
    return _run(study, "sft", f"sft-warmup-seed-{seed}", values, None, 0)


def _run(
    study: StudyConfig, family: str, name: str, values: Mapping[str, Any], after: str | None, first: int
) -> PlannedRun:
    server = {"server.launch": None, "server.urls": _SERVERS_AT, "server.launch_options": []}
    try:
        return PlannedRun(name, load_config(study.base, _overrides({**values, **server, "name": name})), after, first)
    except WrongConfig as error:
        raise WrongConfig(f"families.{family}, {name}: {error}") from None


def _overrides(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Whole sections before fields of theirs, as they are to be applied."""
    ordered = sorted(values.items(), key=lambda item: item[0].count("."))
    return tuple(f"{name}={json.dumps(value)}" for name, value in ordered)


def _slug(chosen: Mapping[str, Any]) -> str:
    parts = [f"{name.rsplit('.', 1)[-1]}-{json.dumps(value)}" for name, value in chosen.items()]
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(parts)).strip("-")


def _told(chosen: Mapping[str, Any], updates: int) -> str:
    parts = [f"{name.rsplit('.', 1)[-1].replace('_', ' ')} {value}" for name, value in chosen.items()]
    return ", ".join(parts + [f"{updates} updates"] * bool(updates))

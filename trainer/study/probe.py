"""The prefix probe (Fig. 4): are the prefixes that a behaviour policy writes better starts than the student's own?

Rollouts of the untrained student, and of a run's behaviour policy at its first step, on the same prompts with the same
seeds, are cut at some lengths and continued by the student and by the teacher. A response that ended before the cut
stands as it is. Everything drawn is kept in the run's ``probe/`` and not drawn again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sglang_trb.pair.pair import Pair
from sglang_trb.wire.params import BlendParams, Return, Rule
from trainer.atomic import write_file
from trainer.config.run import RunConfig
from trainer.errors import TrainerError
from trainer.grading.grader import Verdict
from trainer.records import RecordsBroken
from trainer.rollouts.journal import StepJournal
from trainer.rollouts.rollout import Rollout, RolloutKey, RolloutRequest
from trainer.run.folder import claimed
from trainer.run.leader import Leader

PROBE = "probe"
"""Of a run's folder."""

SOURCES = ("behaviour", "student")
CONTINUATIONS = {"student": Rule.STUDENT, "teacher": Rule.TEACHER}
_RESULT = "probe.json"


class NothingToProbe(TrainerError, ValueError):
    """The run's policy is the student's own, or its problems have no answers."""


class Success(BaseModel):
    """Right answers of one kind of prefix under one continuation, by prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    source: str = Field(description="who wrote the prefix: behaviour or student")
    continuation: str = Field(description="who went on: student or teacher")
    length: int = Field(ge=0, description="tokens of the prefix")
    right: list[int] = Field(description="of each prompt")
    graded: list[int] = Field(description="of each prompt")


class Probe(BaseModel):
    """What a probe found."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    behaviour: str = Field(description="the policy, as the configuration names it")
    successes: list[Success]

    def gain(self, continuation: str, length: int, resamples: int = 2000) -> tuple[float, float, float]:
        """Relative gain in success of the behaviour policy's prefixes over the student's: (mean, low, high).

        The interval is a 95% bootstrap's over the prompts, which both kinds share; NaN where the student never
        succeeds.
        """
        of = {s.source: s for s in self.successes if (s.continuation, s.length) == (continuation, length)}
        rates = [np.stack([of[source].right, of[source].graded]).astype(np.float64) for source in SOURCES]
        prompts = rates[0].shape[1]
        counts_RP = np.random.default_rng(0).multinomial(prompts, np.full(prompts, 1 / prompts), resamples)
        weights_RP = np.concatenate([np.ones((1, prompts)), counts_RP])
        with np.errstate(divide="ignore", invalid="ignore"):
            behaviour_R, student_R = ((weights_RP @ r[0]) / (weights_RP @ r[1]) for r in rates)
            gains_R = behaviour_R / student_R - 1
        low, high = np.quantile(gains_R[1:], [0.025, 0.975])
        return float(gains_R[0]), float(low), float(high)


def read_probe(run_folder: Path) -> Probe | None:
    """What a run's folder has of a probe.

    Raises:
        RecordsBroken: the file is damaged.
    """
    path = run_folder / PROBE / _RESULT
    try:
        return Probe.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise RecordsBroken(f"{path}: {error.errors()[0]['msg']}; remove it to go on without it") from None


def probe(config: RunConfig, lengths: Sequence[int], steps: int, note: Callable[[str], None]) -> Probe:
    """Draw, cut, go on, grade.

    Args:
        config: of the run; its policy at step 0 is probed.
        lengths: of the prefixes, in tokens.
        steps: how many steps' worth of prompts are used.
        note: called with a line for people.

    Raises:
        NothingToProbe: see there.
        FolderInUse: the run is being trained.
    """
    blend, temperature = config.sampling(0)
    if blend.rule is Rule.STUDENT and temperature == 1:
        raise NothingToProbe("rollouts.behaviour: got the student itself; allowed: a policy that differs at step 0")
    pair = Pair.load(config.models.student, config.models.teacher)
    with claimed(config.run_folder), Leader(config, pair, note) as leader:
        leader.servers.publish_folder(config.models.student, leader.weight_version(0))
        prober = _Prober(config, leader, steps)
        successes = list(prober.successes(sorted(lengths), {"behaviour": blend, "student": _plain(Rule.STUDENT)}))
    found = Probe(behaviour=json.dumps(config.rollouts.behaviour.model_dump(mode="json")), successes=successes)
    write_file(config.run_folder / PROBE / _RESULT, found.model_dump_json(indent=1) + "\n")
    return found


class _Prober:
    def __init__(self, config: RunConfig, leader: Leader, steps: int) -> None:
        self._config, self._leader = config, leader
        self._prompts = [prompt for step in range(steps) for prompt in leader.prompts.step(step)]
        self._golds = {p.position: leader.problems[p.problem].answer for p in self._prompts}
        if all(gold is None for gold in self._golds.values()):
            raise NothingToProbe("data: got problems without answers; allowed: some with (data.answer_field)")

    def successes(self, lengths: Sequence[int], sources: dict[str, BlendParams]) -> Iterator[Success]:
        temperature = self._config.sampling(0)[1]
        for source, blend in sources.items():
            warmth = temperature if source == "behaviour" else 1.0
            whole = self._draw(source, blend, warmth, {}, 0)
            for length in lengths:
                cut = {r.key: r for r in whole if len(r) > length or r.finish != "stop"}
                done = [r for r in whole if r.key not in cut]
                for name, rule in CONTINUATIONS.items():
                    continued = self._draw(f"{source}-{name}-{length}", _plain(rule), 1.0, cut, length)
                    yield self._graded(source, name, length, done + [_joined(cut[r.key], r, length) for r in continued])

    def _draw(
        self, name: str, blend: BlendParams, temperature: float, prefixes: dict[RolloutKey, Rollout], length: int
    ) -> list[Rollout]:
        """Responses to all prompts, or to the prefixes alone where there are any or ``length`` is not 0."""
        config, version = self._config, self._leader.weight_version(0)
        requests = []
        for prompt in self._prompts:
            for sample in range(config.rollouts.samples_per_prompt):
                key = RolloutKey(0, prompt.position, sample)
                if length and key not in prefixes:
                    continue
                start = tuple(prefixes[key].token_ids_T[:length].tolist()) if length else ()
                room = config.rollouts.max_new_tokens - len(start)
                seed = key.seed(config.seed if not length else ~config.seed)
                ids = prompt.token_ids + start
                requests.append(RolloutRequest(key, ids, blend, temperature, room, seed, version))
        about = json.dumps(
            [[r.prompt_ids, r.blend.to_wire(), r.temperature, r.max_new_tokens, r.seed] for r in requests]
        )
        digest = hashlib.sha256((config.models.student + about).encode()).hexdigest()[:12]
        with StepJournal(config.run_folder / PROBE / f"{name}-{digest}.rollouts") as journal:
            self._leader.note(f"{name}: {len(requests)} responses, {len(journal.entries)} of them drawn before")
            if len(journal.entries) < len(requests):
                self._leader.servers.collect(requests, journal, config.rollouts.max_refused_share)
            return journal.rollouts()

    def _graded(self, source: str, continuation: str, length: int, rollouts: Sequence[Rollout]) -> Success:
        places = {prompt.position: place for place, prompt in enumerate(self._prompts)}
        right, graded = [0] * len(places), [0] * len(places)
        grades = self._leader.grade(rollouts, [self._golds[r.key.prompt] for r in rollouts])
        for rollout, grade in zip(rollouts, grades, strict=True):
            if grade is not None and grade.verdict is not Verdict.FAULT:
                graded[places[rollout.key.prompt]] += 1
                right[places[rollout.key.prompt]] += grade.verdict is Verdict.RIGHT
        return Success(source=source, continuation=continuation, length=length, right=right, graded=graded)


def _plain(rule: Rule) -> BlendParams:
    return BlendParams(rule, returned=Return.TOKENS)


def _joined(prefix: Rollout, continuation: Rollout, length: int) -> Rollout:
    ids = np.concatenate([prefix.token_ids_T[:length], continuation.token_ids_T])
    return dataclasses.replace(continuation, token_ids_T=ids)

"""The rollouts of every step, drawn from the behaviour policy of that step."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from trainer.config.run import RunConfig
from trainer.grading.grader import Grade
from trainer.learner.processes import Processes
from trainer.learner.update_check import EnginesDisagree
from trainer.records import Row, fields
from trainer.rollouts.journal import StepJournal, set_aside, step_path
from trainer.rollouts.rollout import Refusal, Rollout, RolloutKey, RolloutRequest, refusals_told
from trainer.rollouts.teacher_check import BrokenTeacher, check_teacher
from trainer.run.leader import Leader
from trainer.run.measurements import of_rollouts, staleness
from trainer.run.phases import Phases
from trainer.run.weight_sync import WeightSync


def journal_path(run_folder: Path, step: int) -> Path:
    """Where the rollouts of step k are kept."""
    return step_path(run_folder / "journal", step)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The rollouts of a step.

    Attributes:
        rollouts: in the order of their keys.
        refused: those that could not be had.
        new: those that this process drew; the others were in the journal.
        seconds: that drawing them took.
    """

    rollouts: list[Rollout]
    refused: list[Refusal]
    new: list[Rollout]
    seconds: float


class RolloutSource:
    """Draws the rollouts of a step, each once, into the step's journal; every process calls every method.

    What step k gets depends on k, the seed and the student that draws alone. That student has made k updates, or with
    ``rollouts.max_staleness`` s as many as k - s: then its rollouts are drawn while the steps before train.

    Args:
        config: the run.
        weight_sync: brings the servers to the student that draws.
        processes: of the run.
        leader: on the process that leads, None elsewhere.
        phases: of the run.
    """

    def __init__(
        self, config: RunConfig, weight_sync: WeightSync, processes: Processes, leader: Leader | None, phases: Phases
    ) -> None:
        self._config, self._weight_sync = config, weight_sync
        self._processes, self._leader, self._phases = processes, leader, phases
        self._begun: dict[int, Future[Drawn]] = {}
        self._next = 0
        self._drawn = Drawn([], [], [], 0.0)

    def begin(self, step: int) -> None:
        """Have the student after ``step`` updates draw what was not begun yet, up to step + ``rollouts.max_staleness``.

        Without staleness the servers hold it when this returns, and `collect` draws. Otherwise both happen beside what
        the caller goes on with, one step after the other. A step whose journal holds all its rollouts needs no server.

        Raises:
            ServersGone, Refused, OtherPair, ...: as `WeightSync.publish`, without staleness; else by `collect`.
        """
        staleness = self._config.rollouts.max_staleness
        # On a GPU the training's own collectives must not meet a broadcast of another thread.
        beside = self._config.push.route != "distributed"
        first, self._next = max(self._next, step), min(step + staleness + 1, self._config.steps)
        for later in range(first, self._next):
            if self._is_journalled(later):
                continue
            self._weight_sync.publish(step, beside=staleness > 0 and beside)
            if staleness > 0 and self._leader is not None:
                draw = partial(self._draw, later, step, self._leader)
                self._begun[later] = self._leader.beside.submit(draw)

    def collect(self, step: int) -> list[Rollout]:
        """The rollouts of step k in the order of their keys, from the journal where it has them.

        Returns:
            On the leader; none if all were refused. Others get an empty list.

        Raises:
            CollectionFailed, ServersGone, OtherPolicy, OSError: as `Collector.collect`.
            BrokenTeacher: by what the rollouts say; they are set aside.
        """
        with self._phases("rollout"), self._processes.together(), self.set_aside_if_untrustworthy(step):
            if self._leader is not None:
                begun = self._begun.pop(step, None)
                self._drawn = self._draw(step, step, self._leader) if begun is None else begun.result()
        return self._drawn.rollouts

    @contextlib.contextmanager
    def set_aside_if_untrustworthy(self, step: int) -> Iterator[None]:
        """If it turns out in the block that the rollouts of step k cannot be trusted, set them aside, and say so.

        So are those of later steps: they come from the same servers.
        """
        try:
            yield
        except (BrokenTeacher, EnginesDisagree) as error:
            raise type(error)(f"{error}; {self._set_aside(step)}") from None

    def measure(self, step: int, rollouts: Sequence[Rollout]) -> Row:
        """What the rollouts of step k were like, the last that were collected; the leader's row, empty elsewhere."""
        if self._leader is None:
            return {}
        blend, temperature = self._config.sampling(step)
        row: Row = {
            fields.EPSILON: blend.epsilon,
            fields.TEMPERATURE: temperature,
            fields.REFUSED: float(len(self._drawn.refused)),
            fields.PROMPTS_LEFT_OUT: float(self._leader.prompts.left_out.total()),
        }
        if self._config.rollouts.max_staleness > 0:
            row |= staleness(step, rollouts) | {fields.ROLLOUT_SECONDS: self._drawn.seconds}
        grades = self._grades(step, rollouts, self._leader)
        return row | of_rollouts(rollouts, grades, self._drawn.new, self._drawn.seconds)

    def _is_journalled(self, step: int) -> bool:
        return self._processes.share(self._leader is not None and self._has_all(step, self._leader))

    def _draw(self, step: int, updates: int, leader: Leader) -> Drawn:
        """Draw what is missing of step k, from the student after so many updates."""
        started = time.monotonic()
        with self._journal(step) as journal:
            requests = self._requests(step, updates, leader)
            before = frozenset(journal.entries)
            if len(journal.entries) < len(requests):
                leader.servers.collect(requests, journal, self._config.rollouts.max_refused_share)
            rollouts, refused = journal.rollouts(), journal.refusals()
        if refused:
            leader.note(f"step {step}: {refusals_told(refused, len(requests))}")
        if rollouts:
            self._check_teacher(step, rollouts, leader)
        new = [rollout for rollout in rollouts if rollout.key not in before]
        return Drawn(rollouts, refused, new, time.monotonic() - started)

    def _requests(self, step: int, updates: int, leader: Leader) -> list[RolloutRequest]:
        blend, temperature = self._config.sampling(step)
        rollouts, version = self._config.rollouts, leader.weight_version(updates)
        requests = []
        for prompt in leader.prompts.step(step):
            for sample in range(rollouts.samples_per_prompt):
                key = RolloutKey(step, prompt.position, sample)
                seed, limit = key.seed(self._config.seed), rollouts.max_new_tokens
                requests.append(RolloutRequest(key, prompt.token_ids, blend, temperature, limit, seed, version))
        return requests

    def _grades(self, step: int, rollouts: Sequence[Rollout], leader: Leader) -> list[Grade | None]:
        problems = {prompt.position: leader.problems[prompt.problem] for prompt in leader.prompts.step(step)}
        return leader.grade(rollouts, [problems[rollout.key.prompt].answer for rollout in rollouts])

    def _check_teacher(self, step: int, rollouts: Sequence[Rollout], leader: Leader) -> None:
        allowed = self._config.server.allow_broken_teacher
        try:
            check_teacher(rollouts, leader.pair.vocab_size, allowed, lambda text: leader.note(f"step {step}: {text}"))
        except BrokenTeacher as error:
            raise BrokenTeacher(f"step {step}: {error}") from None

    def _journal(self, step: int) -> StepJournal:
        return StepJournal(journal_path(self._config.run_folder, step))

    def _has_all(self, step: int, leader: Leader) -> bool:
        with self._journal(step) as journal:
            return len(journal.entries) == len(self._requests(step, step, leader))

    def _set_aside(self, step: int) -> str:
        """Keep rollouts that cannot be trusted out of the next process's way; says what will happen."""
        kept = ""
        if self._leader is not None:
            self._leader.beside.stop()
            paths = [journal_path(self._config.run_folder, later) for later in range(step, max(self._next, step + 1))]
            names = ", ".join(set_aside(path).name for path in paths if path.exists())
            kept = f" are kept in {names} and"
        return f"its rollouts{kept} will be drawn anew, from servers that proved their weights"

"""The rollouts of every step, drawn from the behaviour policy of that step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
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
from trainer.run.measurements import of_rollouts
from trainer.run.phases import Phases


def journal_path(run_folder: Path, step: int) -> Path:
    """Where the rollouts of step k are kept."""
    return step_path(run_folder / "journal", step)


class RolloutSource:
    """Draws the rollouts of a step, each once, into the step's journal; every process calls every method.

    What step k gets depends on k, the seed and the published student alone, and its journal is its own: a source can
    be asked for a step while the learner is still at an earlier one.

    Args:
        config: the run.
        processes: of the run.
        leader: on the process that leads, None elsewhere.
        phases: of the run.
    """

    def __init__(self, config: RunConfig, processes: Processes, leader: Leader | None, phases: Phases) -> None:
        self._config, self._processes, self._leader, self._phases = config, processes, leader, phases
        self._refused: list[Refusal] = []
        self._drawn_before: frozenset[RolloutKey] = frozenset()

    def is_journalled(self, step: int) -> bool:
        """Whether the journal holds every rollout of step k already: no server is needed for them."""
        return self._processes.share(self._leader is not None and self._has_all(step, self._leader))

    def collect(self, step: int) -> list[Rollout]:
        """The rollouts of step k in the order of their keys, from the journal where it has them.

        Returns:
            On the leader; none if all were refused. Others get an empty list.

        Raises:
            CollectionFailed, ServersGone, OtherPolicy, OSError: as `Collector.collect`.
            BrokenTeacher: by what the rollouts say; they are set aside.
        """
        rollouts: list[Rollout] = []
        with self._phases("rollout"), self._processes.together(), self.set_aside_if_untrustworthy(step):
            if self._leader is not None:
                rollouts = self._collect(step, self._leader)
                if rollouts:
                    self._check_teacher(step, rollouts, self._leader)
        return rollouts

    @contextlib.contextmanager
    def set_aside_if_untrustworthy(self, step: int) -> Iterator[None]:
        """If it turns out in the block that the rollouts of step k cannot be trusted, set them aside, and say so."""
        try:
            yield
        except (BrokenTeacher, EnginesDisagree) as error:
            raise type(error)(f"{error}; {self._set_aside(step)}") from None

    def measure(self, step: int, rollouts: Sequence[Rollout]) -> Row:
        """What the rollouts of step k were like, the last that were collected; the leader's row, empty elsewhere."""
        if self._leader is None:
            return {}
        blend, temperature = self._config.sampling(step)
        return {
            fields.EPSILON: blend.epsilon,
            fields.TEMPERATURE: temperature,
            fields.REFUSED: float(len(self._refused)),
            fields.PROMPTS_LEFT_OUT: float(self._leader.prompts.left_out.total()),
            **of_rollouts(
                rollouts,
                self._grades(step, rollouts, self._leader),
                [rollout for rollout in rollouts if rollout.key not in self._drawn_before],
                self._phases.seconds["rollout"],
            ),
        }

    def _collect(self, step: int, leader: Leader) -> list[Rollout]:
        with self._journal(step) as journal:
            requests = self._requests(step, leader)
            self._drawn_before = frozenset(journal.entries)
            if len(journal.entries) < len(requests):
                leader.servers.collect(requests, journal, self._config.rollouts.max_refused_share)
            self._refused = journal.refusals()
            if self._refused:
                leader.note(f"step {step}: {refusals_told(self._refused, len(requests))}")
            return journal.rollouts()

    def _requests(self, step: int, leader: Leader) -> list[RolloutRequest]:
        blend, temperature = self._config.sampling(step)
        rollouts, version = self._config.rollouts, leader.weight_version(step)
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
            return len(journal.entries) == len(self._requests(step, leader))

    def _set_aside(self, step: int) -> str:
        """Keep rollouts that cannot be trusted out of the next process's way; says what will happen."""
        kept = ""
        if self._leader is not None:
            kept = f" are kept in {set_aside(journal_path(self._config.run_folder, step)).name} and"
        return f"its rollouts{kept} will be drawn anew, from servers that proved their weights"

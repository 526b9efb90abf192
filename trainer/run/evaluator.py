"""pass@1 of the student on the benchmarks (App. A.1)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from trainer.config.run import RunConfig
from trainer.learner.processes import Processes
from trainer.records import Row, fields, write_scores
from trainer.run.benchmarks import evaluate_benchmark
from trainer.run.evaluations_beside import EvaluationsBeside
from trainer.run.leader import Leader
from trainer.run.phases import Phases
from trainer.run.weight_sync import WeightSync

StudentOf = Callable[[int], str | Path]
"""Where the checkpoint is of the student after so many updates."""


class Evaluator:
    """Evaluates at the steps that the configuration names; every process calls every method.

    Either the training waits, and all servers draw; or, with ``evaluation.beside_training``, one draws beside it.

    Args:
        config: the run.
        weight_sync: brings the servers to the student that is evaluated.
        processes: of the run.
        leader: on the process that leads, None elsewhere.
        phases: of the run.
        beside_leader: on the process that leads, where a server is kept for evaluations; else None.
        student_of: checkpoints of the run.
    """

    def __init__(
        self,
        config: RunConfig,
        weight_sync: WeightSync,
        processes: Processes,
        leader: Leader | None,
        phases: Phases,
        *,
        beside_leader: Leader | None,
        student_of: StudentOf,
    ) -> None:
        self._config, self._weight_sync = config, weight_sync
        self._processes, self._leader, self._phases = processes, leader, phases
        self._student_of = student_of
        self._late: list[tuple[int, Row]] = []
        self._beside = None if beside_leader is None else _beside(beside_leader, student_of)

    def evaluate_if_due(self, step: int) -> Row:
        """Each benchmark's pass@1 after ``step`` updates; empty where none is due, and on all but the leader.

        Beside the training it is begun: empty then, too, and among the `late` ones when it has ended. The one before is
        waited for. It is of the checkpoint of its step, which is there.

        Raises:
            Exception: what the one before raised.
        """
        if not self._config.evaluation.is_due(step, self._config.steps):
            return {}
        if self._config.evaluates_beside:
            self._begin(step)
            return {}
        self._weight_sync.publish(step)
        with self._phases("evaluate"), self._processes.together():
            if self._leader is not None:
                self._leader.beside.finish()
                return _evaluated(self._leader, step)
        return {}

    def evaluate_late(self, step: int) -> None:
        """Evaluate the checkpoint of an earlier step, before the servers are asked for anything else."""
        if self._config.evaluates_beside:
            return self._begin(step)
        with self._phases("evaluate"), self._processes.together():
            if self._leader is not None:
                _push(self._leader, self._student_of, step)
                self._late.append((step, _evaluated(self._leader, step)))

    def late(self, *, wait: bool = False) -> list[tuple[int, Row]]:
        """Evaluations of earlier steps that ended since the last call, with their steps; none on all but the leader.

        Args:
            wait: until none is under way.

        Raises:
            Exception: what one of them raised.
        """
        if self._config.evaluates_beside:
            phase = self._phases("evaluate") if wait else contextlib.nullcontext()
            with phase, self._processes.together():
                if self._beside is not None:
                    self._late += self._beside.take(wait=wait)
        late, self._late = self._late, []
        return late

    def _begin(self, step: int) -> None:
        with self._phases("evaluate"), self._processes.together():
            if self._beside is not None:
                self._beside.begin(step)


def _beside(leader: Leader, student_of: StudentOf) -> EvaluationsBeside:
    return EvaluationsBeside(
        leader.beside,
        partial(_push, leader, student_of),
        partial(_evaluated, leader),
        leader.note,
        # On a GPU the training's own collectives must not meet a broadcast of another thread.
        waits_for_push=leader.config.push.route == "distributed",
    )


def _push(leader: Leader, student_of: StudentOf, step: int) -> None:
    leader.servers.publish_folder(student_of(step), leader.weight_version(step))


def _evaluated(leader: Leader, step: int) -> Row:
    """Each benchmark's pass@1 of the student that the servers hold, after ``step`` updates; keeps problems' scores."""
    row: Row = {}
    for benchmark in leader.config.evaluation.benchmarks:
        measured = evaluate_benchmark(leader, benchmark, step)
        write_scores(leader.config.run_folder, measured.scores)
        name, score = benchmark.name, measured.score
        row |= {fields.PASS_AT_1.of(name): score.mean, fields.PASS_AT_1_LOW.of(name): score.low}
        row |= {fields.PASS_AT_1_HIGH.of(name): score.high, fields.FAULTS.of(name): float(measured.faults)}
    return row

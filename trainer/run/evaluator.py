"""pass@1 of the student on the benchmarks (App. A.1)."""

from __future__ import annotations

from trainer.config.run import RunConfig
from trainer.learner.processes import Processes
from trainer.records import Row, fields, write_scores
from trainer.run.benchmarks import evaluate_benchmark
from trainer.run.leader import Leader
from trainer.run.phases import Phases
from trainer.run.weight_sync import WeightSync


class Evaluator:
    """Evaluates at the steps that the configuration names; every process calls every method.

    Args:
        config: the run.
        weight_sync: brings the servers to the student that is evaluated.
        processes: of the run.
        leader: on the process that leads, None elsewhere.
        phases: of the run.
    """

    def __init__(
        self, config: RunConfig, weight_sync: WeightSync, processes: Processes, leader: Leader | None, phases: Phases
    ) -> None:
        self._config, self._weight_sync = config, weight_sync
        self._processes, self._leader, self._phases = processes, leader, phases

    def evaluate_if_due(self, step: int) -> Row:
        """Each benchmark's pass@1 after ``step`` updates; empty where none is due, and on all but the leader."""
        if not self._config.evaluation.is_due(step, self._config.steps):
            return {}
        self._weight_sync.publish(step)
        row: Row = {}
        with self._phases("evaluate"), self._processes.together():
            if self._leader is not None:
                self._leader.beside.finish()
                for benchmark in self._config.evaluation.benchmarks:
                    measured = evaluate_benchmark(self._leader, benchmark, step)
                    write_scores(self._config.run_folder, measured.scores)
                    name, score = benchmark.name, measured.score
                    row |= {fields.PASS_AT_1.of(name): score.mean, fields.PASS_AT_1_LOW.of(name): score.low}
                    row |= {fields.PASS_AT_1_HIGH.of(name): score.high, fields.FAULTS.of(name): float(measured.faults)}
        return row

"""pass@1 of the student on the benchmarks (App. A.1)."""

from __future__ import annotations

from trainer.config.run import Benchmark, RunConfig
from trainer.grading.grader import Verdict
from trainer.learner.processes import Processes
from trainer.records import EVALUATIONS, Row
from trainer.rollouts.journal import StepJournal
from trainer.rollouts.rollout import refusals_told
from trainer.run.leader import Leader
from trainer.run.phases import Phases
from trainer.run.weight_sync import WeightSync
from trainer.statistics import PassAt1, pass_at_1


class Evaluator:
    """Evaluates at the steps that the configuration names; every process calls every method.

    Args:
        config: the run.
        weights: brings the servers to the student that is evaluated.
        processes: of the run.
        leader: on the process that leads, None elsewhere.
        phases: of the run.
    """

    def __init__(
        self, config: RunConfig, weights: WeightSync, processes: Processes, leader: Leader | None, phases: Phases
    ) -> None:
        self._config, self._weights = config, weights
        self._processes, self._leader, self._phases = processes, leader, phases

    def evaluate(self, step: int) -> Row:
        """Each benchmark's pass@1 after ``step`` updates; empty where none is due, and on all but the leader."""
        if not self._config.evaluation.is_due(step, self._config.steps):
            return {}
        self._weights.publish(step)
        row: Row = {}
        with self._phases("evaluate"), self._processes.together():
            if self._leader is not None:
                for benchmark in self._config.evaluation.benchmarks:
                    score, faults = evaluate_benchmark(self._leader, benchmark, step)
                    name = f"eval/{benchmark.name}"
                    row |= {f"{name}/pass_at_1": score.mean, f"{name}/pass_at_1_low": score.low}
                    row |= {f"{name}/pass_at_1_high": score.high, f"{name}/faults": float(faults)}
        return row


def evaluate_benchmark(leader: Leader, benchmark: Benchmark, step: int) -> tuple[PassAt1, int]:
    """pass@1 of the student that the servers hold, which has made ``step`` updates.

    Responses that are there already, to the same problems with the same settings, are not drawn again.

    Returns:
        pass@1, and how many responses could not be had (no room in the servers' context, refused) or graded: they
        count in no mean.
    """
    config, rendered = leader.config, leader.benchmarks[benchmark.name]
    room = leader.servers.limits().room(config.evaluation.max_new_tokens)
    rendered.say_too_long(room, leader.note)
    requests = rendered.requests(config, step, leader.weight_version(step), room)
    folder = config.run_folder / EVALUATIONS / f"step-{step:06d}"
    with StepJournal(folder / rendered.file_name(config)) as journal:
        journal.forget_refusals()
        leader.servers.collect(requests, journal, max_refused_share=1.0)
        wanted = {request.key for request in requests}
        responses = [rollout for rollout in journal.rollouts() if rollout.key in wanted]
        refused = [refusal for refusal in journal.refusals() if refusal.key in wanted]
    if refused:
        leader.note(f"{benchmark.name}: {refusals_told(refused, len(requests))}")
    grades = leader.grade(responses, [rendered.problems[r.key.prompt].answer for r in responses])
    right: dict[int, list[bool]] = {}
    faults = rendered.wanted - len(responses)
    for response, grade in zip(responses, grades, strict=True):
        if grade is None or grade.verdict is Verdict.FAULT:
            faults += 1
        else:
            right.setdefault(response.key.prompt, []).append(grade.verdict is Verdict.RIGHT)
    return pass_at_1([sum(verdicts) / len(verdicts) for verdicts in right.values()]), faults

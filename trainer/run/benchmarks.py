"""pass@1 of the student that the servers hold, on one benchmark (App. A.1). Loads without DeepSpeed."""

from __future__ import annotations

import dataclasses

import numpy as np

from trainer.config.run import Benchmark
from trainer.grading.grader import Verdict
from trainer.records import EVALUATIONS, ProblemScores
from trainer.rollouts.journal import StepJournal
from trainer.rollouts.rollout import refusals_told
from trainer.run.leader import Leader
from trainer.statistics import PassAt1, pass_at_1


@dataclasses.dataclass(frozen=True)
class Measured:
    """What an evaluation found.

    Attributes:
        score: pass@1 over the problems with a graded answer.
        faults: responses that could not be had (no room in the servers' context, refused) or graded; they count in no
            mean.
        scores: of each problem.
    """

    score: PassAt1
    faults: int
    scores: ProblemScores


def evaluate_benchmark(leader: Leader, benchmark: Benchmark, step: int) -> Measured:
    """pass@1 of the student that the servers hold, which has made ``step`` updates.

    Responses that are there already, to the same problems with the same settings, are not drawn again.
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
    right, graded = [0] * len(rendered.problems), [0] * len(rendered.problems)
    for response, grade in zip(responses, grades, strict=True):
        if grade is not None and grade.verdict is not Verdict.FAULT:
            graded[response.key.prompt] += 1
            right[response.key.prompt] += grade.verdict is Verdict.RIGHT
    scores = ProblemScores(
        benchmark=benchmark.name, step=step, problems=rendered.problems_digest(), right=right, graded=graded
    )
    shares = scores.shares()
    return Measured(pass_at_1(shares[np.isfinite(shares)].tolist()), rendered.wanted - sum(graded), scores)

"""pass@1 of the student that the servers hold, on one benchmark (App. A.1). Loads without DeepSpeed."""

from __future__ import annotations

from trainer.config.run import Benchmark
from trainer.grading.grader import Verdict
from trainer.records import EVALUATIONS
from trainer.rollouts.journal import StepJournal
from trainer.rollouts.rollout import refusals_told
from trainer.run.leader import Leader
from trainer.statistics import PassAt1, pass_at_1


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

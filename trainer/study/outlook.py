"""What a study will run and how long it will take, before it is begun or while it goes on."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.study.pace import Pace
from trainer.study.plan import Plan
from trainer.text import duration


def describe(plan: Plan) -> Iterator[str]:
    """The plan, line by line."""
    for member in plan.members:
        names = ", ".join(dict.fromkeys(run.name for run in member.runs.values()))
        yield f"{member.title}{f', {member.setting}' * bool(member.setting)}: {names}"
    before = [run.name for run in plan.runs if any(other.after == run.name for other in plan.runs)]
    if before:
        yield f"supervised before: {', '.join(before)}"
    updates = sum(run.config.steps for run in plan.runs)
    responses = sum(
        run.config.steps * run.config.rollouts.prompts_per_step * run.config.rollouts.samples_per_prompt
        for run in plan.runs
    )
    evaluations = sum(
        run.config.evaluation.is_due(step, run.config.steps)
        for run in plan.runs
        for step in range(run.config.steps + 1)
    )
    yield f"{len(plan.runs)} runs, {updates:,} updates from {responses:,} responses, {evaluations} evaluations"
    pace = Pace.of(plan.runs)
    if pace.left is None:
        yield "time: not known before the first updates; given again later, this command tells"
    else:
        rate = pace.seconds / pace.made
        left = duration(pace.left)
        yield f"time: {rate:.1f} s an update as measured over {pace.made:,}; about {left} left for one worker"

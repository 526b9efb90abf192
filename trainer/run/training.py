"""On-policy distillation with trust-region behaviour blending: the run, from wherever the last process was stopped.

A checkpoint holds the run after some updates. The rollouts of later steps are in journals, so a run that was killed
makes those updates again from the same rollouts, draws what is missing of the step it was at, and goes on: every prompt
is trained on once, in the order that the seed gives. An update is in its checkpoint before it is evaluated; the row of
an update whose evaluation was cut short is in the checkpoint too.
"""

from __future__ import annotations

from functools import partial

from sglang_trb.pair.pair import Pair
from trainer.config.run import RunConfig
from trainer.learner.learner import Learner
from trainer.learner.processes import Processes
from trainer.run.evaluator import Evaluator
from trainer.run.leader import Leader
from trainer.run.rollout_source import RolloutSource
from trainer.run.state import RunState
from trainer.run.weight_sync import WeightSync


def train(config: RunConfig, *, quiet: bool = False) -> None:
    """Run, or go on with, a training; every process of the run calls it."""
    with Processes() as processes, RunState(config, processes, quiet=quiet) as run:
        pair = Pair.load(config.models.student, config.models.teacher)
        learner = Learner(config, pair, processes, run.note)
        run.resume(learner)
        if run.is_complete():
            return
        with processes.on_leader(partial(Leader, config, pair, run.note, run.rollout_progress)) as leader:
            run.begin(leader)
            behaviour = RolloutSource(config, processes, leader, run.phases)
            student = WeightSync(learner, processes, leader, run.phases)
            evaluator = Evaluator(config, student, processes, leader, run.phases)

            if run.unrecorded is not None:  # the untrained student, or the one whose evaluation was cut short
                run.record(run.step, run.unrecorded, evaluator.evaluate(run.step))
            for k in range(run.step, config.steps):
                if not behaviour.has(k):
                    student.publish(k)  # the servers sample from the student after k updates
                rollouts = behaviour.collect(k)  # y ~ mu, with KL(mu || p) <= epsilon_k at every prefix (Eq. 1 to 3)
                with run.phases("train"), behaviour.trusted(k):  # rollouts that prove wrong are set aside
                    update = learner.update(rollouts, k)  # by the reverse KL to the teacher, prefix by prefix
                row = learner.measure(update) | behaviour.measure(k, rollouts)
                run.checkpoint(k + 1, learner, row)
                run.record(k + 1, row, evaluator.evaluate(k + 1))
            run.report()

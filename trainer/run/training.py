"""On-policy distillation with trust-region behaviour blending: the run, from wherever the last process was stopped.

On restart: load the newest checkpoint, make the later updates again from the rollouts in their journals, draw what is
missing of the step that was cut short, go on. So every prompt is trained on once, in the order that the seed gives. A
checkpoint that is due is written before the evaluation, with the metrics of its update.
"""

from __future__ import annotations

from functools import partial

from sglang_trb.pair.pair import Pair
from trainer.config.run import RunConfig
from trainer.learner.learner import Learner
from trainer.learner.processes import Processes
from trainer.run.evaluations_beside import drawing, evaluation_leader
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
        with (
            processes.on_leader(partial(Leader, drawing(config), pair, run.note, run.rollout_progress)) as leader,
            evaluation_leader(config, pair, processes, run.note) as beside_leader,
        ):
            run.begin(leader)
            weight_sync = WeightSync(learner, processes, leader, run.phases)
            rollout_source = RolloutSource(config, weight_sync, processes, leader, run.phases)
            evaluator = Evaluator(
                config, weight_sync, processes, leader, run.phases,
                beside_leader=beside_leader, student_of=run.student_of,
            )  # fmt: skip

            for step in run.pending_evaluations:  # were made beside the training, and cut short
                evaluator.evaluate_late(step)
                run.record_late(evaluator.late())
            if run.pending_row is not None:  # of the untrained student, or of an update whose evaluation was cut short
                run.record(run.step, run.pending_row, evaluator.evaluate_if_due(run.step))
            for k in range(run.step, config.steps):
                rollout_source.begin(k)  # the student after k updates draws: step k, or up to max_staleness steps ahead
                # y ~ mu; of trb, the student p tilted towards the teacher q with KL(mu || p) <= epsilon_k (Eq. 1 to 3)
                rollouts = rollout_source.collect(k)
                with run.phases("train"), rollout_source.set_aside_if_untrustworthy(k):
                    update = learner.update(rollouts, k)  # one optimiser step on config.loss; trb: reverse KL(p || q)
                row = learner.measure(update) | rollout_source.measure(k, rollouts)
                run.checkpoint_if_due(k + 1, learner, row)
                run.record(k + 1, row, evaluator.evaluate_if_due(k + 1))
                run.record_late(evaluator.late())
            run.record_late(evaluator.late(wait=True))
            run.report()

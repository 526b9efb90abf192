"""The learner: from a step's rollouts to an update of the student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from sglang_trb.pair.pair import Pair
from trainer.config.run import RunConfig
from trainer.learner.batches import MicroBatch, Weighted, collate, shard_by_tokens, shard_rollouts, weighted
from trainer.learner.engine import TrainEngine, Update
from trainer.learner.past_weights import Sample
from trainer.learner.processes import Processes
from trainer.learner.student import Student
from trainer.learner.update_check import Skips, check_update
from trainer.records import Row, fields
from trainer.rollouts.rollout import Rollout
from trainer.rollouts.versions import updates_of

SAMPLE = 4
"""Rollouts of a process in which the drift of stale ones is measured."""


class Learner:
    """The student while it is trained; every process makes one and calls every method, in the same order.

    Args:
        config: the run.
        pair: as this process read it from the checkpoints.
        processes: of the run.
        note: called with a line for people.

    Attributes:
        skips: updates that were skipped so far.
    """

    def __init__(self, config: RunConfig, pair: Pair, processes: Processes, note: Callable[[str], None]) -> None:
        self._config, self._processes, self._note = config, processes, note
        settings = config.optimisation
        torch.manual_seed(config.seed)
        bf16 = config.models.dtype == "bfloat16"
        student = Student(
            config.models.student,
            pair,
            dtype=torch.bfloat16 if bf16 else torch.float32,
            gradient_checkpointing=settings.gradient_checkpointing,
            chunk=settings.logits_chunk,
        )
        self._engine = TrainEngine(
            student, settings, config.loss, processes, bf16=bf16, max_staleness=config.rollouts.max_staleness
        )
        self.skips = Skips()

    def update(self, rollouts: Sequence[Rollout], step: int) -> Update:
        """One optimiser step on the rollouts of step k.

        Args:
            rollouts: the leader's; what others bring is not looked at.
            step: k.

        Raises:
            EnginesDisagree, NotFinite: as `update_check.check_update`.
        """
        micro_batches, sample, tokens = self._scatter(rollouts)
        update = self._engine.update(micro_batches, tokens, step, sample)
        self.skips = check_update(update, self.skips, self._config.optimisation, step, self._note)
        return update

    def measure(self, update: Update) -> Row:
        """The last update as it is recorded."""
        return {
            fields.LOSS: update.loss,
            fields.GRAD_NORM: update.grad_norm,
            fields.LEARNING_RATE: update.learning_rate,
            fields.DRIFT_MEAN: update.drift_mean,
            fields.DRIFT_MAX: update.drift_max,
            fields.PADDING: update.padding,
            fields.SKIPPED_UPDATES: float(self.skips.total),
            **{fields.of_loss(name): value for name, value in update.metrics.items()},
        }

    def weights(self) -> dict[str, torch.Tensor] | None:
        """`TrainEngine.weights`: whole, on the leader; None elsewhere."""
        return self._engine.weights()

    def save(self, folder: Path) -> None:
        """`TrainEngine.save`: the state of the optimiser and of what it moves."""
        self._engine.save(folder)

    def load(self, folder: Path) -> None:
        """`TrainEngine.load`: go back to what `save` wrote."""
        self._engine.load(folder)

    def _scatter(self, rollouts: Sequence[Rollout]) -> tuple[list[MicroBatch], Sample | None, int]:
        """This process's micro-batches, a sample of them where they may be stale, and the response tokens of all."""
        shard = self._processes.scatter(self._shards(rollouts) if self._processes.leads else None)
        tokens = self._processes.share(sum(len(rollout) for rollout in rollouts))
        collated = partial(collate, teacher_support=self._config.loss.needs_teacher_support)
        sample = None
        if self._config.rollouts.max_staleness > 0 and tokens > 0:
            drawn_after = self._processes.share(min((updates_of(r.weight_version) for r in rollouts), default=0))
            sample = Sample(drawn_after, collated(shard[0][:SAMPLE]))
        return [collated(part) for part in shard], sample, tokens

    def _shards(self, rollouts: Sequence[Rollout]) -> list[list[list[Weighted]]]:
        """Every process's micro-batches."""
        settings, loss, world = self._config.optimisation, self._config.loss, self._processes.world
        shards = shard_rollouts(weighted(loss, rollouts), world, settings.micro_batch_size, loss.aggregation)
        if settings.micro_batch_tokens is None:
            return shards
        every = [weighted for shard in shards for part in shard for weighted in part]
        return shard_by_tokens(every, world, settings.micro_batch_tokens)

"""The update: DeepSpeed around the student, one optimiser step for the rollouts of one step.

Legend: _N response tokens of a micro-batch, _K the 16 ids of a support.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero import GatheredParameters

from trainer import schedules
from trainer.config.run import Optimisation
from trainer.learner.batches import MicroBatch
from trainer.learner.checkpoints import CheckpointBroken
from trainer.learner.past_weights import PastWeights, Sample
from trainer.learner.processes import Processes
from trainer.learner.student import Student
from trainer.losses import Loss, LossInputs, LossOutput, compute_loss

_TAG = "state"


@dataclasses.dataclass(frozen=True)
class Update:
    """What one optimiser step did, over the whole global batch.

    Attributes:
        loss: aggregated as ``loss.aggregation`` says.
        grad_norm: before clipping.
        learning_rate: that was used.
        drift_mean, drift_max: |trainer - server| student log-probability of the drawn tokens, nats.
        padding: share of the forwards' tokens that belong to no sequence.
        metrics: token-means of what the loss reports.
        applied: false: there was no finite gradient, and weights and optimiser are as they were.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    drift_mean: float
    drift_max: float
    padding: float
    metrics: dict[str, float]
    applied: bool


class _AdamW(torch.optim.AdamW):
    """Leaves a step out while ``overflow`` is set: the attribute in which DeepSpeed looks whether a step was made."""

    overflow = False

    def step(self, closure: Any = None) -> Any:
        return None if self.overflow else super().step(closure)


class TrainEngine:
    """The student while it is trained; every process makes one and calls every method, in the same order.

    Args:
        student: on the CPU; moved to the process's device.
        settings: the update.
        loss: what to minimise.
        processes: this one and the others.
        max_staleness: how many updates old the student may be that drew them.
    """

    def __init__(
        self,
        student: Student,
        settings: Optimisation,
        loss: Loss,
        processes: Processes,
        *,
        bf16: bool,
        max_staleness: int = 0,
    ) -> None:
        self._processes, self._loss, self._settings = processes, loss, settings
        optimizer = _AdamW(
            student.parameters(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=processes.device.type == "cuda",
        )
        factor = partial(schedules.learning_rate_factor, settings.warmup_steps)
        self._engine, _, _, _ = deepspeed.initialize(
            model=student,
            optimizer=optimizer,
            lr_scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, factor),
            config=_deepspeed_config(settings, bf16),
            dist_init_required=False,
        )
        self._past = PastWeights(self._engine.module, max_staleness, self._engine.empty_partition_cache)

    def update(self, shard: Sequence[MicroBatch], total_tokens: int, step: int, sample: Sample | None = None) -> Update:
        """One optimiser step, or none where there is no finite gradient; all processes agree.

        Args:
            shard: this process's micro-batches, as many as every other's.
            total_tokens: response tokens of the global batch, which the weighted loss is a mean over; 0 where no
                rollout could be had.
            step: k, for losses with a schedule.
            sample: of this process's rollouts, where they may be stale. If another student than this one drew them,
                and is still known, drift is measured against it, in the samples of all processes.
        """
        learning_rate = self._engine.get_lr()[0]
        if total_tokens == 0:
            return Update(math.nan, math.nan, learning_rate, math.nan, math.nan, math.nan, {}, applied=False)
        stale_drift_N = self._stale_drift(sample, step)
        self._past.remember(step)
        totals: dict[str, float] = {}
        drift_max = 0.0
        for number, micro_batch in enumerate(shard, 1):
            self._engine.set_gradient_accumulation_boundary(number == len(shard))
            output, drift_N = self._forward(micro_batch.to(self._processes.device), step)
            # DeepSpeed averages over the processes: undone here, so that what is minimised is the sum over all tokens
            # divided by their number.
            self._engine.backward(output.loss_sum * (self._processes.world / total_tokens))
            sums = {"loss": float(output.loss_sum.detach()), "drift": float(drift_N.sum()), **output.metric_sums}
            sums |= {"computed": float(micro_batch.input_ids_BT.numel()), "padding": float(micro_batch.padding)}
            totals = {name: totals.get(name, 0.0) + value for name, value in sums.items()}
            drift_max = max(drift_max, float(drift_N.max()) if len(drift_N) else 0.0)
        norm = self._norm_before_step()
        self._step(norm)
        means = {name: value / total_tokens for name, value in self._processes.sum(totals).items()}
        return Update(
            loss=means.pop("loss"),
            grad_norm=float(norm if norm is not None else self._engine.get_global_grad_norm()),
            learning_rate=learning_rate,
            **self._drifts(means.pop("drift"), drift_max, stale_drift_N),
            padding=means.pop("padding") / means.pop("computed"),
            metrics=means,
            applied=self._engine.was_step_applied(),
        )

    def weights(self) -> dict[str, torch.Tensor] | None:
        """The student's whole weights on the CPU as its checkpoint has them, on the leader; None elsewhere."""
        student = self._engine.module
        whole = {}
        for name, parameter in student.named_weights():
            with GatheredParameters([parameter]) if self._settings.zero_stage == 3 else contextlib.nullcontext():
                if self._processes.leads:
                    whole[name] = parameter.detach().cpu().clone()
        return student.as_saved(whole) if self._processes.leads else None

    def save(self, folder: Path) -> None:
        """Write the state of model, optimiser and scheduler into an existing folder that all processes see.

        Raises:
            OSError: the disk is full or gone; what was written is worth nothing.
        """
        try:
            self._engine.save_checkpoint(str(folder), tag=_TAG, client_state={"torch_random": torch.get_rng_state()})
        except RuntimeError as error:  # how torch reports a write that failed
            raise OSError(f"{folder} could not be written; is the disk full? ({error})") from error

    def load(self, folder: Path) -> None:
        """Go back to what `save` wrote.

        Raises:
            CheckpointBroken: it is not all there any more, or is of another number of processes or ZeRO stage.
        """
        try:
            path, state = self._engine.load_checkpoint(str(folder), tag=_TAG)
        except (OSError, RuntimeError, EOFError, AssertionError, pickle.UnpicklingError) as error:
            raise CheckpointBroken(f"{_cannot_load(folder)}: {error or type(error).__name__}") from error
        if path is None:
            raise CheckpointBroken(f"{_cannot_load(folder)}: files are missing")
        torch.set_rng_state(state["torch_random"])

    def _stale_drift(self, sample: Sample | None, step: int) -> torch.Tensor | None:
        """Against the student that drew the sample; None where that is this one, or not known any more."""
        if sample is None or sample.drawn_after == step or sample.drawn_after not in self._past:
            return None
        with self._past.restored(sample.drawn_after), torch.no_grad():
            return self._forward(sample.batch.to(self._processes.device), step)[1]

    def _drifts(self, mean: float, largest: float, stale_N: torch.Tensor | None) -> dict[str, float]:
        """The update's drift: as measured on the way, or against the past student."""
        if stale_N is None:
            return {"drift_mean": mean, "drift_max": self._processes.max(largest)}
        sums = self._processes.sum({"drift": float(stale_N.sum()), "tokens": float(len(stale_N))})
        largest = self._processes.max(float(stale_N.max()) if len(stale_N) else 0.0)
        return {"drift_mean": sums["drift"] / max(sums["tokens"], 1.0), "drift_max": largest}

    def _forward(self, batch: MicroBatch, step: int) -> tuple[LossOutput, torch.Tensor]:
        ids_NK = [batch.support_ids_NK, batch.token_ids_N[:, None]]
        if batch.teacher_ids_NK is not None:
            ids_NK.append(batch.teacher_ids_NK)
        log_probs, entropy_N = self._engine(
            batch.input_ids_BT,
            batch.prompt_lengths_B,
            batch.response_lengths_B,
            torch.cat(ids_NK, dim=1),
        )
        k = batch.support_ids_NK.shape[1]
        student_NK, token_N, teacher_support = log_probs[:, :k], log_probs[:, k], log_probs[:, k + 1 :]
        inputs = LossInputs(
            student_logprob_NK=student_NK,
            teacher_logprob_NK=batch.teacher_logprob_NK,
            token_logprob_N=token_N,
            student_entropy_N=entropy_N,
            teacher_entropy_N=batch.teacher_entropy_N,
            position_weight_N=batch.position_weight_N,
            teacher_support_student_logprob_NK=None if batch.teacher_ids_NK is None else teacher_support,
            teacher_support_teacher_logprob_NK=batch.teacher_own_logprob_NK,
        )
        return compute_loss(self._loss, inputs, step), drift(token_N.detach().float(), batch.rollout_logprob_N)

    def _step(self, norm: torch.Tensor | None) -> None:
        """ZeRO leaves out a step whose gradient norm is not finite, on all processes; plain stage 0 has to be told.

        What is left out counts as a step, but the learning rate stays where it is.
        """
        if norm is None or norm.isfinite():
            self._engine.step()
            return
        self._engine.optimizer.overflow = True
        self._engine.step()
        self._engine.optimizer.overflow = False

    def _norm_before_step(self) -> torch.Tensor | None:
        """DeepSpeed's plain stage 0 reports no norm: take it from the averaged gradients before they are clipped."""
        if self._settings.zero_stage > 0 or self._engine.bfloat16_enabled():
            return None
        return torch.nn.utils.get_total_norm([p.grad for p in self._engine.module.parameters() if p.grad is not None])


def drift(now_N: torch.Tensor, then_N: torch.Tensor) -> torch.Tensor:
    """How far two log-probabilities are apart; 0 where both are -inf: a token that only the teacher can draw."""
    return torch.where(now_N == then_N, 0.0, (now_N - then_N).abs())


def _cannot_load(folder: Path) -> str:
    return (
        f"{folder} cannot be loaded (remove {folder.parent.name} to go on from an earlier checkpoint; another number "
        "of processes needs another run)"
    )


def _deepspeed_config(settings: Optimisation, bf16: bool) -> dict[str, Any]:
    # By default DeepSpeed sums the gradients of a bfloat16 model in bfloat16, over micro-batches and over processes.
    in_float32 = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    return (in_float32 if bf16 else {}) | {
        "train_micro_batch_size_per_gpu": 1,  # its own counts are of no consequence: `update` says when to step
        "gradient_clipping": settings.max_grad_norm,
        "zero_optimization": {"stage": settings.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": bf16},
        "steps_per_print": 1 << 30,
    }

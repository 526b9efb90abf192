"""From a loss and its inputs to what is minimised and what is logged about it.

Legend: _N response positions, _K the 16 ids of a support.
"""

from __future__ import annotations

import dataclasses

import torch

from trainer.losses.loss import Loss, LossInputs
from trainer.losses.reverse_kl import reverse_kl
from trainer.losses.support import LOG_PROB_FLOOR


@dataclasses.dataclass(frozen=True)
class LossOutput:
    """Sums over the micro-batch's positions: whoever knows the global number of tokens divides.

    Attributes:
        loss_sum: scalar with gradient.
        metric_sums: ``reverse_kl`` (over the support, unnormalised), ``support_mass_student``,
            ``support_mass_teacher``, ``student_entropy``, ``teacher_entropy``, ``floored`` (log-probabilities that
            count as `support.LOG_PROB_FLOOR`, since they are below it).
    """

    loss_sum: torch.Tensor
    metric_sums: dict[str, float]


def compute_loss(loss: Loss, inputs: LossInputs, step: int) -> LossOutput:
    """The loss summed over the positions, each times its weight.

    Args:
        loss: which one.
        inputs: of one micro-batch, any number of positions.
        step: k, for losses with a schedule.

    Returns:
        Sums, so that any split of a batch adds up to the same. Finite, save for ``sft`` on a token of probability 0.
    """
    loss_N = loss.per_position(inputs, step)
    return LossOutput((loss_N * inputs.position_weight_N).sum(), _metrics(inputs))


@torch.no_grad()
def _metrics(inputs: LossInputs) -> dict[str, float]:
    log_p_NK, log_q_NK = inputs.student_logprob_NK, inputs.teacher_logprob_NK
    return {
        "reverse_kl": float(reverse_kl(log_p_NK, log_q_NK, "raw").sum()),
        "support_mass_student": float(log_p_NK.exp().sum()),
        "support_mass_teacher": float(log_q_NK.exp().sum()),
        "student_entropy": float(inputs.student_entropy_N.sum()),
        "teacher_entropy": float(inputs.teacher_entropy_N.sum()),
        "floored": float(_floored(inputs)),
    }


def _floored(inputs: LossInputs) -> torch.Tensor:
    """How many log-probabilities count as the floor instead of what they are."""
    count = (inputs.student_logprob_NK.isfinite() & (inputs.teacher_logprob_NK < LOG_PROB_FLOOR)).sum()
    log_p_NK, log_q_NK = inputs.teacher_support_student_logprob_NK, inputs.teacher_support_teacher_logprob_NK
    if log_p_NK is not None and log_q_NK is not None:
        count = count + (log_q_NK.isfinite() & (log_p_NK < LOG_PROB_FLOOR)).sum()
    return count

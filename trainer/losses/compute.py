"""From settings and inputs to the loss and what is logged about it.

Legend: _N response positions, _K the 16 ids of a support.
"""

from __future__ import annotations

import torch

from trainer import schedules
from trainer.losses import divergences
from trainer.losses.settings import JSD, SFT, TIP, EntropyAware, ForwardKL, LossSettings, ReverseKL, Veto
from trainer.losses.types import LossInputs, LossOutput


def compute_loss(settings: LossSettings, inputs: LossInputs, step: int) -> LossOutput:
    """The loss summed over the positions, each times its weight.

    Args:
        settings: which loss.
        inputs: of one micro-batch, any number of positions.
        step: k, for losses with a schedule.

    Returns:
        Sums, so that any split of a batch adds up to the same. Finite, save for ``sft`` on a token of probability 0.
    """
    loss_N = _per_position(settings, inputs, step)
    return LossOutput((loss_N * inputs.position_weight_N).sum(), _metrics(inputs))


def _per_position(settings: LossSettings, inputs: LossInputs, step: int) -> torch.Tensor:
    log_p_NK, log_q_NK = inputs.student_logprob_NK, inputs.teacher_logprob_NK
    match settings:
        case ReverseKL() | TIP():
            return divergences.reverse_kl(log_p_NK, log_q_NK, settings.normalisation)
        case Veto():
            beta = schedules.veto_beta(settings.beta_start, settings.warmup_steps, step)
            return divergences.veto(log_p_NK, log_q_NK, beta, settings.direction)
        case EntropyAware():
            return _entropy_aware(settings, inputs)
        case ForwardKL():
            return divergences.forward_kl(log_p_NK, log_q_NK)
        case JSD():
            return divergences.jsd(log_p_NK, log_q_NK, settings.mixture)
        case SFT():
            return -inputs.token_logprob_N


def _entropy_aware(settings: EntropyAware, inputs: LossInputs) -> torch.Tensor:
    log_p_NK, log_q_NK = inputs.teacher_support_student_logprob_NK, inputs.teacher_support_teacher_logprob_NK
    assert log_p_NK is not None and log_q_NK is not None, "rollouts of entropy_aware bring the teacher's support"
    reverse_N = divergences.reverse_kl(inputs.student_logprob_NK, inputs.teacher_logprob_NK, settings.normalisation)
    uncertain_N = inputs.teacher_entropy_N > settings.entropy_threshold
    forward_N = divergences.forward_kl_on_teacher_support(log_p_NK, log_q_NK)
    return reverse_N + settings.alpha * uncertain_N * forward_N


@torch.no_grad()
def _metrics(inputs: LossInputs) -> dict[str, float]:
    log_p_NK, log_q_NK = inputs.student_logprob_NK, inputs.teacher_logprob_NK
    return {
        "reverse_kl": float(divergences.reverse_kl(log_p_NK, log_q_NK, "raw").sum()),
        "support_mass_student": float(log_p_NK.exp().sum()),
        "support_mass_teacher": float(log_q_NK.exp().sum()),
        "student_entropy": float(inputs.student_entropy_N.sum()),
        "teacher_entropy": float(inputs.teacher_entropy_N.sum()),
        "floored": float(_floored(inputs)),
    }


def _floored(inputs: LossInputs) -> torch.Tensor:
    """How many log-probabilities count as the floor instead of what they are."""
    count = (inputs.student_logprob_NK.isfinite() & (inputs.teacher_logprob_NK < divergences.LOG_PROB_FLOOR)).sum()
    log_p_NK, log_q_NK = inputs.teacher_support_student_logprob_NK, inputs.teacher_support_teacher_logprob_NK
    if log_p_NK is not None and log_q_NK is not None:
        count = count + (log_q_NK.isfinite() & (log_p_NK < divergences.LOG_PROB_FLOOR)).sum()
    return count

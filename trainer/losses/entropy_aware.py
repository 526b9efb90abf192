"""Entropy-aware OPD: reverse KL, and forward KL where the teacher is uncertain.

Legend: _N response positions, _K the ids of a support.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from trainer.losses.loss import Loss, LossInputs
from trainer.losses.reverse_kl import Normalisation, reverse_kl
from trainer.losses.support import LOG_PROB_FLOOR


class EntropyAware(Loss):
    """Reverse KL plus alpha times the forward KL on the teacher's top-16 where the teacher is uncertain."""

    name: Literal["entropy_aware"]
    normalisation: Normalisation = Field("surrogate", description="form of the reverse KL")
    alpha: float = Field(1.0, ge=0, description="weight of the forward KL")
    entropy_threshold: float = Field(0.8, ge=0, description="tau_H, nats")

    needs_teacher_support: ClassVar[bool] = True

    def per_position(self, inputs: LossInputs, step: int) -> torch.Tensor:
        log_p_NK, log_q_NK = inputs.teacher_support_student_logprob_NK, inputs.teacher_support_teacher_logprob_NK
        assert log_p_NK is not None and log_q_NK is not None, "rollouts of entropy_aware bring the teacher's support"
        reverse_N = reverse_kl(inputs.student_logprob_NK, inputs.teacher_logprob_NK, self.normalisation)
        uncertain_N = inputs.teacher_entropy_N > self.entropy_threshold
        return reverse_N + self.alpha * uncertain_N * forward_kl_on_teacher_support(log_p_NK, log_q_NK)


def forward_kl_on_teacher_support(log_p_NK: torch.Tensor, log_q_NK: torch.Tensor) -> torch.Tensor:
    """sum of q̂ (log q̂ - log p) over the teacher's top-16 [N]: q renormalised there, p over the whole vocabulary."""
    log_q_NK = log_q_NK.log_softmax(1)
    log_p_NK = log_p_NK.clamp(min=LOG_PROB_FLOOR)
    terms_NK = log_q_NK.exp() * (log_q_NK - log_p_NK)
    return terms_NK.masked_fill(log_q_NK.isneginf(), 0.0).sum(1)

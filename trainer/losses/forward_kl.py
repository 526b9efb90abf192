"""Forward KL, of Agarwal et al. (2024), GKD."""

from __future__ import annotations

from typing import Literal

import torch

from trainer.losses.loss import Loss, LossInputs
from trainer.losses.support import finite, kl


class ForwardKL(Loss):
    """KL(q || p) on the student's support, both renormalised over it (GKD)."""

    name: Literal["forward_kl"]

    def per_position(self, inputs: LossInputs, step: int) -> torch.Tensor:
        log_p_NK, log_q_NK = finite(inputs.student_logprob_NK, inputs.teacher_logprob_NK)
        return kl(log_q_NK.log_softmax(1), log_p_NK.log_softmax(1))

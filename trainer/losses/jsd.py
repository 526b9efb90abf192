"""Generalised Jensen-Shannon divergence, of Agarwal et al. (2024), GKD.

Legend: _N response positions, _K the ids of a support.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from trainer.losses.loss import Loss, LossInputs
from trainer.losses.support import finite, kl


class JSD(Loss):
    """Generalised Jensen-Shannon divergence on the student's support, both renormalised over it (GKD)."""

    name: Literal["jsd"]
    mixture: float = Field(0.5, gt=0, lt=1, description="weight of the teacher in the mixture")

    def per_position(self, inputs: LossInputs, step: int) -> torch.Tensor:
        return jsd(inputs.student_logprob_NK, inputs.teacher_logprob_NK, self.mixture)


def jsd(log_p_NK: torch.Tensor, log_q_NK: torch.Tensor, mixture: float) -> torch.Tensor:
    """lambda KL(q || m) + (1 - lambda) KL(p || m) with m = lambda q + (1 - lambda) p, over the support [N], nats."""
    log_p_NK, log_q_NK = finite(log_p_NK, log_q_NK)
    log_p_NK, log_q_NK = log_p_NK.log_softmax(1), log_q_NK.log_softmax(1)
    share = torch.tensor(mixture, dtype=log_p_NK.dtype, device=log_p_NK.device)
    log_m_NK = torch.logaddexp(log_q_NK + share.log(), log_p_NK + (1.0 - share).log())
    return mixture * kl(log_q_NK, log_m_NK) + (1.0 - mixture) * kl(log_p_NK, log_m_NK)

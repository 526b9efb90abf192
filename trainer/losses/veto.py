"""Veto: KL to a target between the teacher and the student (App. A.2).

Legend: _N response positions, _K the ids of a support.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from trainer import schedules
from trainer.losses.loss import Loss, LossInputs
from trainer.losses.support import finite, kl

Direction = Literal["student_to_target", "target_to_student"]


class Veto(Loss):
    """KL between p and the target Q ∝ q sg(p)^beta, both over the support (App. A.2)."""

    name: Literal["veto"]
    beta_start: float = Field(0.4, ge=0, description="falls linearly to 0; the paper sweeps 0.2, 0.4, 0.6, 0.8")
    warmup_steps: int = Field(25, ge=1, description="beta is 0 from here on")
    direction: Direction = Field("student_to_target", description="KL(p || Q) or KL(Q || p)")

    def per_position(self, inputs: LossInputs, step: int) -> torch.Tensor:
        beta = schedules.veto_beta(self.beta_start, self.warmup_steps, step)
        return veto(inputs.student_logprob_NK, inputs.teacher_logprob_NK, beta, self.direction)


def veto(log_p_NK: torch.Tensor, log_q_NK: torch.Tensor, beta: float, direction: Direction) -> torch.Tensor:
    """KL between p and Q ∝ q sg(p)^beta, both over the support [N], nats; sg stops the gradient."""
    log_p_NK, log_q_NK = finite(log_p_NK, log_q_NK)
    target_NK = (log_q_NK + beta * log_p_NK.detach()).log_softmax(1)
    student_NK = log_p_NK.log_softmax(1)
    return kl(student_NK, target_NK) if direction == "student_to_target" else kl(target_NK, student_NK)

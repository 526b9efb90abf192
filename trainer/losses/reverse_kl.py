"""Reverse KL on the student's support: the loss of the paper (Eq. 2), in one of four forms.

Legend: _N response positions, _K the ids of a support.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from trainer.losses.loss import Loss, LossInputs
from trainer.losses.support import finite, kl

Normalisation = Literal["surrogate", "raw", "renormalised", "tail"]

_LARGEST_MASS = 1.0 - 2.0**-20
"""Float32 log-probabilities do not say more precisely than this what is left of a mass."""


class ReverseKL(Loss):
    """Sum over the student's support of p (log p - log q), in one of four forms."""

    name: Literal["reverse_kl"] = "reverse_kl"
    normalisation: Normalisation = Field("surrogate", description="the paper's code line: surrogate")

    def per_position(self, inputs: LossInputs, step: int) -> torch.Tensor:
        return reverse_kl(inputs.student_logprob_NK, inputs.teacher_logprob_NK, self.normalisation)


def reverse_kl(log_p_NK: torch.Tensor, log_q_NK: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """Reverse KL of each position over the support [N], nats, in the form ``normalisation``.

    ``raw``: sum of p (log p - log q). ``renormalised``: both sides over the support first. ``tail``: raw, plus one
    bucket for what is left of each side, which is taken to be 2^-20 at least. ``surrogate``: -sum of sg(A) p / sg(p)
    with A = -w (log p - log q) and w = p / sum of p: its value is the sum of w (log p - log q), its gradient that of
    -sum of sg(A) log p, the policy gradient.
    """
    log_p_NK, log_q_NK = finite(log_p_NK, log_q_NK)
    p_NK = log_p_NK.exp()
    if normalisation == "renormalised":
        return kl(log_p_NK.log_softmax(1), log_q_NK.log_softmax(1))
    if normalisation == "surrogate":
        weight_NK = (p_NK / p_NK.sum(1, keepdim=True)).detach()
        advantage_NK = -weight_NK * (log_p_NK - log_q_NK).detach()
        ratio_NK = (log_p_NK - log_p_NK.detach()).exp()  # 1, with the gradient of log p
        return -(advantage_NK * ratio_NK).sum(1)
    raw_N = (p_NK * (log_p_NK - log_q_NK)).sum(1)
    if normalisation == "raw":
        return raw_N
    # In float64: what is left of a mass near 1 would be all rounding.
    rest_p_N = 1.0 - log_p_NK.double().exp().sum(1).clamp(max=_LARGEST_MASS)
    rest_q_N = 1.0 - log_q_NK.double().exp().sum(1).clamp(max=_LARGEST_MASS)
    return raw_N + (rest_p_N * (rest_p_N.log() - rest_q_N.log())).to(raw_N.dtype)

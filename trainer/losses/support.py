"""Shared by the losses: divergences over a support that are finite whatever the distributions.

An id of the student's support with p = 0 counts nothing and has no gradient, there and in what is renormalised. A
teacher log-probability below LOG_PROB_FLOOR counts as that: the exact value would be infinite, or drown everything
else. So does the student's on the teacher's support, without a gradient.

Log-probabilities are over the whole vocabulary, float32 or float64 nats; the student's carry the gradient.

Legend: _N response positions, _K the ids of a support.
"""

from __future__ import annotations

import torch

LOG_PROB_FLOOR = -50.0
"""Nats; a probability of 2e-22, which no sampler would ever draw."""

_NEVER = -1e4


def finite(log_p_NK: torch.Tensor, log_q_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both with finite stand-ins: ids with p = 0 get a probability below every float32 one on both sides."""
    never_NK = log_p_NK.isneginf()
    log_q_NK = log_q_NK.clamp(min=LOG_PROB_FLOOR).masked_fill(never_NK, _NEVER)
    return log_p_NK.masked_fill(never_NK, _NEVER), log_q_NK


def kl(log_a_NK: torch.Tensor, log_b_NK: torch.Tensor) -> torch.Tensor:
    """KL(a || b) = sum of a (log a - log b) [N], nats; both finite, and normalised over the support by the caller."""
    return (log_a_NK.exp() * (log_a_NK - log_b_NK)).sum(1)

"""The losses of METHODS section 3, a value in nats per position.

They are finite whatever the laws. An id of the student's support with p = 0 counts nothing and has no gradient, there
and in what is renormalised. A teacher log-probability below LOG_PROB_FLOOR counts as that: the exact value would be
infinite, or drown everything else. So does the student's on the teacher's support, without a gradient.

Log-probabilities are over the whole vocabulary, float32 or float64; the student's carry the gradient.

Legend: _N response positions, _K the ids of a support.
"""

from __future__ import annotations

import torch

LOG_PROB_FLOOR = -50.0
"""Nats; a probability of 2e-22, which no sampler would ever draw."""

_LARGEST_MASS = 1.0 - 2.0**-20
"""Float32 log-probabilities do not say more precisely than this what is left of a mass."""


def reverse_kl(log_p_NK: torch.Tensor, log_q_NK: torch.Tensor, normalisation: str) -> torch.Tensor:
    """Reverse KL of each position over the support [N], nats, in the form ``normalisation``.

    ``raw``: sum of p (log p - log q). ``renormalised``: both sides over the support first. ``tail``: raw, plus one
    bucket for what is left of each side, which is taken to be 2^-20 at least. ``surrogate``: -sum of sg(A) p / sg(p)
    with A = -w (log p - log q) and w = p / sum of p: its value is the sum of w (log p - log q), its gradient that of
    -sum of sg(A) log p, the policy gradient.
    """
    log_p_NK, log_q_NK = finite(log_p_NK, log_q_NK)
    p_NK = log_p_NK.exp()
    if normalisation == "renormalised":
        log_p_NK, log_q_NK = log_p_NK.log_softmax(1), log_q_NK.log_softmax(1)
        return (log_p_NK.exp() * (log_p_NK - log_q_NK)).sum(1)
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


def veto(log_p_NK: torch.Tensor, log_q_NK: torch.Tensor, beta: float, direction: str) -> torch.Tensor:
    """KL between p and Q ∝ q sg(p)^beta, both over the support [N], nats."""
    log_p_NK, log_q_NK = finite(log_p_NK, log_q_NK)
    target_NK = (log_q_NK + beta * log_p_NK.detach()).log_softmax(1)
    return _kl(log_p_NK.log_softmax(1), target_NK, direction == "student_to_target")


def forward_kl(log_p_NK: torch.Tensor, log_q_NK: torch.Tensor) -> torch.Tensor:
    """KL(q || p), both over the support [N], nats."""
    log_p_NK, log_q_NK = finite(log_p_NK, log_q_NK)
    return _kl(log_p_NK.log_softmax(1), log_q_NK.log_softmax(1), False)


def jsd(log_p_NK: torch.Tensor, log_q_NK: torch.Tensor, mixture: float) -> torch.Tensor:
    """lambda KL(q || m) + (1 - lambda) KL(p || m) with m = lambda q + (1 - lambda) p, over the support [N], nats."""
    log_p_NK, log_q_NK = finite(log_p_NK, log_q_NK)
    log_p_NK, log_q_NK = log_p_NK.log_softmax(1), log_q_NK.log_softmax(1)
    share = torch.tensor(mixture, dtype=log_p_NK.dtype, device=log_p_NK.device)
    log_m_NK = torch.logaddexp(log_q_NK + share.log(), log_p_NK + (1.0 - share).log())
    of_teacher_N = (log_q_NK.exp() * (log_q_NK - log_m_NK)).sum(1)
    of_student_N = (log_p_NK.exp() * (log_p_NK - log_m_NK)).sum(1)
    return mixture * of_teacher_N + (1.0 - mixture) * of_student_N


def forward_kl_on_teacher_support(log_p_NK: torch.Tensor, log_q_NK: torch.Tensor) -> torch.Tensor:
    """sum of q̂ (log q̂ - log p) over the teacher's top-16 [N]: q renormalised there, p over the whole vocabulary."""
    log_q_NK = log_q_NK.log_softmax(1)
    log_p_NK = log_p_NK.clamp(min=LOG_PROB_FLOOR)
    terms_NK = log_q_NK.exp() * (log_q_NK - log_p_NK)
    return terms_NK.masked_fill(log_q_NK.isneginf(), 0.0).sum(1)


def finite(log_p_NK: torch.Tensor, log_q_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both with finite stand-ins: ids with p = 0 get a probability below every float32 one on both sides."""
    never_NK = log_p_NK.isneginf()
    log_q_NK = log_q_NK.clamp(min=LOG_PROB_FLOOR).masked_fill(never_NK, _NEVER)
    return log_p_NK.masked_fill(never_NK, _NEVER), log_q_NK


_NEVER = -1e4


def _kl(log_p_NK: torch.Tensor, log_q_NK: torch.Tensor, from_p: bool) -> torch.Tensor:
    weight_NK = (log_p_NK if from_p else log_q_NK).exp()
    ratio_NK = log_p_NK - log_q_NK if from_p else log_q_NK - log_p_NK
    return (weight_NK * ratio_NK).sum(1)

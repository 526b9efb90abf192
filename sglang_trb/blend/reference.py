"""The definition: float64, one row at a time, bisection, nothing clever. Everything else is tested against it.

Rows are numpy arrays of log-probabilities over the vocabulary, -inf off their support.
"""

from __future__ import annotations

import numpy as np
import torch

from sglang_trb.blend.distribution import LIMIT
from sglang_trb.blend.types import TOP_K_OFF, BlendOutput
from sglang_trb.pair.alignment import StopAlignment

BISECTIONS = 200
Row = np.ndarray


def log_softmax(logits: Row) -> Row:
    """Normalise; what lies LIMIT or more below the largest is forbidden. A row of -inf stays as it is."""
    peak = logits.max()
    if not np.isfinite(peak):
        return logits.copy()
    with np.errstate(over="ignore"):
        below = logits - peak
    below[below <= -LIMIT] = -np.inf
    return below - np.log(np.exp(below).sum())


def kl(log_mu: Row, log_p: Row) -> float:
    """KL(mu || p) in nats of normalised rows, inf where mu leaves p's support.

    As a sum of mu log(mu / p) - mu + p, of which no term is negative: mu log(mu / p) alone loses what is below 1e-16.
    """
    on = np.exp(log_mu) > 0
    if np.isneginf(log_p[on]).any():
        return float("inf")
    mu, p, ratio = np.exp(log_mu[on]), np.exp(log_p[on]), log_mu[on] - log_p[on]
    series = p * ratio**2 * (1 / 2 + ratio / 3 + ratio**2 / 8)
    terms = np.where(np.abs(ratio) < 1e-4, series, mu * ratio - mu + p)
    return float(terms.sum() + np.exp(log_p[~on]).sum())


def entropy(log_p: Row) -> float:
    """Entropy in nats."""
    on = np.exp(log_p) > 0
    return float(-np.sum(np.exp(log_p[on]) * log_p[on]))


def mu_at(log_p: Row, log_q: Row, beta: float) -> Row:
    """mu_beta ∝ p^(1-beta) q^beta on the common support (Eq. 2); beta = 1 is q restricted to it."""
    common = np.isfinite(log_p) & np.isfinite(log_q)
    logits = np.full(log_p.shape, -np.inf)
    logits[common] = (1.0 - beta) * log_p[common] + beta * log_q[common]
    return log_softmax(logits)


def blend(log_p: Row, log_q: Row, epsilon: float) -> tuple[Row, float, float]:
    """log mu, beta and KL(mu || p) of one row, by the defined cases of METHODS section 1 in their order."""
    common = np.isfinite(log_p) & np.isfinite(log_q)
    if epsilon == 0.0 or not common.any():
        return log_p, 0.0, 0.0
    whole = np.array_equal(common, np.isfinite(log_p))
    log_mass = 0.0
    if not whole:  # log p(S), as exact where it is next to 0
        inside, outside = (np.logaddexp.reduce(log_p[part]) for part in (common, ~common))
        log_mass = -float(np.logaddexp(0.0, outside - inside))
    restricted = np.where(common, log_p, -np.inf) - log_mass
    budget = epsilon + log_mass
    if budget < 0.0:
        return log_p, 0.0, 0.0

    def divergence(beta: float) -> float:
        return max(kl(mu_at(log_p, log_q, beta), restricted), 0.0)

    low, high = 0.0, 1.0
    if divergence(1.0) <= budget:
        low = 1.0
    else:
        for _ in range(BISECTIONS):
            middle = (low + high) / 2.0
            low, high = (middle, high) if divergence(middle) <= budget else (low, middle)
    if low == 0.0:
        return log_p, 0.0, 0.0
    return mu_at(log_p, log_q, low), low, divergence(low) - log_mass


def align(log_p: Row, own_ids: tuple[int, ...], alignment: StopAlignment) -> Row:
    """Eq. 7: the model's stop mass at the canonical id, the other stop ids masked, renormalised."""
    if alignment.is_identity and own_ids == (alignment.canonical_id,):
        return log_p
    stop = np.logaddexp.reduce(log_p[list(own_ids)])
    aligned = log_p.copy()
    aligned[list(alignment.masked_ids)] = -np.inf
    aligned[alignment.canonical_id] = stop
    return log_softmax(aligned)


def filtered(log_p: Row, top_k: int = TOP_K_OFF, top_p: float = 1.0, min_p: float = 0.0) -> Row:
    """SGLang's filters on the probabilities in descending order (ties: lower id first), renormalised."""
    order = np.argsort(-log_p, kind="stable")
    probs = np.exp(log_p[order])
    before = np.cumsum(probs) - probs
    keep = (np.arange(len(probs)) < top_k) & ((before <= top_p) | (top_p >= 1)) & (probs >= probs[0] * min_p)
    result = np.full(log_p.shape, -np.inf)
    result[order[keep]] = log_p[order[keep]]
    return log_softmax(result)


def skd(log_p: Row, log_q: Row, top_k: int, temperature: float) -> Row:
    """Rule ``skd``: the law of the token that remains after the teacher's replacement draw."""
    in_top = np.zeros(len(log_q), bool)
    in_top[np.argsort(-log_q, kind="stable")[:top_k]] = True
    kept = np.where(in_top, np.exp(log_p), 0.0)
    replaced = np.exp(log_p[~in_top]).sum()
    below = log_q - max(log_q.max(), np.finfo(float).min)  # a row of -inf stays so
    with np.errstate(divide="ignore", over="ignore"):
        return np.log(kept + replaced * np.exp(log_softmax(below / temperature)))


def trust_region_blend(
    student_logits_BV: torch.Tensor, teacher_logits_BV: torch.Tensor, epsilon_B: torch.Tensor
) -> BlendOutput:
    """`sglang_trb.trust_region_blend` row by row; a row without a usable student or teacher row is NaN."""
    rows = [
        _usable_blend(log_softmax(student), log_softmax(teacher), epsilon)
        for student, teacher, epsilon in zip(
            student_logits_BV.double().cpu().numpy(),
            teacher_logits_BV.double().cpu().numpy(),
            epsilon_B.tolist(),
            strict=True,
        )
    ]
    log_mu, beta, divergence = zip(*rows, strict=True)
    device = student_logits_BV.device
    return BlendOutput(
        torch.from_numpy(np.stack(log_mu)).float().to(device),
        torch.tensor(beta, dtype=torch.float32, device=device),
        torch.tensor(divergence, dtype=torch.float32, device=device),
    )


def _usable_blend(log_p: Row, log_q: Row, epsilon: float) -> tuple[Row, float, float]:
    if np.isfinite(log_p.max()) and np.isfinite(log_q.max()):
        return blend(log_p, log_q, epsilon)
    return np.full(log_p.shape, np.nan), np.nan, np.nan

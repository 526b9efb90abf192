"""The definition: float64, one row at a time, bisection, nothing clever. Everything else is tested against it.

Rows are numpy arrays of log-probabilities over the vocabulary, -inf off their support.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from sglang_trb.blend.distribution import LIMIT, Distribution
from sglang_trb.blend.solver import Blend
from sglang_trb.blend.types import TOP_K_OFF
from sglang_trb.pair.alignment import StopAlignment
from sglang_trb.wire.rules import Rule

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
    """log mu, beta and KL(mu || p) of one row, by the defined cases of docs/methods.md in their order."""
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
    """Rule ``skd``: the distribution of the token that remains after the teacher's replacement draw."""
    in_top = np.zeros(len(log_q), bool)
    in_top[np.argsort(-log_q, kind="stable")[:top_k]] = True
    kept = np.where(in_top, np.exp(log_p), 0.0)
    replaced = np.exp(log_p[~in_top]).sum()
    below = log_q - max(log_q.max(), np.finfo(float).min)  # a row of -inf stays so
    with np.errstate(divide="ignore", over="ignore"):
        return np.log(kept + replaced * np.exp(log_softmax(below / temperature)))


def mixture(log_p: Row, log_q: Row, alpha: float) -> Row:
    """Rule ``mixture``: log of (1 - alpha) p + alpha q, without the model whose share is 0."""
    if alpha in (0.0, 1.0):
        return log_q if alpha else log_p
    return log_softmax(np.logaddexp(log_p + np.log1p(-alpha), log_q + np.log(alpha)))


RuleReference = Callable[[Row, Row, Mapping[str, float]], tuple[Row, float, float]]
"""From log p, log q and the rule's parameters by name: log mu, beta (NaN where it depends on the draw), KL(mu || p)."""


def _skd(log_p: Row, log_q: Row, settings: Mapping[str, float]) -> tuple[Row, float, float]:
    log_mu = skd(log_p, log_q, int(settings["skd_top_k"]), settings["skd_temperature"])
    return log_mu, np.nan, max(kl(log_mu, log_p), 0.0)


def _mixture(log_p: Row, log_q: Row, settings: Mapping[str, float]) -> tuple[Row, float, float]:
    log_mu = mixture(log_p, log_q, settings["mixture_alpha"])
    return log_mu, settings["mixture_alpha"], max(kl(log_mu, log_p), 0.0)


RULES: dict[Rule, RuleReference] = {
    Rule.TRUST_REGION: lambda log_p, log_q, settings: blend(log_p, log_q, settings["epsilon"]),
    Rule.STUDENT: lambda log_p, log_q, settings: (log_p, 0.0, 0.0),
    Rule.TEACHER: lambda log_p, log_q, settings: (log_q, 1.0, max(kl(log_q, log_p), 0.0)),
    Rule.SKD: _skd,
    Rule.MIXTURE: _mixture,
}
"""The definition of every rule, on rows that are filtered as the rule says."""


def solve(p: Distribution, q: Distribution, epsilon_B: torch.Tensor) -> Blend:
    """As `solver.solve`, row by row on the host; rows with beta = 0 are ``p`` bit for bit."""
    rows = [
        blend(log_p, log_q, epsilon)
        for log_p, log_q, epsilon in zip(
            p.log_probs().cpu().numpy(), q.log_probs().cpu().numpy(), epsilon_B.tolist(), strict=True
        )
    ]
    device = p.log_weights_BV.device
    log_mu_BV = torch.tensor(np.array([row[0] for row in rows]).reshape(p.log_weights_BV.shape), device=device)
    beta_B, kl_B = (torch.tensor([row[i] for row in rows], dtype=torch.float64, device=device) for i in (1, 2))
    return Blend(p.where(beta_B > 0, Distribution.from_logits(log_mu_BV)), beta_B, kl_B)

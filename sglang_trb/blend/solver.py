"""The largest feasible beta of each row, batched (Eq. 2, App. E).

f(beta) = KL(mu_beta || p) = beta A'(beta) - A(beta) (Eq. 12) rises from 0; f' = beta A'' (Eq. 13). One pass over the
vocabulary gives A, A' and A'' at one beta; the two ends need no exponentials of their own. The search brackets the root
and interpolates log beta against log f by an inverse cubic Hermite polynomial, which needs one or two passes where
bisection needs thirty. It keeps the feasible end: whatever the trip count, KL(mu || p) <= epsilon, and more trips only
come closer.

All of it is float64: the budget is compared with a difference of sums near 1, and at epsilon = 1e-6 sums, and
log-probabilities, in fp32 lose it. docs/decisions.md has the figures.

Legend: _B rows, _V vocabulary; r = log q - log p.
"""

from __future__ import annotations

import dataclasses

import torch

from sglang_trb.blend.distribution import NEVER, Distribution, exp_

TRIPS = 20
"""Passes of the search. Needed for 1e-4 of the budget over LLM-like pairs: 2.6 on average, 5 at worst; over hostile
ones (2 to 300 tokens, logits spread over 200 nats, budgets from 1e-6 to 1000): 6.8 on average, 19 at worst of 4,396."""

MARGIN = 5e-5
"""A feasible beta with f >= epsilon (1 - MARGIN) is final; the search aims at epsilon (1 - MARGIN / 2)."""

_TINY = torch.finfo(torch.float64).tiny
_UNDERFLOW = 1e-290
"""A sum of exponentials below this may have lost some."""


@dataclasses.dataclass(frozen=True)
class Blend:
    """The solution of each row; float64.

    Attributes:
        mu: the behaviour policy; exactly p where beta = 0.
        beta_B: in [0, 1].
        kl_B: KL(mu || p) in nats.
    """

    mu: Distribution
    beta_B: torch.Tensor
    kl_B: torch.Tensor


def solve(p: Distribution, q: Distribution, epsilon_B: torch.Tensor, trips: int = TRIPS) -> Blend:
    """Blend each row with the largest beta in [0, 1] whose KL(mu_beta || p) stays within its budget.

    On S = supp p & supp q, with p restricted to S and renormalised, the budget is epsilon + log p(S); where that is
    negative or S is empty, beta = 0 and mu = p (METHODS section 1, "Defined cases"). epsilon = 0 gives p bit for bit.

    Args:
        p, q: normalised student and teacher.
        epsilon_B: budgets [B] in nats, >= 0, any float dtype.
        trips: passes of the search.

    Returns:
        The blend. No host synchronisation, no data-dependent shape: safe in a CUDA graph.
    """
    family = _Family(p, q)
    budget_B = epsilon_B.double() + family.log_mass_B
    enabled_B = (epsilon_B > 0) & (budget_B >= 0) & family.nonempty_B
    at_one = family.at_one(q)
    saturated_B = at_one.kl_B <= budget_B

    target_B = budget_B.clamp(min=_TINY)
    low, high = family.below(p, target_B), at_one
    found = low.emptied()
    done_B = saturated_B | ~enabled_B
    streak_B = torch.zeros_like(budget_B)  # > 0: that many feasible points in a row; < 0: infeasible ones
    for _ in range(trips):
        if done_B.device.type == "cpu" and bool(done_B.all()):
            break  # on a device this would stall the host, and a graph has a fixed trip count
        point = family.at(_candidate(low, high, target_B, streak_B))
        fits_B = point.kl_B <= target_B
        raises_B, lowers_B = fits_B & ~done_B, ~fits_B & ~done_B
        found, low, high = found.updated(raises_B, point), low.updated(raises_B, point), high.updated(lowers_B, point)
        streak_B = torch.where(fits_B, streak_B.clamp(min=0) + 1, streak_B.clamp(max=0) - 1)
        done_B = done_B | (fits_B & (point.kl_B >= target_B * (1.0 - MARGIN)))

    beta_B = torch.where(enabled_B, torch.where(saturated_B, 1.0, found.beta_B), 0.0)
    kl_B = torch.where(saturated_B, at_one.kl_B, found.kl_B) - family.log_mass_B
    blended_B = beta_B > 0
    mu = p.where(blended_B, family.distribution(beta_B))
    return Blend(mu, beta_B, torch.where(blended_B, kl_B.clamp(min=0.0), 0.0))


@dataclasses.dataclass(frozen=True)
class _Point:
    """f and its slope at one beta per row."""

    beta_B: torch.Tensor
    kl_B: torch.Tensor
    curvature_B: torch.Tensor  # A'' = Var_mu(r)

    def log_log(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """log beta, log f and d log f / d log beta = beta^2 A'' / f, finite for any input."""
        kl_B = self.kl_B.clamp(min=_TINY)
        slope_B = (self.beta_B.square() * self.curvature_B / kl_B).clamp(1e-6, 1e6)
        return self.beta_B.clamp(min=_TINY).log(), kl_B.log(), slope_B

    def updated(self, rows_B: torch.Tensor, other: _Point) -> _Point:
        """With the other point in the chosen rows."""
        return _Point(
            torch.where(rows_B, other.beta_B, self.beta_B),
            torch.where(rows_B, other.kl_B, self.kl_B),
            torch.where(rows_B, other.curvature_B, self.curvature_B),
        )

    def emptied(self) -> _Point:
        """beta = 0, which is always feasible."""
        zeros_B = torch.zeros_like(self.beta_B)
        return _Point(zeros_B, zeros_B, zeros_B)


class _Family:
    """The exponential family mu_beta ∝ p e^(beta r) on S, for each row."""

    def __init__(self, p: Distribution, q: Distribution) -> None:
        self.outside_BV = ~(p.support() & q.support())
        self.base_BV = p.log_weights_BV.masked_fill(self.outside_BV, NEVER)  # log p on S
        self.ratio_BV = (q.log_weights_BV - p.log_weights_BV).masked_fill_(self.outside_BV, 0.0)
        largest_B = self.base_BV.amax(1)
        self.nonempty_B = largest_B > NEVER / 2
        mass_B = p.weights_BV.masked_fill(self.outside_BV, 0.0).sum(1)
        # Any value near log p(S) is right, it cancels from KL(mu || p); of a mass that underflows the largest part is.
        log_mass_B = torch.where(mass_B > _UNDERFLOW, mass_B.clamp(min=_TINY).log(), largest_B)
        self.log_mass_B = torch.where(self.nonempty_B, log_mass_B, 0.0)

    def at(self, beta_B: torch.Tensor) -> _Point:
        """f by one pass over the vocabulary."""
        _, weights_BV, shift_B = self._weights(beta_B)
        return self._point(beta_B, weights_BV, shift_B)

    def at_one(self, q: Distribution) -> _Point:
        """f at beta = 1, where mu is q on S."""
        ones_B = torch.ones_like(self.log_mass_B)
        return self._point(ones_B, q.weights_BV.masked_fill(self.outside_BV, 0.0), torch.zeros_like(ones_B))

    def below(self, p: Distribution, target_B: torch.Tensor) -> _Point:
        """A feasible beta in closed form, with f from its expansion at 0 (Eq. 18).

        f(beta) = ∫ s A''(s) ds, and a variance is at most a quarter of the squared range of r (Popoviciu), so
        beta = sqrt(8 epsilon) / range satisfies f <= epsilon.
        """
        range_B = self.ratio_BV.amax(1) - self.ratio_BV.amin(1)  # off S, r is 0: at most wider
        beta_B = ((8.0 * target_B).sqrt() / range_B.clamp(min=1e-12)).clamp(max=0.5)
        variance_B = self._point(beta_B, p.weights_BV, torch.zeros_like(beta_B)).curvature_B.clamp(min=1e-200)
        return _Point(beta_B, torch.minimum(variance_B * beta_B.square() / 2.0, target_B * 0.99), variance_B)

    def distribution(self, beta_B: torch.Tensor) -> Distribution:
        """mu_beta."""
        log_weights_BV, weights_BV, shift_B = self._weights(beta_B)
        return Distribution(log_weights_BV, weights_BV, weights_BV.sum(1).clamp(min=_TINY).log() + shift_B)

    def _weights(self, beta_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """log p + beta r, its exponential shifted by the row's largest, and that shift."""
        log_weights_BV = torch.addcmul(self.base_BV, self.ratio_BV, beta_B[:, None])
        shift_B = log_weights_BV.amax(1)
        return log_weights_BV, exp_(log_weights_BV - shift_B[:, None]), shift_B

    def _point(self, beta_B: torch.Tensor, weights_BV: torch.Tensor, shift_B: torch.Tensor) -> _Point:
        weighted_BV = weights_BV * self.ratio_BV
        total_B = weights_BV.sum(1).clamp(min=_UNDERFLOW)  # a clamped one makes f larger: infeasible
        log_normaliser_B = total_B.log() + shift_B - self.log_mass_B  # A(beta), Eq. 11
        mean_B = weighted_BV.sum(1) / total_B  # A'(beta)
        variance_B = torch.linalg.vecdot(weighted_BV, self.ratio_BV) / total_B - mean_B.square()  # A''(beta), Eq. 14
        return _Point(beta_B, beta_B * mean_B - log_normaliser_B, variance_B.clamp(min=0.0))


def _candidate(low: _Point, high: _Point, target_B: torch.Tensor, streak_B: torch.Tensor) -> torch.Tensor:
    """The next beta, strictly inside the bracket.

    Inverse cubic Hermite interpolation of log beta at log f, its tangents limited so that it is monotone (Fritsch and
    Carlson 1980). When the same end has moved twice in a row, the middle: the interpolation then misjudges the curve.
    """
    u0_B, y0_B, slope0_B = low.log_log()
    u1_B, y1_B, slope1_B = high.log_log()
    height_B, width_B = (y1_B - y0_B).clamp(min=1e-15), u1_B - u0_B
    t_B = (((target_B * (1.0 - MARGIN / 2.0)).log() - y0_B) / height_B).clamp(0.0, 1.0)
    tangent0_B = torch.minimum(height_B / slope0_B, 3.0 * width_B)
    tangent1_B = torch.minimum(height_B / slope1_B, 3.0 * width_B)
    t2_B, t3_B = t_B.square(), t_B.pow(3)
    u_B = u0_B + (3 * t2_B - 2 * t3_B) * width_B + (t3_B - 2 * t2_B + t_B) * tangent0_B + (t3_B - t2_B) * tangent1_B
    beta_B = torch.where(streak_B.abs() >= 2, (low.beta_B + high.beta_B) / 2.0, u_B.exp())
    return torch.maximum(torch.minimum(beta_B, high.beta_B), low.beta_B)

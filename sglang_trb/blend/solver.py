"""The largest feasible beta of each row, batched (Eq. 2, App. E).

f(beta) = KL(mu_beta || p) = beta A'(beta) - A(beta) (Eq. 12) rises from 0; f' = beta A'' (Eq. 13). One pass over the
vocabulary gives A and its first three derivatives at one beta; both ends come without exponentials of their own. The
search keeps a bracket and steps from its nearer end by Halley's method on log f against log beta. Where that fails it
takes turns between the beta at which the tangents of A at both ends meet and a step from the farther end, or else the
middle. It answers with the feasible end: whatever the trip count, KL(mu || p) <= epsilon, and more trips only come
closer.

All of it is float64: f is a difference of terms near 1, and computed so in float32 it is off by 28 % at epsilon = 1e-6.
Log-ratios are centred at their mean under p, so that only what differs between tokens enters the difference; rows with
a budget below SMALL sum positive terms instead. benchmarks/solver.py measures speed and accuracy.

Legend: _B rows, _V vocabulary; r = log q - log p, d = r less its mean under p.
"""

from __future__ import annotations

import dataclasses

import torch

from sglang_trb.blend.distribution import NEVER, Distribution, exp_, may_look, needed

TRIPS = 14
"""Passes of the search. Until MARGIN is met, over budgets from 1e-6 to 1000: LLM-like pairs need 2.4 on average, 8 at
worst; hostile ones (two tokens, log-ratios of hundreds, several kinks) 3.0 on average, 7 in 99 of 100, 14 at worst of
12,394; of rows with log-ratios up to 1e9 and budgets from 1e-30 on, one in a thousand needs more."""

LAST_TRIP = 64
"""Passes after which even a search that may stop when it is done stops; none was seen to need them."""

MARGIN = 5e-5
"""A feasible beta with f >= epsilon (1 - MARGIN) is final; the search aims at the middle of what is left of it."""

SLACK = 5e-6
"""Share of epsilon that is kept back for rounding. Log-weights are at most LIMIT = 1e9 in size, hence off by 2e-7 at
most, and f by some times that share of itself."""

SMALL = 1e-7
"""Nats. Sums of probabilities are off by 1e-15; for budgets below this, that is too much for a difference of sums."""

_NEAR = 1e-3
"""Nats. Above it f is far from any small budget, and its positive terms might overflow."""

SMALLEST = 1e-200
"""Nats. A budget below it counts as 0: its squares would vanish."""

_TINY = torch.finfo(torch.float64).tiny
_LOST = 1e-200
"""A sum of probabilities below this may have lost some that vanished."""


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


def solve(
    p: Distribution, q: Distribution, epsilon_B: torch.Tensor, trips: int | None = None, *, any_small: bool = True
) -> Blend:
    """Blend each row with the largest beta in [0, 1] whose KL(mu_beta || p) stays within its budget.

    On S = supp p & supp q, with p restricted to S and renormalised, the budget is epsilon + log p(S); where that is
    negative or S is empty, beta = 0 and mu = p (docs/methods.md, "Defined cases"). epsilon = 0 gives p bit for bit.

    Args:
        p, q: softmaxes of student and teacher.
        epsilon_B: budgets [B] in nats, >= 0, any float dtype.
        trips: passes of the search; None: TRIPS, or until every row is final where the host may look.
        any_small: False promises that no budget lies between 0 and SMALL.

    Returns:
        The blend. No host synchronisation, no data-dependent shape: safe in a CUDA graph.
    """
    epsilon_B = epsilon_B.double()
    small_B = (epsilon_B < SMALL) & (epsilon_B >= SMALLEST)
    family = _Family(p, q, small_B, any_small)
    budget_B = epsilon_B * (1.0 - SLACK) + family.log_mass_B
    enabled_B = (epsilon_B >= SMALLEST) & (budget_B >= 0) & family.nonempty_B
    at_one = family.at_one()
    saturated_B = at_one.kl_B <= budget_B

    search = _Search(family.below(budget_B.clamp(min=_TINY)), at_one, budget_B, saturated_B | ~enabled_B)
    if trips is None:
        trips = LAST_TRIP if may_look(epsilon_B.device) else TRIPS
    for _ in range(trips):
        if not needed(~search.done_B):
            break
        search.narrow(family.at(search.candidate()))

    beta_B = torch.where(enabled_B, torch.where(saturated_B, 1.0, search.found.beta_B), 0.0)
    kl_B = torch.where(saturated_B, at_one.kl_B, search.found.kl_B) - family.log_mass_B
    blended_B = beta_B > 0
    mu = p.where(blended_B, family.distribution(beta_B))
    return Blend(mu, beta_B, torch.where(blended_B, kl_B.clamp(min=0.0), 0.0))


@dataclasses.dataclass(frozen=True)
class _Point:
    """f and the derivatives of A at one beta per row."""

    beta_B: torch.Tensor
    kl_B: torch.Tensor
    mean_B: torch.Tensor  # A' = E_mu(r)
    variance_B: torch.Tensor  # A''
    third_B: torch.Tensor  # A''', the third central moment

    def log_log(self) -> tuple[torch.Tensor, torch.Tensor]:
        """log beta and log f, finite for any input."""
        return self.beta_B.clamp(min=_TINY).log(), self.kl_B.clamp(min=_TINY).log()

    def halley(self, target_B: torch.Tensor) -> torch.Tensor:
        """log beta where log f should meet ``log(target)``, from slope and bend of log f against log beta here."""
        log_beta_B, log_kl_B = self.log_log()
        kl_B = self.kl_B.clamp(min=_TINY)
        slope_B = (self.beta_B.square() * self.variance_B / kl_B).clamp(1e-6, 1e15)
        bend_B = 2.0 * slope_B + self.beta_B.pow(3) * self.third_B / kl_B - slope_B.square()
        step_B = (target_B.log() - log_kl_B) / slope_B
        return log_beta_B + step_B / (1.0 + step_B * bend_B / (2.0 * slope_B)).clamp(0.5, 3.0)

    def where(self, rows_B: torch.Tensor, other: _Point) -> _Point:
        """The other's values in the chosen rows."""
        names = [field.name for field in dataclasses.fields(self)]
        return _Point(*(torch.where(rows_B, getattr(other, name), getattr(self, name)) for name in names))


class _Search:
    """The bracket of each row: ``low`` is feasible, ``high`` is not; ``found`` is the largest feasible beta visited."""

    def __init__(self, low: _Point, high: _Point, budget_B: torch.Tensor, done_B: torch.Tensor) -> None:
        self.low, self.high, self.done_B = low, high, done_B
        self.budget_B = budget_B.clamp(min=_TINY)
        self.aim_B = self.budget_B * (1.0 - (MARGIN - SLACK) / 2.0)
        zeros_B = torch.zeros_like(budget_B)
        self.found = _Point(zeros_B, zeros_B, zeros_B, zeros_B, zeros_B)
        self.closest_B = torch.full_like(budget_B, torch.inf)  # |log f - log aim|, the least so far
        self.stalled_B = torch.zeros_like(done_B)  # the last Halley step came no closer
        self.fallback_B = torch.zeros_like(done_B)  # the last step was another than Halley's from the nearer end
        self.met_B = torch.zeros_like(done_B)  # the last fallback was where the tangents meet

    def candidate(self) -> torch.Tensor:
        """The next beta, inside the bracket."""
        (low_B, low_kl_B), (high_B, high_kl_B) = self.low.log_log(), self.high.log_log()
        log_aim_B = self.aim_B.log()
        low_is_near_B = log_aim_B - low_kl_B <= high_kl_B - log_aim_B
        from_low_B, from_high_B = self.low.halley(self.aim_B), self.high.halley(self.aim_B)
        near_B = torch.where(low_is_near_B, from_low_B, from_high_B)
        far_B = torch.where(low_is_near_B, from_high_B, from_low_B)
        # A is convex, and its tangent at beta meets the axis at -f(beta). Where a token takes over, A has a kink and f
        # rises steeply: about where the tangents of both ends meet.
        rise_B, turn_B = self.high.kl_B - self.low.kl_B, self.high.mean_B - self.low.mean_B
        meeting_B = (rise_B.clamp(min=_TINY) / turn_B.clamp(min=_TINY)).log()

        def inside(log_beta_B: torch.Tensor) -> torch.Tensor:
            return (log_beta_B > low_B) & (log_beta_B < high_B)

        self.fallback_B = self.stalled_B | ~inside(near_B)
        other_B = torch.where(self.met_B, far_B, meeting_B)
        other_B = torch.where(inside(other_B), other_B, (low_B + high_B) / 2.0)
        beta_B = torch.where(self.fallback_B, other_B, near_B).exp()
        return torch.maximum(torch.minimum(beta_B, self.high.beta_B), self.low.beta_B)

    def narrow(self, point: _Point) -> None:
        """Move an end of each bracket that is not final to ``point``."""
        fits_B = point.kl_B <= self.budget_B
        raises_B, lowers_B = fits_B & ~self.done_B, ~fits_B & ~self.done_B
        self.found, self.low = self.found.where(raises_B, point), self.low.where(raises_B, point)
        self.high = self.high.where(lowers_B, point)
        self.done_B = self.done_B | (fits_B & (point.kl_B >= self.budget_B * (1.0 - MARGIN + SLACK)))
        distance_B = (point.log_log()[1] - self.aim_B.log()).abs()
        self.stalled_B = (distance_B > self.closest_B / 2.0) & ~self.fallback_B
        self.met_B = self.met_B ^ self.fallback_B
        self.closest_B = torch.minimum(self.closest_B, distance_B)


class _Family:
    """The exponential family mu_beta ∝ p e^(beta d) on S, for each row."""

    def __init__(self, p: Distribution, q: Distribution, small_B: torch.Tensor, any_small: bool) -> None:
        self.small_B, self.any_small = small_B, any_small and needed(small_B)
        p_inside_BV, q_inside_BV = p.support(), q.support()
        inside_BV = p_inside_BV & q_inside_BV
        self.nonempty_B = inside_BV.any(1)
        self.log_mass_B = torch.zeros_like(p.log_total_B)  # log p(S)
        self.log_base_B = p.log_total_B  # of the sum of e^base
        if needed(p_inside_BV.logical_xor_(q_inside_BV).any(1)):
            p, q, log_mass_B, self.log_base_B = _restricted(p, q, inside_BV)
            self.log_mass_B = torch.where(self.nonempty_B, log_mass_B, 0.0)
        self.base_BV = p.log_weights_BV  # log p on S, not normalised
        self.p_BV, self.q_BV = p.weights_BV, q.weights_BV
        # Any centre is right, it cancels from mu and from f. Off S, d is of no consequence.
        self.ratio_BV = q.log_weights_BV - p.log_weights_BV
        centre_B = (self.p_BV * self.ratio_BV).sum(1) / self.p_BV.sum(1).clamp(min=_TINY)
        self.ratio_BV.sub_(centre_B[:, None])
        self.q_shift_B = q.log_total_B - centre_B

    def at(self, beta_B: torch.Tensor) -> _Point:
        """f by one pass over the vocabulary."""
        _, weights_BV, shift_B = self._weights(beta_B)
        return self._point(beta_B, weights_BV, shift_B)

    def at_one(self) -> _Point:
        """f at beta = 1, where mu is q on S."""
        return self._point(torch.ones_like(self.log_mass_B), self.q_BV, self.q_shift_B)

    def below(self, budget_B: torch.Tensor) -> _Point:
        """A feasible beta in closed form, with f from its expansion at 0 (Eq. 18 and one more term).

        f(beta) = ∫ s A''(s) ds, and a variance is at most a quarter of the squared range of r (Popoviciu), so
        beta = sqrt(6 epsilon) / range satisfies f <= 3/4 epsilon.
        """
        range_B = self.ratio_BV.amax(1) - self.ratio_BV.amin(1)  # with what is off S: at most wider
        beta_B = ((6.0 * budget_B).sqrt() / range_B.clamp(min=1e-12)).clamp(max=0.5)
        _, mean_B, variance_B, third_B = self._moments(self.p_BV)
        variance_B = variance_B.clamp(min=1e-200)
        skew_B = (beta_B * third_B / variance_B).clamp(-0.5, 0.5)
        kl_B = variance_B * beta_B.square() / 2.0 * (1.0 + skew_B * (2.0 / 3.0))
        mean_B = mean_B + beta_B * variance_B
        kl_B = torch.minimum(kl_B, budget_B * 0.75)
        return _Point(beta_B, kl_B, mean_B, variance_B * (1.0 + skew_B), variance_B * skew_B / beta_B.clamp(min=_TINY))

    def distribution(self, beta_B: torch.Tensor) -> Distribution:
        """mu_beta."""
        log_weights_BV, weights_BV, shift_B = self._weights(beta_B)
        return Distribution(log_weights_BV, weights_BV, weights_BV.sum(1).clamp(min=_TINY).log() + shift_B)

    def _weights(self, beta_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """log p + beta d, its exponential shifted by the row's largest, and that shift."""
        log_weights_BV = torch.addcmul(self.base_BV, self.ratio_BV, beta_B[:, None])
        shift_B = log_weights_BV.amax(1)
        return log_weights_BV, exp_(log_weights_BV - shift_B[:, None]), shift_B

    def _point(self, beta_B: torch.Tensor, weights_BV: torch.Tensor, shift_B: torch.Tensor) -> _Point:
        total_B, first_B, variance_B, third_B = self._moments(weights_BV)
        log_normaliser_B = total_B.log() + shift_B - self.log_base_B  # A(beta), Eq. 11
        kl_B = beta_B * first_B - log_normaliser_B
        if self.any_small:
            kl_B = torch.where(self.small_B & (kl_B < _NEAR), self._positive_sum(beta_B), kl_B)
        return _Point(beta_B, kl_B, first_B, variance_B, third_B)

    def _moments(self, weights_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The sum of the weights; mean, variance (Eq. 14) and third central moment of d under them."""
        total_B = weights_BV.sum(1).clamp(min=_TINY)
        weighted_BV = weights_BV * self.ratio_BV
        first_B = weighted_BV.sum(1) / total_B
        second_B = weighted_BV.mul_(self.ratio_BV).sum(1) / total_B
        third_B = weighted_BV.mul_(self.ratio_BV).sum(1) / total_B
        variance_B = (second_B - first_B.square()).clamp(min=0.0)
        return total_B, first_B, variance_B, third_B - 3.0 * first_B * second_B + 2.0 * first_B.pow(3)

    def _positive_sum(self, beta_B: torch.Tensor) -> torch.Tensor:
        """f of distributions close to p, to fourteen digits: with y = beta d and s = E_p(e^y - 1),
        f = E_p(y e^y - e^y + 1) / (1 + s) - (log(1 + s) - s / (1 + s)), whose second term is of the order of s².
        """
        y_BV = self.ratio_BV * beta_B[:, None]
        p_BV = self.p_BV / self.p_BV.sum(1, keepdim=True).clamp(min=_TINY)
        raised_BV = exp_(self.base_BV + y_BV - self.log_base_B[:, None])  # p e^y, also where p itself vanished
        grown_BV = torch.where(y_BV > 1.0, raised_BV - p_BV, p_BV * y_BV.clamp(max=1.0).expm1())  # p (e^y - 1)
        series_BV = p_BV * y_BV.square() * (0.5 + y_BV / 3.0 + y_BV.square() / 8.0)
        terms_BV = torch.where(y_BV.abs() < 1e-4, series_BV, grown_BV * (y_BV - 1.0) + p_BV * y_BV)
        s_B = grown_BV.sum(1)
        return terms_BV.sum(1) / (1.0 + s_B) - (torch.log1p(s_B) - s_B / (1.0 + s_B))


def _restricted(
    p: Distribution, q: Distribution, inside_BV: torch.Tensor
) -> tuple[Distribution, Distribution, torch.Tensor, torch.Tensor]:
    """Both models on S alone, not renormalised; log p(S); the logarithm of the sum of p's e^log_weights over S."""

    def inside(whole: Distribution) -> Distribution:
        log_weights_BV = torch.where(inside_BV, whole.log_weights_BV, NEVER)
        return Distribution(log_weights_BV, torch.where(inside_BV, whole.weights_BV, 0.0), whole.log_total_B)

    outside_B = torch.where(inside_BV, 0.0, p.weights_BV).sum(1)
    p, q = inside(p), inside(q)
    mass_B = p.weights_BV.sum(1)
    log_mass_B = -torch.log1p(outside_B / mass_B.clamp(min=_TINY))  # exact where it is next to 0, too
    log_base_B = p.log_total_B + log_mass_B
    lost_B = torch.minimum(mass_B, q.weights_BV.sum(1)) < _LOST
    if needed(lost_B):
        kept, log_kept_B = p.keeping(inside_BV)
        p = p.where(lost_B, kept)
        log_mass_B = torch.where(lost_B, log_kept_B, log_mass_B)
        log_base_B = torch.where(lost_B, kept.log_total_B, log_base_B)
        kept, _ = q.keeping(inside_BV)
        q = q.where(lost_B, kept)
    return p, q, log_mass_B, log_base_B

"""The search for the largest feasible beta of a row (Triton); the mathematics is that of `sglang_trb.blend.solver`.

KL(mu || p) is a sum of terms that are not negative. With y = beta d - A^, A^ a prediction of A(beta), w = p e^y,
h(y) = y e^y - e^y + 1 and s = sum w - 1:

    KL = sum p h(y) / (1 + s) - [log(1 + s) - s / (1 + s)],    A(beta) = A^ + log(1 + s).

A pass is float32, summed in float64, where log-ratios span at most NARROW nats and budgets are at least FINE: there
neither overflows, and KL is right to 2e-5 once A^ is. Elsewhere a pass is float64 and starts with A itself.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from sglang_trb.blend.fused.moments import LIMIT
from sglang_trb.blend.fused.rows import NEVER, load_tiles

NARROW: tl.constexpr = tl.constexpr(64.0)
FINE: tl.constexpr = tl.constexpr(1e-5)
TINY: tl.constexpr = tl.constexpr(1e-300)
HUGE: tl.constexpr = tl.constexpr(1e300)

KEEP: tl.constexpr = tl.constexpr(3e-5)
"""Share of a budget that is kept back for rounding."""

MARGIN: tl.constexpr = tl.constexpr(7e-5)
"""A feasible beta with KL >= budget (1 - MARGIN) is final."""

ULP: tl.constexpr = tl.constexpr(1.2e-7)
"""A bracket this narrow, relative, holds no further beta. They are float32: the one reported is the one drawn by."""

MOST_PASSES: tl.constexpr = tl.constexpr(80)


class Family(NamedTuple):
    """mu_beta ∝ p e^(beta d) on S: both rows, T, and the centre c of d = (t - s - c) / T."""

    peak: tl.tensor  # the student's, float32
    scale: tl.tensor  # 1 / T, float32
    inverse: tl.tensor  # 1 / T, float64
    centre: tl.tensor  # in two parts, float32
    centre_rest: tl.tensor
    mass: tl.tensor  # the sum of e^((s - peak) / T) over S
    wide: tl.tensor  # whether float32 will not do


class Point(NamedTuple):
    """KL(mu_beta || p on S), A and the mean, variance and third central moment of d under mu_beta; float64."""

    beta: tl.tensor
    divergence: tl.tensor
    log_normaliser: tl.tensor
    mean: tl.tensor
    variance: tl.tensor
    third: tl.tensor


@triton.jit
def choose(condition, this, other):
    """One of two points."""
    return Point(
        tl.where(condition, this.beta, other.beta),
        tl.where(condition, this.divergence, other.divergence),
        tl.where(condition, this.log_normaliser, other.log_normaliser),
        tl.where(condition, this.mean, other.mean),
        tl.where(condition, this.variance, other.variance),
        tl.where(condition, this.third, other.third),
    )


@triton.jit
def inside_both(s, t, family, peak_q):
    """Where both models can draw."""
    return ((s - family.peak) * family.scale > -LIMIT) & ((t - peak_q) * family.scale > -LIMIT)


@triton.jit
def below_peak(s, family, EXACT: tl.constexpr):
    """(s - peak) / T, float64 if EXACT, else float32."""
    if EXACT:
        return (s.to(tl.float64) - family.peak) * family.inverse
    else:
        return (s - family.peak) * family.scale


@triton.jit
def difference(s, t, family, EXACT: tl.constexpr):
    """d, to the last digit in float32 too: there the rounding of t - s is kept (Knuth's two-sum)."""
    if EXACT:
        return (t.to(tl.float64) - s.to(tl.float64) - family.centre - family.centre_rest) * family.inverse
    else:
        high = t - s
        back = high - t
        low = (t - (high - back)) - (s + back)
        return ((high - family.centre) + (low - family.centre_rest)) * family.scale


@triton.jit
def tilted(s, t, family, beta, log_normaliser, EXACT: tl.constexpr):
    """(s - peak) / T + beta d - A of tokens inside S."""
    if EXACT:
        return below_peak(s, family, True) + (beta * difference(s, t, family, True) - log_normaliser)
    else:
        tilt = beta.to(tl.float32) * difference(s, t, family, False) - log_normaliser.to(tl.float32)
        return below_peak(s, family, False) + tilt


@triton.jit
def search(
    pair, family, peak_q, budget, low, at_one, one_is_open, done,
    TILE: tl.constexpr, FORBIDS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The largest feasible beta visited, 0 if there is none, and the number of passes.

    Args: ``low`` is feasible, ``at_one`` is what is known of beta = 1; ``one_is_open`` asks for a pass there first.
    """
    high = at_one
    none_fits = done | True
    log_aim = tl.log(budget * (1.0 - (MARGIN + KEEP) / 2.0))
    closest = tl.full((), HUGE, tl.float64)
    stalled, met = done & False, done & False
    passes = tl.zeros((), tl.int32)
    while (done == 0) & (passes < MOST_PASSES):
        beta, fallback = _candidate(low, high, log_aim, stalled, met)
        beta = tl.where(one_is_open, 1.0, beta).to(tl.float32).to(tl.float64)
        predicted = tl.where(one_is_open, at_one.log_normaliser, _predicted(low, high, beta, log_aim))
        if family.wide:
            exact = _log_normaliser(pair, family, peak_q, beta, TILE // 4, FORBIDS, MASKED)
            point, _ = _pass(pair, family, peak_q, beta, exact, TILE // 4, FORBIDS, MASKED, True)
            passes += 2
        else:
            point, taken = _point(pair, family, peak_q, beta, predicted, TILE, FORBIDS, MASKED)
            passes += taken
        fits = point.divergence <= budget * (1.0 - KEEP)
        distance = tl.abs(tl.log(tl.maximum(point.divergence, TINY)) - log_aim)
        done = done | (fits & ((point.divergence >= budget * (1.0 - MARGIN)) | one_is_open))
        none_fits = none_fits & (fits == 0)
        low, high = choose(fits, point, low), choose(fits, high, point)
        done = done | (high.beta - low.beta <= high.beta * ULP)
        if one_is_open == 0:
            stalled = (distance > closest / 2.0) & (fallback == 0)
            met = met ^ fallback
            closest = tl.minimum(closest, distance)
        one_is_open = one_is_open & False
    return Point(
        tl.where(none_fits, 0.0, low.beta), low.divergence, low.log_normaliser, low.mean, low.variance, low.third
    ), passes


@triton.jit
def _candidate(low, high, log_aim, stalled, met):
    """The next beta, inside the bracket, and whether it is another than Halley's step from the nearer end."""
    log_low, log_high = tl.log(tl.maximum(low.beta, TINY)), tl.log(high.beta)
    middle = (log_low + log_high) / 2.0
    finite = high.divergence < HUGE
    low_is_near = _low_is_near(low, high, log_aim)
    from_low, from_high = _halley(low, log_aim), tl.where(finite, _halley(high, log_aim), middle)
    near, far = tl.where(low_is_near, from_low, from_high), tl.where(low_is_near, from_high, from_low)
    rise, turn = tl.maximum(high.divergence - low.divergence, TINY), tl.maximum(high.mean - low.mean, TINY)
    meeting = tl.where(finite, tl.log(rise / turn), middle)
    fallback = stalled | (near <= log_low) | (near >= log_high)
    other = tl.where(met, far, meeting)
    other = tl.where((other > log_low) & (other < log_high), other, middle)
    beta = tl.exp(tl.where(fallback, other, near))
    return tl.minimum(tl.maximum(beta, low.beta), high.beta), fallback


@triton.jit
def _low_is_near(low, high, log_aim):
    return log_aim - tl.log(tl.maximum(low.divergence, TINY)) <= tl.log(tl.maximum(high.divergence, TINY)) - log_aim


@triton.jit
def _halley(point, log_aim):
    """log beta where log KL should meet ``log_aim``; as `solver._Point.halley`."""
    kl = tl.maximum(point.divergence, TINY)
    slope = tl.minimum(tl.maximum(point.beta * point.beta * point.variance / kl, 1e-6), 1e15)
    bend = 2.0 * slope + point.beta * point.beta * point.beta * point.third / kl - slope * slope
    step = (log_aim - tl.log(kl)) / slope
    damping = tl.minimum(tl.maximum(1.0 + step * bend / (2.0 * slope), 0.5), 3.0)
    return tl.log(tl.maximum(point.beta, TINY)) + step / damping


@triton.jit
def _predicted(low, high, beta, log_aim):
    """A(beta) by Taylor from the nearer end, between the tangent at the lower end and the chord: A is convex."""
    near = choose(_low_is_near(low, high, log_aim), low, high)
    step = beta - near.beta
    taylor = near.log_normaliser + step * (near.mean + step * (near.variance / 2.0 + step * near.third / 6.0))
    tangent = low.log_normaliser + low.mean * (beta - low.beta)
    rise = (high.log_normaliser - low.log_normaliser) / tl.maximum(high.beta - low.beta, TINY)
    chord = tl.where(high.divergence < HUGE, low.log_normaliser + rise * (beta - low.beta), HUGE)
    return tl.minimum(tl.maximum(taylor, tangent), tl.maximum(chord, tangent))


@triton.jit
def _point(
    pair, family, peak_q, beta, predicted,
    TILE: tl.constexpr, FORBIDS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The point at ``beta`` by a float32 pass, and by a second one from the A that it found where it was coarse."""
    zero = tl.zeros((), tl.float64)
    point = Point(beta, zero, predicted, zero, zero, zero)
    taken, coarse = tl.zeros((), tl.int32), tl.full((), 1, tl.int32)
    while (coarse != 0) & (taken < 2):
        point, error = _pass(pair, family, peak_q, beta, point.log_normaliser, TILE, FORBIDS, MASKED, False)
        taken += 1
        coarse = ((error > 2e-5 * point.divergence) & (point.divergence < HUGE)).to(tl.int32)
    return point, taken


@triton.jit
def _log_normaliser(
    pair, family, peak_q, beta, TILE: tl.constexpr, FORBIDS: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """A(beta) by a pass in float64; each lane keeps a maximum of its own."""
    top, total = tl.full((TILE,), -1e300, tl.float64), tl.zeros((TILE,), tl.float64)
    for start in range(0, pair.size, TILE):
        s, t = load_tiles(pair, start, TILE, FORBIDS, MASKED)
        x = tl.where(inside_both(s, t, family, peak_q), tilted(s, t, family, beta, 0.0, True), NEVER)
        new = tl.maximum(top, x)
        total = total * tl.exp(top - new) + tl.exp(x - new)
        top = new
    peak = tl.max(top)
    return peak + tl.log(tl.maximum(tl.sum(total * tl.exp(top - peak)), TINY)) - tl.log(family.mass)


@triton.jit
def _pass(
    pair, family, peak_q, beta, predicted,
    TILE: tl.constexpr, FORBIDS: tl.constexpr, MASKED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The point at ``beta`` around a predicted A, and the error of its KL; in float64 if EXACT, else in float32."""
    if EXACT:
        zero, b, a = tl.zeros((TILE,), tl.float64), beta, predicted
    else:
        zero, b, a = tl.zeros((TILE,), tl.float32), beta.to(tl.float32), predicted.to(tl.float32)
    total, divergence, first, second, third = zero, zero, zero, zero, zero
    for start in range(0, pair.size, TILE):
        s, t = load_tiles(pair, start, TILE, FORBIDS, MASKED)
        inside = inside_both(s, t, family, peak_q)
        l_p = tl.where(inside, below_peak(s, family, EXACT), -1000.0)
        d = tl.where(inside, difference(s, t, family, EXACT), 0.0)
        p, y = tl.exp(l_p), b * d - a
        w = tl.where(inside, tl.exp(l_p + y), 0.0)
        series = 1.0 / 8 + y * (1.0 / 30 + y * (1.0 / 144 + y * (1.0 / 840)))
        series = y * y * (0.5 + y * (1.0 / 3 + y * series))
        small = tl.abs(y) < (1e-3 if EXACT else 0.25)
        divergence += tl.where(inside, tl.where(small, p * series, y * w - (w - p)), 0.0)
        total += w
        w = w * d
        first += w
        w = w * d
        second += w
        third += w * d
    return _assembled(
        beta, a.to(tl.float64), family.mass, tl.sum(total.to(tl.float64)), tl.sum(divergence.to(tl.float64)),
        tl.sum(first.to(tl.float64)), tl.sum(second.to(tl.float64)), tl.sum(third.to(tl.float64)),
    )  # fmt: skip


@triton.jit
def _assembled(beta, predicted, mass, total, divergence, first, second, third):
    """A point from the sums of a pass, and the error of its KL."""
    ratio = total / mass
    grown = (total - mass) / mass
    excess = log1p(grown)
    late = excess - grown / ratio
    late = tl.where(tl.abs(grown) > 0.02, late, grown * grown * (0.5 - grown * (2.0 / 3.0 - 0.75 * grown)))
    near = divergence / mass / ratio
    kl = near - late
    kl = tl.where(kl < HUGE, tl.maximum(kl, 0.0), HUGE)  # HUGE for a NaN, too
    error = 4e-7 * (near + tl.abs(late)) + 2e-7 * tl.abs(grown) / ratio
    mean, square, cube = first / total, second / total, third / total
    variance = tl.maximum(square - mean * mean, 0.0)
    return Point(beta, kl, predicted + excess, mean, variance, cube - mean * (3.0 * square - 2.0 * mean * mean)), error


@triton.jit
def log1p(x):
    """log(1 + x) of a float64 scalar, as exact where x is small."""
    sum = 1.0 + x
    added = sum - 1.0
    return tl.where(added == 0.0, x, tl.log(sum) * (x / tl.where(added == 0.0, 1.0, added)))

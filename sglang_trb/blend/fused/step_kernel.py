"""The step of a row as one Triton program: the search for its behaviour policy, and the draw.

Program i takes row i, so rows depend on nothing but themselves. What both rows' statistics say was measured before
(`moments`); the passes of the `search` and the scan of `drawing` read the logits again, as a rule from the cache. What
spans too much for float32 takes a slower way through the same program.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sglang_trb.blend.fused.drawing import Policy, draw, likeliest, store_policy, uniform
from sglang_trb.blend.fused.moments import (
    LIMIT,
    MEASURES,
    exact_masses,
    exact_teacher_kl,
    load_lost,
    load_measured,
    load_rows,
)
from sglang_trb.blend.fused.rows import NEVER, Stops, logit_of
from sglang_trb.blend.fused.search import FINE, NARROW, TINY, Family, Point, choose, exact_difference, log1p, search
from sglang_trb.blend.types import EMPTY_SUPPORT, OK, STUDENT_NOT_FINITE, TEACHER_NOT_FINITE
from sglang_trb.wire.rules import Rule

_TRUST_REGION: tl.constexpr = tl.constexpr(Rule.TRUST_REGION.code)
_TEACHER: tl.constexpr = tl.constexpr(Rule.TEACHER.code)
_ANY: tl.constexpr = tl.constexpr(1e10)
"""Nats; no KL is larger, so that a larger budget is as good as this one."""

_DRAWN: tl.constexpr = tl.constexpr(OK)
_STUDENT_BAD: tl.constexpr = tl.constexpr(STUDENT_NOT_FINITE)
_TEACHER_BAD: tl.constexpr = tl.constexpr(TEACHER_NOT_FINITE)
_EMPTY: tl.constexpr = tl.constexpr(EMPTY_SUPPORT)


@triton.jit
def draw_rows(
    student_ptr, teacher_ptr, law_ptr, forbidden_ptr, student_stride, teacher_stride, law_stride, forbidden_stride,
    raw_ptr, measured_ptr, rule_ptr, epsilon_ptr, temperature_ptr, greedy_ptr, seed_ptr, position_ptr,
    masked_ptr, canonical, lowest, highest, size, token_ptr, error_ptr, record_ptr, policy_ptr, passes_ptr, width,
    TILE: tl.constexpr, COLUMNS: tl.constexpr, MASKED: tl.constexpr, FORBIDS: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    """Program i draws the token of row i by its rule and writes what is known of it, and log mu if STORE.

    ``raw_ptr`` measures student and teacher as they are, ``measured_ptr`` as they are blended, where ``law_ptr`` holds
    the student's logits; both may be the same. The record's columns are the fields of `TokenRecord` in their order.
    """
    row = tl.program_id(0).to(tl.int64)
    stops = Stops(masked_ptr, canonical, lowest, highest)
    forbidden, teacher = forbidden_ptr + row * forbidden_stride, teacher_ptr + row * teacher_stride
    raw, measured = raw_ptr + row * MEASURES, measured_ptr + row * MEASURES
    p_row, q_row = load_rows(measured, law_ptr + row * law_stride, teacher, forbidden)
    inverse = 1.0 / tl.load(temperature_ptr + row).to(tl.float64)

    rule = tl.load(rule_ptr + row).to(tl.int32)
    error = _error(rule, raw, measured)
    tl.store(error_ptr + row, error)
    policy, family, kl, passes = _policy(
        p_row, q_row, stops, size, measured, rule, epsilon_ptr + row, inverse, error == _DRAWN,
        TILE, FORBIDS, MASKED,
    )  # fmt: skip
    token = canonical
    if error == _DRAWN:
        if tl.load(greedy_ptr + row) != 0:
            token = likeliest(p_row, q_row, stops, size, family, policy, TILE // 4, FORBIDS, MASKED)
        else:
            number = uniform(tl.load(seed_ptr + row), tl.load(position_ptr + row))
            token = draw(p_row, q_row, stops, size, family, policy, number, TILE, FORBIDS, MASKED)
        if token < 0:
            token = canonical
            tl.store(error_ptr + row, _EMPTY)
    if STORE:
        target = policy_ptr + row * width
        store_policy(p_row, q_row, stops, size, family, policy, width, target, TILE, FORBIDS, MASKED)

    s, t = logit_of(p_row, stops, token, MASKED), logit_of(q_row, stops, token, MASKED)
    record = record_ptr + row * COLUMNS
    tl.store(record, _behaviour_log_prob(s, t, measured, family, policy))
    tl.store(record + 3, policy.beta)
    tl.store(record + 4, kl)
    student_row, teacher_row = load_rows(raw, student_ptr + row * student_stride, teacher, forbidden)
    sums = load_measured(raw)
    log_p, log_q = tl.log(tl.maximum(sums.p.all, TINY)), tl.log(tl.maximum(sums.q.all, TINY))
    tl.store(record + 1, _log_prob(logit_of(student_row, stops, token, MASKED) - sums.peak_p, log_p))
    tl.store(record + 2, _log_prob(logit_of(teacher_row, stops, token, MASKED) - sums.peak_q, log_q))
    tl.store(record + 5, log_p - sums.p.log / sums.p.all)
    tl.store(record + 6, log_q - sums.q.log / sums.q.all)
    lost_p, lost_q = load_lost(raw)
    tl.store(record + 7, lost_p)
    tl.store(record + 8, lost_q)
    tl.store(token_ptr + row, token)
    tl.store(passes_ptr + row, passes)


@triton.jit
def _error(rule, raw, measured):
    """A value of ``StepOutput.error_B``; a rule that is not drawn here draws nothing."""
    own, law = load_measured(raw), load_measured(measured)
    empty = tl.where(rule == _TEACHER, law.q.all, law.p.all) == 0.0
    error = tl.where(empty | (rule > _TEACHER), _EMPTY, _DRAWN)
    error = tl.where(_finite(own.q.all), error, _TEACHER_BAD)
    return tl.where(_finite(own.p.all) & (law.p.all < float("inf")), error, _STUDENT_BAD)


@triton.jit
def _finite(total):
    return (total > 0.0) & (total < float("inf"))


@triton.jit
def _policy(
    p_row, q_row, stops, size, measured, rule, epsilon_at, inverse, sound,
    TILE: tl.constexpr, FORBIDS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The behaviour policy of a row, its family, KL(mu || p) in nats, and the passes of the search."""
    law, epsilon = load_measured(measured), tl.minimum(tl.load(epsilon_at), _ANY)
    p, q = law.p, law.q
    span = law.high - law.low
    far = (tl.abs(law.peak_p) > 1e30) | (tl.abs(law.peak_q) > 1e30)
    wide = far | (span > NARROW) | (epsilon < FINE) | (law.outside > 0.0)
    blends = sound & (rule == _TRUST_REGION) & (epsilon > 0.0)
    mass, budget = p.inside, epsilon
    if blends & wide:
        mass, outside = exact_masses(
            p_row, q_row, stops, size, inverse, law.peak_p, law.peak_q, TILE // 4, FORBIDS, MASKED
        )
        budget = epsilon - log1p(outside / tl.maximum(mass, TINY))

    # moments of d under p and q; centred at the mean under p, which cancels from mu and KL
    p_mean, p_square, p_cube = _raw_moments(p)
    q_mean, q_square, q_cube = _raw_moments(q)
    variance = tl.maximum(p_square - p_mean * p_mean, 1e-30)
    third = p_cube - p_mean * (3.0 * p_square - 2.0 * p_mean * p_mean)
    centre = p_mean / inverse + (law.peak_q.to(tl.float64) - law.peak_p.to(tl.float64))
    high = centre.to(tl.float32)
    family = Family(law.peak_p, inverse.to(tl.float32), inverse, high, (centre - high).to(tl.float32), mass, wide)
    log_normaliser = tl.log(tl.maximum(q.inside, TINY)) - tl.log(tl.maximum(p.inside, TINY)) - p_mean
    mean = q_mean - p_mean
    at_one = Point(
        tl.full((), 1.0, tl.float64), mean - log_normaliser, log_normaliser, mean,
        tl.maximum(q_square - q_mean * q_mean, 0.0), q_cube - q_mean * (3.0 * q_square - 2.0 * q_mean * q_mean),
    )  # fmt: skip

    enabled = blends & (mass > 0.0) & (budget > 0.0)
    budget = tl.maximum(budget, TINY)
    error = 2e-6 * (1.0 + tl.abs(log_normaliser) + tl.abs(mean))
    certain = (wide == 0) & (error < 1e-4 * at_one.divergence)
    saturated = enabled & certain & (at_one.divergence + error <= budget * (1.0 - 1e-3))
    one_is_open = wide | (at_one.divergence - error <= budget * (1.0 + 1e-3))
    found, passes = search(
        p_row, q_row, stops, size, family, law.peak_q, budget, _below(budget, span, variance, third), at_one,
        one_is_open, saturated | (enabled == 0), TILE, FORBIDS, MASKED,
    )  # fmt: skip
    found = choose(saturated, at_one, found)

    kl = found.divergence + (
        tl.minimum(tl.load(epsilon_at, volatile=True), _ANY) - budget
    )  # less log p(S); read anew, for want of registers
    mode = tl.where(found.beta > 0.0, 2, 0)
    rounding = found.log_normaliser - found.log_normaliser.to(tl.float32).to(tl.float64)
    total = tl.where(mode == 2, mass * tl.where(wide, 1.0, tl.exp(rounding)), load_measured(measured).p.all)
    beta = found.beta
    if rule == _TEACHER:
        mode, total, beta = mode * 0 + 1, load_measured(measured).q.all, beta * 0.0 + 1.0
        kl = exact_teacher_kl(p_row, q_row, stops, size, inverse, law.peak_p, law.peak_q, TILE // 4, FORBIDS, MASKED)
    kl = tl.where(mode == 0, 0.0, tl.maximum(kl, 0.0))
    return Policy(mode, beta, found.log_normaliser, law.peak_q, total), family, kl, passes


@triton.jit
def _raw_moments(sums):
    inside = tl.maximum(sums.inside, TINY)
    return sums.first / inside, sums.second / inside, sums.third / inside


@triton.jit
def _below(budget, span, variance, third):
    """A feasible point in closed form; as `solver._Family.below`."""
    beta = tl.minimum(tl.sqrt(6.0 * budget) / tl.maximum(span, 1e-12), 0.5)
    skew = tl.minimum(tl.maximum(beta * third / variance, -0.5), 0.5)
    half = variance * beta * beta / 2.0
    kl = tl.minimum(half * (1.0 + skew * (2.0 / 3.0)), budget * 0.75)
    return Point(beta, kl, half, beta * variance, variance * (1.0 + skew), variance * skew / tl.maximum(beta, TINY))


@triton.jit
def _log_prob(below_peak, log_total):
    return tl.where(below_peak > -LIMIT, below_peak - log_total, NEVER)


@triton.jit
def _behaviour_log_prob(s, t, measured, family, policy):
    """log mu of the token whose logits are ``s`` and ``t``, float64."""
    law = load_measured(measured)
    l_p, l_q = (s - law.peak_p) * family.inverse, (t - law.peak_q) * family.inverse
    student, teacher = l_p - tl.log(tl.maximum(law.p.all, TINY)), l_q - tl.log(tl.maximum(law.q.all, TINY))
    at_one = l_q - tl.log(tl.maximum(law.q.inside, TINY))
    tilt = policy.beta * exact_difference(s, t, family) - policy.log_normaliser
    between = l_p + tilt - tl.log(tl.maximum(family.mass, TINY))
    blended = tl.where((policy.beta == 1.0) & (family.wide == 0), at_one, between)
    return tl.where(policy.mode == 0, student, tl.where(policy.mode == 1, teacher, blended))

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
from sglang_trb.blend.fused.rows import NEVER, Pair, Stops, logit_of
from sglang_trb.blend.fused.search import FINE, NARROW, TINY, Family, Point, choose, log1p, search, tilted
from sglang_trb.blend.types import EMPTY_SUPPORT, OK, STUDENT_NOT_FINITE, TEACHER_NOT_FINITE
from sglang_trb.wire.rules import Rule

_TRUST_REGION: tl.constexpr = tl.constexpr(Rule.TRUST_REGION.code)
_STUDENT: tl.constexpr = tl.constexpr(Rule.STUDENT.code)
_TEACHER: tl.constexpr = tl.constexpr(Rule.TEACHER.code)
_ANY: tl.constexpr = tl.constexpr(1e10)
"""Nats; no KL is larger, so that a larger budget is as good as this one."""

_DRAWN: tl.constexpr = tl.constexpr(OK)
_STUDENT_BAD: tl.constexpr = tl.constexpr(STUDENT_NOT_FINITE)
_TEACHER_BAD: tl.constexpr = tl.constexpr(TEACHER_NOT_FINITE)
_EMPTY: tl.constexpr = tl.constexpr(EMPTY_SUPPORT)


@triton.jit
def draw_rows(
    student_ptr, teacher_ptr, adjusted_ptr, forbidden_ptr,
    student_stride, teacher_stride, adjusted_stride, forbidden_stride,
    raw_ptr, measured_ptr, rule_ptr, epsilon_ptr, temperature_ptr, greedy_ptr, seed_ptr, position_ptr,
    masked_ptr, canonical, lowest, highest, size, token_ptr, error_ptr, record_ptr, policy_ptr, passes_ptr, width,
    TILE: tl.constexpr, COLUMNS: tl.constexpr, MASKED: tl.constexpr, FORBIDS: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    """Program i draws the token of row i by its rule and writes what is known of it, and log mu if STORE.

    ``raw_ptr`` measures student and teacher as they are, ``measured_ptr`` as they are blended, the student's logits
    then being those of ``adjusted_ptr``; both may be the same. The record's columns are the fields of `TokenRecord`.
    """
    row = tl.program_id(0).to(tl.int64)
    stops = Stops(masked_ptr, canonical, lowest, highest)
    forbidden, teacher = forbidden_ptr + row * forbidden_stride, teacher_ptr + row * teacher_stride
    raw, measured = raw_ptr + row * MEASURES, measured_ptr + row * MEASURES
    p_row, q_row = load_rows(measured, adjusted_ptr + row * adjusted_stride, teacher, forbidden)
    pair = Pair(p_row, q_row, stops, size)
    inverse = 1.0 / tl.load(temperature_ptr + row).to(tl.float64)

    rule = tl.load(rule_ptr + row).to(tl.int32)
    error = _error(rule, raw, measured)
    tl.store(error_ptr + row, error)
    policy, family, kl, passes = _policy(
        pair, measured, rule, tl.load(epsilon_ptr + row), inverse, error == _DRAWN, TILE, FORBIDS, MASKED
    )  # fmt: skip
    token = canonical
    if error == _DRAWN:
        if tl.load(greedy_ptr + row) != 0:
            token = likeliest(pair, family, policy, TILE // 4, FORBIDS, MASKED)
        else:
            number = uniform(tl.load(seed_ptr + row), tl.load(position_ptr + row))
            token = draw(pair, family, policy, number, TILE, FORBIDS, MASKED)
        if token < 0:
            token = canonical
            tl.store(error_ptr + row, _EMPTY)
    if STORE:
        target = policy_ptr + row * width
        store_policy(pair, family, policy, width, target, TILE, FORBIDS, MASKED)

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
    own, blended = load_measured(raw), load_measured(measured)
    known = (rule == _TRUST_REGION) | (rule == _STUDENT) | (rule == _TEACHER)
    empty = tl.where(rule == _TEACHER, blended.q.all, blended.p.all) == 0.0
    error = tl.where(known & (empty == 0), _DRAWN, _EMPTY)
    error = tl.where(_finite(own.q.all), error, _TEACHER_BAD)
    return tl.where(_finite(own.p.all) & (blended.p.all < float("inf")), error, _STUDENT_BAD)


@triton.jit
def _finite(total):
    return (total > 0.0) & (total < float("inf"))


@triton.jit
def _policy(
    pair, measured, rule, epsilon, inverse, sound, TILE: tl.constexpr, FORBIDS: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """The behaviour policy of a row, its family, KL(mu || p) in nats, and the passes of the search."""
    sums = load_measured(measured)
    peak_p, peak_q = sums.peak_p, sums.peak_q
    epsilon = tl.minimum(epsilon, _ANY)
    far = (tl.abs(peak_p) > 1e30) | (tl.abs(peak_q) > 1e30)
    wide = far | (sums.high - sums.low > NARROW) | (epsilon < FINE) | (sums.outside > 0.0)
    blends = sound & (rule == _TRUST_REGION) & (epsilon > 0.0)
    mass, log_mass = sums.p.inside, tl.zeros((), tl.float64)  # log p(S)
    if blends & wide:
        mass, outside = exact_masses(pair, inverse, peak_p, peak_q, TILE // 4, FORBIDS, MASKED)
        log_mass = -log1p(outside / tl.maximum(mass, TINY))

    mean, variance, third = _moments(sums.p)
    centre = mean / inverse + (peak_q.to(tl.float64) - peak_p.to(tl.float64))  # E_p r; any cancels from mu and KL
    high = centre.to(tl.float32)
    family = Family(peak_p, inverse.to(tl.float32), inverse, high, (centre - high).to(tl.float32), mass, wide)
    at_one = _at_one(sums, mean)

    enabled = blends & (mass > 0.0) & (epsilon + log_mass > 0.0)
    budget = tl.maximum(epsilon + log_mass, TINY)
    error = 2e-6 * (1.0 + tl.abs(at_one.log_normaliser) + tl.abs(at_one.mean))
    certain = (wide == 0) & (error < 1e-4 * at_one.divergence)
    saturated = enabled & certain & (at_one.divergence + error <= budget * (1.0 - 1e-3))
    one_is_open = wide | (at_one.divergence - error <= budget * (1.0 + 1e-3))
    found, passes = search(
        pair, family, peak_q, budget, _below(budget, sums.high - sums.low, variance, third), at_one, one_is_open,
        saturated | (enabled == 0), TILE, FORBIDS, MASKED,
    )  # fmt: skip
    found = choose(saturated, at_one, found)

    mode = tl.where(rule == _TEACHER, 1, tl.where(found.beta > 0.0, 2, 0))
    rounding = found.log_normaliser - found.log_normaliser.to(tl.float32).to(tl.float64)
    blended = mass * tl.where(wide, 1.0, tl.exp(rounding))
    total = tl.where(mode == 0, sums.p.all, tl.where(mode == 1, sums.q.all, blended))
    kl = tl.where(mode == 2, tl.maximum(found.divergence - log_mass, 0.0), 0.0)
    if mode == 1:
        kl = exact_teacher_kl(pair, inverse, peak_p, peak_q, TILE // 4, FORBIDS, MASKED)
    beta = tl.where(mode == 1, 1.0, found.beta)
    return Policy(mode, beta, found.log_normaliser, peak_q, total), family, kl, passes


@triton.jit
def _moments(sums):
    """Mean, variance and third central moment of d under one model on S."""
    inside = tl.maximum(sums.inside, TINY)
    mean, square, cube = sums.first / inside, sums.second / inside, sums.third / inside
    return mean, tl.maximum(square - mean * mean, 1e-30), cube - mean * (3.0 * square - 2.0 * mean * mean)


@triton.jit
def _at_one(sums, centre):
    """What the sums say of beta = 1, where mu is the teacher's distribution on S; d less ``centre``."""
    mean, variance, third = _moments(sums.q)
    log_normaliser = tl.log(tl.maximum(sums.q.inside, TINY)) - tl.log(tl.maximum(sums.p.inside, TINY)) - centre
    one = tl.full((), 1.0, tl.float64)
    return Point(one, mean - centre - log_normaliser, log_normaliser, mean - centre, variance, third)


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
    sums = load_measured(measured)
    l_p, l_q = (s - sums.peak_p) * family.inverse, (t - sums.peak_q) * family.inverse
    student, teacher = l_p - tl.log(tl.maximum(sums.p.all, TINY)), l_q - tl.log(tl.maximum(sums.q.all, TINY))
    at_one = l_q - tl.log(tl.maximum(sums.q.inside, TINY))
    between = tilted(s, t, family, policy.beta, policy.log_normaliser, True) - tl.log(tl.maximum(family.mass, TINY))
    blended = tl.where((policy.beta == 1.0) & (family.wide == 0), at_one, between)
    return tl.where(policy.mode == 0, student, tl.where(policy.mode == 1, teacher, blended))

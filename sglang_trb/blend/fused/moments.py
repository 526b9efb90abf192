"""The pass over both rows from which everything starts: normalisers, entropies, moments of the log-ratio (Triton).

l = (logit - peak) / T of each model, d = l_q - l_p; S is where both models can draw. Sums are float32 within a lane and
float64 across lanes.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from sglang_trb.blend.fused.rows import (
    GROUP,
    LOWEST,
    Pair,
    Row,
    Stops,
    load_tiles,
    lost_mass,
    row_of,
    row_peak,
)

LIMIT: tl.constexpr = tl.constexpr(1e9)
"""As `sglang_trb.blend.distribution.LIMIT`: nats below the largest logit from which on a token counts as forbidden."""

FAR: tl.constexpr = tl.constexpr(1e10)
"""A sum of e from which on the peak is too low: e^(23 + 64), 64 nats being what float32 may span in `search`, is still
less than the largest float32."""

MEASURES: tl.constexpr = tl.constexpr(24)
"""Numbers kept of a pair of rows; float64."""


class Sums(NamedTuple):
    """Of one model, with e = exp(l): sums over its own support, then over S; float64."""

    all: tl.tensor  # e
    log: tl.tensor  # e l
    inside: tl.tensor  # e, over S
    first: tl.tensor  # e d
    second: tl.tensor  # e d^2
    third: tl.tensor  # e d^3


class Measured(NamedTuple):
    """Both models' sums, the peaks they refer to, the range of d over S (0 included), and the student's mass off S."""

    p: Sums
    q: Sums
    peak_p: tl.tensor
    peak_q: tl.tensor
    low: tl.tensor
    high: tl.tensor
    outside: tl.tensor


@triton.jit
def measure_rows(
    student_ptr, teacher_ptr, forbidden_ptr, student_stride, teacher_stride, forbidden_stride, temperature_ptr,
    ids_ptr, canonical, lowest, highest, size, measured_ptr, maxima_p_ptr, maxima_q_ptr,
    TILE: tl.constexpr, GROUPS: tl.constexpr, OWN_P: tl.constexpr, OWN_Q: tl.constexpr, MASKED: tl.constexpr,
    LOST_P: tl.constexpr, LOST_Q: tl.constexpr, TEMPERED: tl.constexpr, FORBIDS: tl.constexpr,
    KEEP_P: tl.constexpr, KEEP_Q: tl.constexpr,
):  # fmt: skip
    """Program i measures row i and writes MEASURES numbers; read them with `load_measured`, `load_row`, `load_lost`.

    TEMPERED: whether logits are divided by a temperature. KEEP_P, KEEP_Q: whether to keep each GROUP's largest logit.
    The lists of ids follow each other: own stop ids of student and teacher (OWN_P, OWN_Q of them), those that alignment
    masks (MASKED; -1: it changes nothing), and those of the latter that are not the model's own (LOST_P, LOST_Q).
    """
    row = tl.program_id(0).to(tl.int64)
    inverse = tl.full((), 1.0, tl.float64)
    if TEMPERED:
        inverse = 1.0 / tl.load(temperature_ptr + row).to(tl.float64)
    own_q = ids_ptr + OWN_P
    masked = own_q + OWN_Q
    lost_p = masked + max(MASKED, 0)
    forbidden = forbidden_ptr + row * forbidden_stride
    pair = Pair(
        row_of(student_ptr + row * student_stride, forbidden, ids_ptr, inverse, OWN_P, FORBIDS),
        row_of(teacher_ptr + row * teacher_stride, forbidden, own_q, inverse, OWN_Q, FORBIDS),
        Stops(masked, canonical, lowest, highest),
        size,
    )
    found = _measured(
        pair, inverse.to(tl.float32),
        maxima_p_ptr + row * GROUPS, maxima_q_ptr + row * GROUPS, TILE, FORBIDS, MASKED, KEEP_P, KEEP_Q,
    )  # fmt: skip
    measured = measured_ptr + row * MEASURES
    for i in tl.static_range(6):
        tl.store(measured + i, found.p[i])
        tl.store(measured + 6 + i, found.q[i])
    tl.store(measured + 12, found.peak_p.to(tl.float64))
    tl.store(measured + 13, found.peak_q.to(tl.float64))
    tl.store(measured + 14, found.low)
    tl.store(measured + 15, found.high)
    tl.store(measured + 16, found.outside)
    tl.store(measured + 17, pair.p.stop.to(tl.float64))
    tl.store(measured + 18, pair.q.stop.to(tl.float64))
    tl.store(measured + 19, lost_mass(pair.p, lost_p, found.peak_p, found.p.all, LOST_P))
    tl.store(measured + 20, lost_mass(pair.q, lost_p + LOST_P, found.peak_q, found.q.all, LOST_Q))


@triton.jit
def load_measured(measured):
    """What was measured of one pair of rows."""
    p = Sums(
        tl.load(measured), tl.load(measured + 1), tl.load(measured + 2), tl.load(measured + 3), tl.load(measured + 4),
        tl.load(measured + 5),
    )  # fmt: skip
    q = Sums(
        tl.load(measured + 6), tl.load(measured + 7), tl.load(measured + 8), tl.load(measured + 9),
        tl.load(measured + 10), tl.load(measured + 11),
    )  # fmt: skip
    peak_p, peak_q = tl.load(measured + 12).to(tl.float32), tl.load(measured + 13).to(tl.float32)
    return Measured(p, q, peak_p, peak_q, tl.load(measured + 14), tl.load(measured + 15), tl.load(measured + 16))


@triton.jit
def load_rows(measured, student, teacher, forbidden):
    """Both rows with their stop events, from where their logits lie."""
    stop_p, stop_q = tl.load(measured + 17).to(tl.float32), tl.load(measured + 18).to(tl.float32)
    return Row(student, forbidden, stop_p), Row(teacher, forbidden, stop_q)


@triton.jit
def load_lost(measured):
    """The probabilities that alignment masks: the student's, the teacher's."""
    return tl.load(measured + 19), tl.load(measured + 20)


@triton.jit
def _measured(
    pair, scale, maxima_p, maxima_q,
    TILE: tl.constexpr, FORBIDS: tl.constexpr, MASKED: tl.constexpr, KEEP_P: tl.constexpr, KEEP_Q: tl.constexpr,
):  # fmt: skip
    """One pass at the inverse temperature ``scale``; a second one where the first tile's peak was too low to refer to.

    Too low is a peak above which a tile of the search could overflow, or the sums did. After a second pass the peaks
    are exact, and +inf tells of a NaN or a +inf.
    """
    s, t = load_tiles(pair, 0, TILE, FORBIDS, MASKED)
    peak_p, peak_q = tl.maximum(tl.max(s), LOWEST), tl.maximum(tl.max(t), LOWEST)
    none = tl.zeros((), tl.float64)
    nothing = Sums(none, none, none, none, none, none)
    found = Measured(nothing, nothing, peak_p, peak_q, none, none, none)
    passes = tl.zeros((), tl.int32)
    while passes < 2:
        found = _sums(
            pair, scale, found.peak_p, found.peak_q, maxima_p, maxima_q,
            TILE, FORBIDS, MASKED, KEEP_P, KEEP_Q,
        )  # fmt: skip
        passes += 1
        p, q = found.p, found.q
        check = p.all + q.all + p.log + q.log + p.second + q.second + tl.abs(p.third) + tl.abs(q.third) + found.outside
        if (check - check == 0.0) & (tl.maximum(p.all, q.all) < FAR):
            passes += 1
        else:
            if passes < 2:
                peak_p = tl.maximum(row_peak(pair.p, pair.stops, pair.size, TILE, FORBIDS, MASKED), LOWEST)
                peak_q = tl.maximum(row_peak(pair.q, pair.stops, pair.size, TILE, FORBIDS, MASKED), LOWEST)
                found = Measured(p, q, peak_p, peak_q, found.low, found.high, found.outside)
    return found


@triton.jit
def _sums(
    pair, scale, peak_p, peak_q, maxima_p, maxima_q,
    TILE: tl.constexpr, FORBIDS: tl.constexpr, MASKED: tl.constexpr, KEEP_P: tl.constexpr, KEEP_Q: tl.constexpr,
):  # fmt: skip
    zero = tl.zeros((TILE,), tl.float32)
    p_all, p_log, p_in, p_1, p_2, p_3 = zero, zero, zero, zero, zero, zero
    q_all, q_log, q_in, q_1, q_2, q_3 = zero, zero, zero, zero, zero, zero
    low, high, outside = zero, zero, zero
    for start in range(0, pair.size, TILE):
        s, t = load_tiles(pair, start, TILE, FORBIDS, MASKED)
        if KEEP_P:
            _keep_maxima(maxima_p, s, start, TILE)
        if KEEP_Q:
            _keep_maxima(maxima_q, t, start, TILE)
        l_p, l_q = (s - peak_p) * scale, (t - peak_q) * scale
        can_p, can_q = l_p > -LIMIT, l_q > -LIMIT
        e_p, e_q = tl.exp(l_p), tl.exp(l_q)
        p_all += e_p
        q_all += e_q
        p_log += tl.where(can_p, e_p * l_p, 0.0)
        q_log += tl.where(can_q, e_q * l_q, 0.0)
        inside = can_p & can_q
        d = tl.where(inside, l_q - l_p, 0.0)
        outside += tl.where(can_p & (inside == 0), e_p, 0.0)
        e_p, e_q = tl.where(inside, e_p, 0.0), tl.where(inside, e_q, 0.0)
        p_in += e_p
        q_in += e_q
        e_p, e_q = e_p * d, e_q * d
        p_1 += e_p
        q_1 += e_q
        e_p, e_q = e_p * d, e_q * d
        p_2 += e_p
        q_2 += e_q
        p_3 += e_p * d
        q_3 += e_q * d
        low, high = tl.minimum(low, d), tl.maximum(high, d)
    p = Sums(_sum(p_all), _sum(p_log), _sum(p_in), _sum(p_1), _sum(p_2), _sum(p_3))
    q = Sums(_sum(q_all), _sum(q_log), _sum(q_in), _sum(q_1), _sum(q_2), _sum(q_3))
    return Measured(p, q, peak_p, peak_q, tl.min(low).to(tl.float64), tl.max(high).to(tl.float64), _sum(outside))


@triton.jit
def _sum(lanes):
    return tl.sum(lanes.to(tl.float64))


@triton.jit
def _keep_maxima(maxima, tile, start, TILE: tl.constexpr):
    groups = tl.max(tl.reshape(tile, (TILE // GROUP, GROUP)), axis=1)
    tl.store(maxima + start // GROUP + tl.arange(0, TILE // GROUP), groups)


@triton.jit
def exact_masses(
    pair, inverse, peak_p, peak_q, TILE: tl.constexpr, FORBIDS: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """The student's e summed over S, and off S, in float64."""
    zero = tl.zeros((TILE,), tl.float64)
    inside, outside = zero, zero
    for start in range(0, pair.size, TILE):
        s, t = load_tiles(pair, start, TILE, FORBIDS, MASKED)
        _, e_p, _ = _exact_weights(s, peak_p, inverse)
        _, _, can_q = _exact_weights(t, peak_q, inverse)
        inside += tl.where(can_q, e_p, 0.0)
        outside += tl.where(can_q, 0.0, e_p)
    return tl.sum(inside), tl.sum(outside)


@triton.jit
def exact_teacher_kl(
    pair, inverse, peak_p, peak_q, TILE: tl.constexpr, FORBIDS: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """KL(q || p) in nats, +inf where the teacher can draw what the student cannot; in float64."""
    zero = tl.zeros((TILE,), tl.float64)
    total_p, total_q, first, beyond = zero, zero, zero, zero
    for start in range(0, pair.size, TILE):
        s, t = load_tiles(pair, start, TILE, FORBIDS, MASKED)
        l_p, e_p, can_p = _exact_weights(s, peak_p, inverse)
        l_q, e_q, _ = _exact_weights(t, peak_q, inverse)
        total_p += e_p
        total_q += e_q
        first += tl.where(can_p, e_q * (l_q - l_p), 0.0)
        beyond += tl.where(can_p, 0.0, e_q)
    z_p, z_q = tl.maximum(tl.sum(total_p), 1e-300), tl.maximum(tl.sum(total_q), 1e-300)
    kl = tl.maximum(tl.sum(first) / z_q - tl.log(z_q) + tl.log(z_p), 0.0)
    return tl.where(tl.sum(beyond) > 1e-300, float("inf"), kl)


@triton.jit
def _exact_weights(logits, peak, inverse):
    """l, e and whether the token can be drawn; l and e are 0 where it cannot."""
    log = (logits.to(tl.float64) - peak) * inverse
    can = log > -LIMIT
    log = tl.where(can, log, 0.0)
    return log, tl.where(can, tl.exp(log), 0.0), can

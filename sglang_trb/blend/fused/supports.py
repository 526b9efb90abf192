"""The 16 most likely ids of a row and what both models say of them (Triton).

The step's kernel keeps the largest logit of each group of 128 columns. The 16 groups with the largest ones hold the 16
most likely ids: a token outside them has 16 others before it. Ties go to the lowest id.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sglang_trb.blend.fused.moments import LIMIT, MEASURES, load_measured, load_rows
from sglang_trb.blend.fused.rows import GROUP, LOWEST, NEVER

COUNT: tl.constexpr = tl.constexpr(16)


@triton.jit
def most_likely(
    student_ptr, teacher_ptr, student_stride, teacher_stride, maxima_ptr, measured_ptr, masked_ptr, canonical, size,
    ids_ptr, log_p_ptr, log_q_ptr, KEPT: tl.constexpr, GROUPS: tl.constexpr, POWER: tl.constexpr,
    MASKED: tl.constexpr, TEACHERS: tl.constexpr,
):  # fmt: skip
    """Program i writes row i's KEPT <= 16 ids, of the teacher if TEACHERS, and their log-probabilities.

    ``maxima_ptr`` and ``measured_ptr`` come from `moments.measure_rows`; GROUPS maxima a row, POWER a power of 2 above.
    """
    row = tl.program_id(0).to(tl.int64)
    student, teacher = student_ptr + row * student_stride, teacher_ptr + row * teacher_stride
    measured = measured_ptr + row * MEASURES
    sums = load_measured(measured)
    student_row, teacher_row = load_rows(measured, student, teacher, student)
    stop_p, stop_q = student_row.stop, teacher_row.stop

    groups = tl.arange(0, POWER)
    maxima = tl.load(maxima_ptr + row * GROUPS + groups, mask=groups < GROUPS, other=NEVER)
    maxima = tl.where(groups < GROUPS, tl.maximum(maxima, LOWEST), NEVER)
    places = tl.arange(0, COUNT)
    chosen = tl.full((COUNT,), GROUPS, tl.int32)
    for i in range(COUNT):
        top = tl.max(maxima)
        at = tl.min(tl.where((maxima == top) & (groups < GROUPS), groups, GROUPS))
        chosen = tl.where(places == i, tl.where(top > NEVER, at, GROUPS), chosen)
        maxima = tl.where(groups == at, NEVER, maxima)

    columns = tl.ravel(chosen[:, None] * GROUP + tl.arange(0, GROUP)[None, :])
    if TEACHERS:
        logits = tl.load(teacher + columns, mask=columns < size, other=NEVER).to(tl.float32)
        logits = _aligned(logits, columns, stop_q, canonical, masked_ptr, MASKED)
    else:
        logits = tl.load(student + columns, mask=columns < size, other=NEVER).to(tl.float32)
        logits = _aligned(logits, columns, stop_p, canonical, masked_ptr, MASKED)
    logits = tl.where(columns < size, tl.maximum(logits, LOWEST), NEVER)
    for i in range(KEPT):
        top = tl.max(logits)
        token = tl.min(tl.where((logits == top) & (columns < size), columns, size - 1))
        logits = tl.where(columns == token, NEVER, logits)
        s, t = tl.load(student + token).to(tl.float64), tl.load(teacher + token).to(tl.float64)
        s = _aligned(s, token, stop_p.to(tl.float64), canonical, masked_ptr, MASKED) - sums.peak_p
        t = _aligned(t, token, stop_q.to(tl.float64), canonical, masked_ptr, MASKED) - sums.peak_q
        place = row * KEPT + i
        tl.store(ids_ptr + place, token)
        tl.store(log_p_ptr + place, tl.where(s > -LIMIT, s - tl.log(sums.p.all), NEVER))
        tl.store(log_q_ptr + place, tl.where(t > -LIMIT, t - tl.log(sums.q.all), NEVER))


@triton.jit
def _aligned(logits, columns, stop, canonical, masked_ptr, MASKED: tl.constexpr):
    if MASKED >= 0:
        logits = tl.where(columns == canonical, stop, logits)
        for i in tl.static_range(MASKED):
            logits = tl.where(columns == tl.load(masked_ptr + i), NEVER, logits)
    return logits

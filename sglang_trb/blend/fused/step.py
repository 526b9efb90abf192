"""`blend_step` by the fused kernels: two to five launches, whatever the mix of rules.

Legend: _B rows, _V vocabulary, _G groups of 128 columns, _M measures, _C columns of a record, _K ids of a support.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import torch

from sglang_trb.blend.fused import launch
from sglang_trb.blend.types import RowControls, StepLogits, StepOutput
from sglang_trb.pair.alignment import StopAlignment
from sglang_trb.wire.record import RECORD_COLUMNS, SUPPORT_SIZE, Support, TokenRecord


def fused_step(logits: StepLogits, controls: RowControls, alignment: StopAlignment, *, need_log_mu: bool) -> StepOutput:
    """As `blend_step`, for rows of the rules ``trust_region``, ``student`` and ``teacher`` without a filter.

    Args:
        logits: float32, bfloat16 or float16.

    Returns:
        What `blend_step` returns; a row of another rule comes back as EMPTY_SUPPORT. No host synchronisation, no
        data-dependent shape: safe in a CUDA graph once it ran outside of one.
    """
    logits = logits.map(lambda matrix: matrix if matrix.stride(1) == 1 else matrix.contiguous())
    rows, size = logits.student_BV.shape[0], logits.size
    stops = _stops(alignment, logits.student_BV.device)

    def empty(columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return logits.student_BV.new_empty((rows, columns), dtype=dtype)

    maxima = [
        empty(launch.groups_of(size)) if wanted else None
        for wanted in (controls.need_support, controls.need_teacher_support)
    ]
    raw_BM, measured_BM = _measured(logits, controls, stops, maxima, empty(launch.MEASURES.value, torch.float64))
    record_BC, log_mu_BV = empty(RECORD_COLUMNS), empty(logits.student_BV.shape[1]) if need_log_mu else None
    token_ids_B, error_B, passes_B = (empty(1, dtype).squeeze(1) for dtype in (torch.int64, torch.int8, torch.int32))
    if rows:
        launch.draw(
            logits.student_BV, logits.teacher_BV,
            logits.student_BV if logits.adjusted_BV is None else logits.adjusted_BV,
            _bytes(logits.mask_BV), raw_BM, measured_BM, controls.rule_B.contiguous(),
            controls.settings["epsilon"].contiguous(), controls.temperature_B.contiguous(),
            controls.greedy_B.contiguous().view(torch.int8), controls.seed_B.contiguous(),
            controls.position_B.long().contiguous(), stops.masked_ids, stops.counts[2], stops.span, size,
            token_ids_B, error_B, record_BC, log_mu_BV, passes_B,
        )  # fmt: skip

    def support(maxima_BG: torch.Tensor | None, of_teacher: bool) -> Support[torch.Tensor] | None:
        if maxima_BG is None:
            return None
        kept = min(SUPPORT_SIZE, size)
        found = Support(empty(kept, torch.int32), empty(kept), empty(kept))
        if rows:
            launch.support(
                logits.student_BV, logits.teacher_BV, maxima_BG, raw_BM, stops.masked_ids, stops.counts[2],
                alignment.canonical_id, size, of_teacher, *found.columns(),
            )  # fmt: skip
        return found

    record = TokenRecord(*record_BC.unbind(1))
    supports = support(maxima[0], False), support(maxima[1], True)
    return StepOutput(token_ids_B, record, error_B, *supports, log_mu_BV, passes_B)


def _measured(
    logits: StepLogits,
    controls: RowControls,
    stops: _Stops,
    maxima: list[torch.Tensor | None],
    raw_BM: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is measured of the logits as they are, and as they are blended; the same where nothing changes them."""
    if raw_BM.shape[0] == 0:
        return raw_BM, raw_BM
    launch.measure(
        logits.student_BV, logits.teacher_BV, None, None, stops.ids, stops.counts, stops.span, logits.size, raw_BM,
        *maxima,
    )  # fmt: skip
    if not (logits.changed or controls.any_temperature):
        return raw_BM, raw_BM
    measured_BM = torch.empty_like(raw_BM)
    launch.measure(
        logits.student_BV if logits.adjusted_BV is None else logits.adjusted_BV, logits.teacher_BV,
        _bytes(logits.mask_BV), controls.temperature_B.contiguous(), stops.ids, stops.counts, stops.span, logits.size,
        measured_BM, None, None,
    )  # fmt: skip
    return raw_BM, measured_BM


def _bytes(mask_BV: torch.Tensor | None) -> torch.Tensor | None:
    return None if mask_BV is None else mask_BV.view(torch.uint8)


@dataclasses.dataclass(frozen=True)
class _Stops:
    """An alignment as the kernels read it: see `moments.measure_rows`."""

    ids: torch.Tensor
    counts: list[int]
    masked_ids: torch.Tensor
    span: list[int]  # the canonical id, the lowest, the highest


@lru_cache(maxsize=16)
def _stops(alignment: StopAlignment, device: torch.device) -> _Stops:
    canonical, masked = alignment.canonical_id, alignment.masked_ids
    lists = [
        alignment.student_ids,
        alignment.teacher_ids,
        masked,
        tuple(i for i in masked if i not in alignment.student_ids),
        tuple(i for i in (*masked, canonical) if i not in alignment.teacher_ids),
    ]
    counts = [len(ids) for ids in lists]
    if alignment.is_identity:
        counts[2] = -1
    ids = torch.tensor([i for ids in lists for i in ids], dtype=torch.int32).to(device)
    span = [canonical, min((canonical, *masked)), max((canonical, *masked))]
    return _Stops(ids, counts, ids[counts[0] + counts[1] :], span)

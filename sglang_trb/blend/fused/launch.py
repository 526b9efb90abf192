"""The kernels as operations of torch: each one launch, known to fake tensors and to CUDA graphs alike.

Where Triton was imported with TRITON_INTERPRET=1 they are interpreted, on any machine, and slowly. Needs Triton.

Legend: _B rows, _V vocabulary, _G groups of 128 columns, _K the ids of a support, _C columns of a record, _M measures.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.runtime.interpreter import InterpretedFunction

INTERPRETED = isinstance(tl.max, InterpretedFunction)

with knobs.runtime.scope():  # whatever the environment says by now: Triton's own functions are of one kind
    knobs.runtime.interpret = INTERPRETED
    from sglang_trb.blend.fused.moments import MEASURES as MEASURES
    from sglang_trb.blend.fused.moments import measure_rows
    from sglang_trb.blend.fused.rows import GROUP
    from sglang_trb.blend.fused.step_kernel import draw_rows
    from sglang_trb.blend.fused.supports import most_likely

TILE, WARPS = 2048, 8
"""Eight columns a thread. Compiled for sm_90 neither kernel spills a register; sixteen warps of four would."""

_INTERPRETED_TILE = 1 << 16


def tile_of(size: int) -> int:
    """Columns of a tile for rows of ``size``."""
    if INTERPRETED:
        return min(_INTERPRETED_TILE, max(triton.next_power_of_2(size), 4 * int(GROUP)))
    return TILE


def groups_of(size: int) -> int:
    """How many groups of 128 columns the tiles of a row have."""
    return -(-size // tile_of(size)) * tile_of(size) // int(GROUP)


@torch.library.custom_op("sglang_trb::measure", mutates_args=("measured_BM", "student_maxima_BG", "teacher_maxima_BG"))
def measure(
    student_BV: torch.Tensor,
    teacher_BV: torch.Tensor,
    forbidden_BV: torch.Tensor | None,
    temperature_B: torch.Tensor | None,
    ids: torch.Tensor,
    counts: list[int],
    stops: list[int],
    size: int,
    measured_BM: torch.Tensor,
    student_maxima_BG: torch.Tensor | None,
    teacher_maxima_BG: torch.Tensor | None,
) -> None:
    """Measure pairs of rows into ``measured_BM``, float64; see `moments.measure_rows`.

    Args:
        student_BV, teacher_BV: logits; the first ``size`` columns are read.
        forbidden_BV: bytes other than 0 forbid; None: nothing does.
        temperature_B: float32; None: 1.
        ids, counts: the lists of ids, int32, and their lengths.
        stops: the canonical id, the lowest and the highest of the stop ids.
        student_maxima_BG, teacher_maxima_BG: where to keep each group's largest logit, float32; None: nowhere.
    """
    own_p, own_q, masked, lost_p, lost_q = counts
    forbidden, temperature = _or(forbidden_BV, student_BV), _or(temperature_B, measured_BM)
    maxima_p, maxima_q = _or(student_maxima_BG, measured_BM), _or(teacher_maxima_BG, measured_BM)
    measure_rows[(student_BV.shape[0],)](
        student_BV, teacher_BV, forbidden, student_BV.stride(0), teacher_BV.stride(0), forbidden.stride(0),
        temperature, ids, *stops, size, measured_BM, maxima_p, maxima_q,
        TILE=tile_of(size), GROUPS=groups_of(size), OWN_P=own_p, OWN_Q=own_q, MASKED=masked, LOST_P=lost_p,
        LOST_Q=lost_q, TEMPERED=temperature_B is not None, FORBIDS=forbidden_BV is not None,
        KEEP_P=student_maxima_BG is not None, KEEP_Q=teacher_maxima_BG is not None, num_warps=WARPS,
    )  # fmt: skip


@torch.library.custom_op(
    "sglang_trb::draw", mutates_args=("token_ids_B", "error_B", "record_BC", "log_mu_BV", "passes_B")
)
def draw(
    student_BV: torch.Tensor,
    teacher_BV: torch.Tensor,
    adjusted_BV: torch.Tensor,
    forbidden_BV: torch.Tensor | None,
    raw_BM: torch.Tensor,
    measured_BM: torch.Tensor,
    rule_B: torch.Tensor,
    epsilon_B: torch.Tensor,
    temperature_B: torch.Tensor,
    greedy_B: torch.Tensor,
    seed_B: torch.Tensor,
    position_B: torch.Tensor,
    masked_ids: torch.Tensor,
    masked: int,
    stops: list[int],
    size: int,
    token_ids_B: torch.Tensor,
    error_B: torch.Tensor,
    record_BC: torch.Tensor,
    log_mu_BV: torch.Tensor | None,
    passes_B: torch.Tensor,
) -> None:
    """Draw the token of each row; see `step_kernel.draw_rows`.

    Args:
        adjusted_BV: the student's logits as they are blended.
        raw_BM, measured_BM: what `measure` says of the logits as they are, and as they are blended.
        rule_B, greedy_B: int8; ``epsilon_B``: float64; ``temperature_B``: float32; ``seed_B``, ``position_B``: int64.
        masked: how many ids alignment masks, -1 where it changes nothing.
        token_ids_B, error_B, record_BC, passes_B: int64, int8, float32, int32; written, as ``log_mu_BV``, float32, is
            where there is one.
    """
    forbidden, log_mu = _or(forbidden_BV, student_BV), _or(log_mu_BV, record_BC)
    draw_rows[(student_BV.shape[0],)](
        student_BV, teacher_BV, adjusted_BV, forbidden, student_BV.stride(0), teacher_BV.stride(0),
        adjusted_BV.stride(0), forbidden.stride(0), raw_BM, measured_BM, rule_B, epsilon_B, temperature_B, greedy_B,
        seed_B, position_B, masked_ids, *stops, size, token_ids_B, error_B, record_BC, log_mu, passes_B,
        log_mu.shape[1], TILE=tile_of(size), COLUMNS=record_BC.shape[1], MASKED=masked,
        FORBIDS=forbidden_BV is not None, STORE=log_mu_BV is not None, num_warps=WARPS,
    )  # fmt: skip


@torch.library.custom_op("sglang_trb::support", mutates_args=("ids_BK", "student_BK", "teacher_BK"))
def support(
    student_BV: torch.Tensor,
    teacher_BV: torch.Tensor,
    maxima_BG: torch.Tensor,
    measured_BM: torch.Tensor,
    masked_ids: torch.Tensor,
    masked: int,
    canonical_id: int,
    size: int,
    of_teacher: bool,
    ids_BK: torch.Tensor,
    student_BK: torch.Tensor,
    teacher_BK: torch.Tensor,
) -> None:
    """Write one model's most likely ids, int32, and both log-probabilities, float32; see `supports.most_likely`."""
    groups = maxima_BG.shape[1]
    most_likely[(student_BV.shape[0],)](
        student_BV, teacher_BV, student_BV.stride(0), teacher_BV.stride(0), maxima_BG, measured_BM, masked_ids,
        canonical_id, size, ids_BK, student_BK, teacher_BK, KEPT=ids_BK.shape[1], GROUPS=groups,
        POWER=triton.next_power_of_2(groups), MASKED=masked, TEACHERS=of_teacher, num_warps=WARPS,
    )  # fmt: skip


for _operation in (measure, draw, support):
    _operation.register_fake(lambda *args: None)


def _or(tensor: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    """A pointer for an argument that the kernel will not read."""
    return other if tensor is None else tensor

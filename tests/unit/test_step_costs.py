"""Operations, traffic and memory of a step on a device, counted on tensors without values."""

import pytest
import torch

from sglang_trb.blend import blend_step, solver
from sglang_trb.blend.distribution import row_groups
from sglang_trb.footprint import GROUP_BYTES, GROUP_MATRICES, SORT_MATRICES, group_bytes
from tests.blend_rows import TWO_STOPS, Row, controls
from tests.device_watch import DEVICE, DeviceWatch

OFF = {"work": frozenset({"trust_region"}), "any_filter": False, "any_temperature": False}
EVERYTHING = {"work": None, "need_support": True, "need_teacher_support": True}


def watched(rows, vocab, flags, masked=False):
    """A step of ``rows`` rows; ``masked``: with penalties, a mask and the whole law returned."""
    asked = controls([Row()] * rows, **flags).map(lambda x: x.to(DEVICE))
    student_BV, teacher_BV = (torch.empty(rows, vocab, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    options = {}
    if masked:
        mask_BV = torch.empty(rows, vocab, dtype=torch.bool, device=DEVICE)
        options = {"adjusted_student_logits_BV": student_BV.float(), "mask_BV": mask_BV, "need_log_mu": True}
    with DeviceWatch() as watch:
        blend_step(student_BV, teacher_BV, asked, TWO_STOPS, **options)
    return watch


@pytest.mark.parametrize(
    ("flags", "masked", "operations", "traffic", "peak"),
    [(OFF, False, 2_650, 560, 14), (EVERYTHING, True, 3_720, 1_900, GROUP_MATRICES - SORT_MATRICES)],
    ids=["plain", "everything"],
)
def test_a_step_costs_what_is_written_down(flags, masked, operations, traffic, peak):
    """docs/decisions.md has these numbers; traffic and peak in float64 matrices [B, V]."""
    watch = watched(8, 1000, flags, masked)
    assert 0.9 * operations < watch.operations.total() <= operations
    assert 0.9 * traffic < watch.traffic_bytes / (8 * 8 * 1000) <= traffic
    assert 0.9 * peak < watch.peak_bytes / (8 * 8 * 1000) <= peak


def test_what_the_memory_plan_counts_is_what_is_alive(monkeypatch):
    monkeypatch.setattr(solver, "TRIPS", 2)
    for rows, vocab in ((1, 3000), (5, 300)):
        peak = watched(rows, vocab, EVERYTHING, masked=True).peak_bytes
        assert 0.8 * group_bytes(rows, vocab, "cuda") < peak <= group_bytes(rows, vocab, "cuda")


@pytest.mark.parametrize(("rows", "groups"), [(0, 1), (1, 1), (128, 1), (147, 1), (148, 2), (4096, 28)])
def test_rows_of_a_device_go_in_groups_of_bounded_size(rows, groups):
    found = row_groups(rows, 151_936, torch.device("cuda"))
    assert [i for part in found for i in range(part.start, part.stop)] == list(range(rows)) and len(found) == groups
    sizes = {part.stop - part.start for part in found}
    assert max(sizes) - min(sizes) <= 1
    assert group_bytes(max(sizes), 151_936, "cuda") <= GROUP_BYTES

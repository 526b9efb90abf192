"""`blend_step`: rows that cannot be drawn, what a row may not do to another, and what a CUDA graph needs."""

import dataclasses

import pytest
import torch

from sglang_trb.blend import blend_step
from sglang_trb.blend.types import EMPTY_SUPPORT, OK, STUDENT_NOT_FINITE, TEACHER_NOT_FINITE
from sglang_trb.wire.params import Rule
from tests.blend_rows import (
    DTYPES,
    INF,
    LOG_TOLERANCE,
    ONE_STOP,
    RULES,
    TWO_STOPS,
    Row,
    controls,
    llm_like,
    mixed_rows,
)

NAN = float("nan")


def test_errors_are_told_apart():
    student_BV, teacher_BV = llm_like(8, 50, seed=11)
    student_BV[0, 3], student_BV[1, 3], student_BV[2] = NAN, INF, -INF
    teacher_BV[3, 3], teacher_BV[4] = NAN, -INF
    adjusted_BV = student_BV.clone()
    adjusted_BV[5, 0] = NAN
    mask_BV = torch.zeros(8, 50, dtype=torch.bool)
    mask_BV[6] = True
    output = blend_step(
        student_BV,
        teacher_BV,
        controls([Row(epsilon=0.1)] * 8),
        TWO_STOPS,
        adjusted_student_logits_BV=adjusted_BV,
        mask_BV=mask_BV,
    )
    assert output.error_B.tolist() == [
        *[STUDENT_NOT_FINITE] * 3,
        *[TEACHER_NOT_FINITE] * 2,
        STUDENT_NOT_FINITE,
        EMPTY_SUPPORT,
        OK,
    ]
    assert output.token_ids_B.ge(0).all() and output.token_ids_B.lt(50).all()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["rule"]))
def test_a_teacher_without_support(rule):
    """A row error where the rule draws from the teacher; elsewhere the student (docs/methods.md, "Defined cases")."""
    student_BV, teacher_BV = llm_like(1, 50, seed=12)
    mask_BV = torch.ones(1, 50, dtype=torch.bool)
    mask_BV[:, 10:20] = False
    teacher_BV[:, 10:20] = -INF
    output = blend_step(student_BV, teacher_BV, controls([Row(**rule)]), ONE_STOP, mask_BV=mask_BV)
    needs_teacher = rule["rule"] in (Rule.TEACHER, Rule.SKD, Rule.MIXTURE)
    assert output.error_B.item() == (EMPTY_SUPPORT if needs_teacher else OK)
    if not needs_teacher:
        assert 10 <= output.token_ids_B.item() < 20 and output.record.beta.item() == 0.0


def same_rows(left, right, rows, names=None):
    for name, column in left.tensors().items():
        if names is None or name in names:
            assert torch.equal(column[rows], right.tensors()[name][rows]), name


def test_a_bad_row_changes_no_other_bit():
    rows = mixed_rows()
    student_BV, teacher_BV = llm_like(len(rows), 151, seed=13)
    clean = blend_step(student_BV, teacher_BV, controls(rows), TWO_STOPS, need_log_mu=True)
    bad = [0, 17, 18, len(rows) - 1]
    student_BV[bad[0], 5], student_BV[bad[1]] = NAN, -INF
    teacher_BV[bad[2], 0], teacher_BV[bad[3], 1] = INF, NAN
    dirty = blend_step(student_BV, teacher_BV, controls(rows), TWO_STOPS, need_log_mu=True)
    assert dirty.error_B.ne(OK).nonzero().flatten().tolist() == bad
    same_rows(clean, dirty, [i for i in range(len(rows)) if i not in bad])


@pytest.mark.parametrize("other", [{"epsilon": 0.5}, {"rule": Rule.TEACHER}, {"rule": Rule.SKD}], ids=str)
def test_an_unblended_row_is_the_same_whatever_the_others_do(other):
    student_BV, teacher_BV = llm_like(8, 151, seed=14)
    quiet = [Row(rule=Rule.STUDENT, seed=i) if i % 2 else Row(epsilon=0.0, seed=i) for i in range(8)]
    busy = [dataclasses.replace(row, **other) if i in (0, 3, 6) else row for i, row in enumerate(quiet)]
    alone = blend_step(student_BV, teacher_BV, controls(quiet), TWO_STOPS, need_log_mu=True)
    mixed = blend_step(student_BV, teacher_BV, controls(busy), TWO_STOPS, need_log_mu=True)
    same_rows(alone, mixed, [1, 2, 4, 5, 7])
    assert not torch.equal(alone.log_mu_BV[0], mixed.log_mu_BV[0])
    off = controls(quiet, work=frozenset(), any_temperature=False, any_filter=False)
    without = blend_step(student_BV, teacher_BV, off, TWO_STOPS, need_log_mu=True)
    same_rows(alone, without, slice(None))


def test_host_flags_change_no_bit():
    student_BV, teacher_BV = llm_like(6, 151, seed=15)
    rows = [Row(epsilon=0.05, seed=i) for i in range(6)]
    everything = blend_step(student_BV, teacher_BV, controls(rows), TWO_STOPS, need_log_mu=True)
    asked = controls(rows, work=frozenset({"trust_region"}), any_filter=False, any_temperature=False)
    needed = blend_step(student_BV, teacher_BV, asked, TWO_STOPS, need_log_mu=True)
    same_rows(everything, needed, slice(None))


def test_neither_order_nor_batch_decides_what_is_drawn():
    rows = mixed_rows()
    student_BV, teacher_BV = llm_like(len(rows), 151, seed=16)
    output = blend_step(student_BV, teacher_BV, controls(rows), TWO_STOPS)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    permuted = blend_step(student_BV[order], teacher_BV[order], controls([rows[i] for i in order]), TWO_STOPS)
    assert torch.equal(output.token_ids_B[order], permuted.token_ids_B)
    torch.testing.assert_close(output.record.beta[order], permuted.record.beta, rtol=LOG_TOLERANCE, atol=0)
    torch.testing.assert_close(output.record.kl[order], permuted.record.kl, rtol=LOG_TOLERANCE, atol=1e-9)
    alone = [blend_step(student_BV[i : i + 1], teacher_BV[i : i + 1], controls([rows[i]]), TWO_STOPS) for i in order]
    assert torch.equal(permuted.token_ids_B, torch.cat([one.token_ids_B for one in alone]))


def test_the_arguments_are_left_alone():
    for dtype in DTYPES:
        student_BV, teacher_BV = (x.to(dtype) for x in llm_like(3, 50, seed=17))
        student_BV[1, 2] = NAN
        mask_BV = torch.zeros(3, 50, dtype=torch.bool)
        adjusted_BV, given = student_BV.clone(), (student_BV, teacher_BV)
        before = student_BV.clone(), teacher_BV.clone()
        options = {"adjusted_student_logits_BV": adjusted_BV, "mask_BV": mask_BV}
        blend_step(*given, controls(mixed_rows()[:3]), TWO_STOPS, **options)
        torch.testing.assert_close(given, before, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(adjusted_BV, before[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("alignment", [ONE_STOP, TWO_STOPS], ids=["one stop", "two stops"])
@pytest.mark.parametrize("extras", [False, True], ids=["plain", "everything"])
def test_no_host_synchronisation_and_no_data_dependent_shape(alignment, extras):
    """On meta tensors, which have no values, any look at a value raises, and so does a shape that depends on one."""
    student_BV, teacher_BV, adjusted_BV = (torch.empty(4, 50, dtype=torch.bfloat16, device="meta") for _ in range(3))
    rows = controls([Row()] * 4, need_support=extras, need_teacher_support=extras)
    options = {}
    if extras:
        mask_BV = torch.empty(4, 50, dtype=torch.bool, device="meta")
        options = {"adjusted_student_logits_BV": adjusted_BV, "mask_BV": mask_BV, "need_log_mu": True}
    output = blend_step(student_BV, teacher_BV, rows.map(lambda x: x.to("meta")), alignment, **options)
    assert {x.device.type for x in output.tensors().values()} == {"meta"}
    assert output.token_ids_B.shape == (4,)


@pytest.mark.parametrize("look", [bool, torch.Tensor.item, torch.nonzero, lambda x: x[x > 0]])
def test_meta_tensors_show_what_they_are_used_for(look):
    with pytest.raises((RuntimeError, NotImplementedError)):
        look(torch.empty(1, device="meta"))

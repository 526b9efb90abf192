"""`blend_step` against the reference: every rule, filter and option of a batch."""

import dataclasses

import numpy as np
import pytest
import torch

from sglang_trb.blend import StopAlignment, blend_step, reference
from sglang_trb.blend.distribution import Distribution
from sglang_trb.blend.filters import in_top_k
from sglang_trb.blend.types import OK
from sglang_trb.wire.params import Rule
from sglang_trb.wire.record import SUPPORT_SIZE
from tests.blend_rows import (
    DTYPES,
    FILTERS,
    INF,
    LOG_TOLERANCE,
    ONE_STOP,
    TWO_STOPS,
    Row,
    controls,
    expected,
    forbid_some,
    llm_like,
    mixed_rows,
)

NAN = float("nan")
KL_TOLERANCE = 1e-4
"""docs/methods.md: KL <= epsilon (1 + 1e-4); the search ends within half of that below the budget."""


def check_law(row, want, log_mu, output, i):
    """Row i of an output against the definition."""
    law, beta, kl = want.law, output.record.beta[i].item(), output.record.kl[i].item()
    if row.rule is Rule.TRUST_REGION and 0.0 < want.beta < 1.0:
        # Any beta within the tolerance of the budget is right: compare the law at the beta that was taken.
        law = reference.mu_at(want.p, want.q, beta)
        achieved = reference.kl(law, want.p)
        assert want.kl - KL_TOLERANCE * row.epsilon <= achieved <= row.epsilon * (1 + KL_TOLERANCE)
        assert kl == pytest.approx(achieved, rel=1e-5)
    else:
        assert kl == pytest.approx(want.kl, rel=LOG_TOLERANCE, abs=1e-9)
        assert row.rule is Rule.SKD or beta == np.float32(want.beta)
    assert np.array_equal(np.isfinite(log_mu), np.isfinite(law))
    on = np.isfinite(law)
    np.testing.assert_allclose(log_mu[on], law[on], rtol=2 * LOG_TOLERANCE, atol=1e-6)
    token = int(output.token_ids_B[i])
    assert np.isfinite(law[token]) and output.record.behavior_logprob[i].item() == log_mu[token]
    if row.greedy:
        assert law[token] >= law.max() - 1e-9
    close = {"rel": LOG_TOLERANCE, "abs": 1e-9}
    assert output.record.student_logprob[i].item() == pytest.approx(want.student[token], **close)
    assert output.record.teacher_logprob[i].item() == pytest.approx(want.teacher[token], **close)
    assert output.record.student_entropy[i].item() == pytest.approx(reference.entropy(want.student), **close)
    assert output.record.teacher_entropy[i].item() == pytest.approx(reference.entropy(want.teacher), **close)
    assert output.error_B[i] == OK


def check(student_BV, teacher_BV, rows, alignment=ONE_STOP, adjusted_BV=None, mask_BV=None, **flags):
    output = blend_step(
        student_BV,
        teacher_BV,
        controls(rows, **flags),
        alignment,
        adjusted_student_logits_BV=adjusted_BV,
        mask_BV=mask_BV,
        need_log_mu=True,
    )
    for i, row in enumerate(rows):
        adjusted_V = None if adjusted_BV is None else adjusted_BV[i]
        mask_V = None if mask_BV is None else mask_BV[i]
        want = expected(student_BV[i], teacher_BV[i], row, alignment, adjusted_V, mask_V)
        check_law(row, want, output.log_mu_BV[i].double().numpy(), output, i)
    return output


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alignment", [ONE_STOP, TWO_STOPS], ids=["one stop", "two stops"])
def test_every_rule_with_every_filter(alignment, dtype):
    rows = mixed_rows()
    student_BV, teacher_BV = (x.to(dtype) for x in llm_like(len(rows), 50, seed=1))
    check(student_BV, teacher_BV, rows, alignment)


def test_penalties_masks_and_temperatures():
    rows = [dataclasses.replace(row, temperature=(0.3, 0.8, 1.7)[i % 3]) for i, row in enumerate(mixed_rows())]
    student_BV, teacher_BV = llm_like(len(rows), 50, seed=2)
    adjusted_BV = student_BV + torch.randn(student_BV.shape, generator=torch.Generator().manual_seed(0))
    mask_BV = forbid_some(student_BV, seed=5).isneginf()
    adjusted_BV.masked_fill_(mask_BV, -INF)
    check(student_BV, teacher_BV, rows, TWO_STOPS, adjusted_BV, mask_BV)


@pytest.mark.parametrize("vocab", [2, 3, 1000])
def test_other_vocabularies(vocab):
    rows = mixed_rows()
    check(*llm_like(len(rows), vocab, seed=vocab), rows)


def test_rows_with_forbidden_tokens():
    rows = mixed_rows()
    student_BV, teacher_BV = llm_like(len(rows), 50, seed=3)
    with np.errstate(invalid="ignore"):
        check(forbid_some(student_BV, seed=1), teacher_BV, rows)


def test_full_vocabulary_in_bfloat16():
    rows = [Row(epsilon=0.01, seed=1), Row(rule=Rule.TEACHER, top_p=0.9, seed=2)]
    check(*(x.bfloat16() for x in llm_like(2, 151_936, seed=4)), rows, TWO_STOPS)


@pytest.mark.parametrize("setting", FILTERS, ids=str)
def test_filters_keep_what_the_reference_keeps_with_ties(setting):
    """Logits of four values only: which of equals is kept is decided by the id."""
    student_BV = torch.randint(0, 4, (4, 50), generator=torch.Generator().manual_seed(6)).float()
    rows = [Row(rule=Rule.STUDENT, **setting)] * 4
    check(student_BV, student_BV.flip(1), rows)


def test_supports_are_the_most_likely_tokens_before_masks_and_temperature():
    rows = [Row(epsilon=0.01, temperature=0.5, top_k=3)] * 3
    student_BV, teacher_BV = llm_like(3, 200, seed=7)
    mask_BV = student_BV > student_BV.amax(1, keepdim=True) - 0.5
    flags = {"need_support": True, "need_teacher_support": True}
    output = check(student_BV, teacher_BV, rows, TWO_STOPS, None, mask_BV, **flags)
    for i, row in enumerate(rows):
        want = expected(student_BV[i], teacher_BV[i], row, TWO_STOPS)
        for own, support in ((want.student, output.student_support), (want.teacher, output.teacher_support)):
            ids, student_logprob, teacher_logprob = (column[i].numpy() for column in support.columns())
            assert ids.dtype == np.int32 and ids.tolist() == np.argsort(-own)[:SUPPORT_SIZE].tolist()
            np.testing.assert_allclose(student_logprob, want.student[ids], rtol=LOG_TOLERANCE)
            np.testing.assert_allclose(teacher_logprob, want.teacher[ids], rtol=LOG_TOLERANCE)
    assert blend_step(student_BV, teacher_BV, controls(rows), TWO_STOPS).student_support is None


def test_the_mass_that_alignment_drops():
    student_BV, teacher_BV = llm_like(2, 50, seed=8)
    output = blend_step(student_BV, teacher_BV, controls([Row()] * 2), TWO_STOPS)
    student_mass_B = student_BV.double().softmax(1)[:, 5]  # the teacher's stop id
    teacher_mass_B = teacher_BV.double().softmax(1)[:, 4]  # the student's primary
    torch.testing.assert_close(output.record.student_masked_mass.double(), student_mass_B, rtol=LOG_TOLERANCE, atol=0)
    torch.testing.assert_close(output.record.teacher_masked_mass.double(), teacher_mass_B, rtol=LOG_TOLERANCE, atol=0)


def test_a_pair_that_differs_in_its_stop_id_alone_is_one_law():
    student_BV, _ = llm_like(1, 50, seed=9)
    student_BV[:, 3], student_BV[:, 5] = 8.0, -20.0
    teacher_BV = student_BV.clone()
    teacher_BV[:, [3, 5]] = student_BV[:, [5, 3]]
    rows = controls([Row(rule=Rule.TEACHER, seed=3)])
    assert blend_step(student_BV, teacher_BV, rows, StopAlignment((3,), (3,), 3)).record.kl.item() > 20.0
    output = blend_step(student_BV, teacher_BV, rows, StopAlignment((3,), (5,), 3))
    assert output.record.kl.item() == 0.0 and torch.equal(output.record.student_logprob, output.record.teacher_logprob)


def test_padding_beyond_the_tokenizer_is_forbidden():
    rows = mixed_rows()
    student_BV, teacher_BV = llm_like(len(rows), 50, seed=10)
    student_BV[:, 40:], teacher_BV[:, 40:] = 50.0, NAN
    wide = torch.nn.functional.pad(teacher_BV, (0, 14), value=90.0)
    output = blend_step(student_BV, wide, controls(rows), ONE_STOP, valid_vocab_size=40, need_log_mu=True)
    narrow = blend_step(student_BV[:, :40], wide[:, :40], controls(rows), ONE_STOP, need_log_mu=True)
    assert output.log_mu_BV.shape == (len(rows), 50) and output.log_mu_BV[:, 40:].isneginf().all()
    assert torch.equal(output.log_mu_BV[:, :40], narrow.log_mu_BV)
    assert torch.equal(output.token_ids_B, narrow.token_ids_B) and output.error_B.eq(OK).all()


def test_ties_of_the_teachers_top_k_go_to_the_lowest_id():
    q = Distribution.from_logits(torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]] * 4, dtype=torch.float64))
    kept_BV = in_top_k(q, torch.tensor([1, 2, 3, 9]))
    assert [row.nonzero().flatten().tolist() for row in kept_BV] == [[1], [1, 2], [1, 2, 3], [0, 1, 2, 3, 4]]


def test_greedy_ties_go_to_the_lowest_id():
    logits_BV = torch.tensor([[0.0, 2.0, 2.0, 1.0]] * 3)
    rows = [Row(epsilon=0.1, greedy=True), Row(rule=Rule.STUDENT, greedy=True), Row(rule=Rule.TEACHER, greedy=True)]
    assert blend_step(logits_BV, logits_BV, controls(rows), ONE_STOP).token_ids_B.tolist() == [1, 1, 1]


def test_greedy_blends_before_it_takes_the_largest():
    """The teacher's favourite wins once the budget allows it; top_k = 1, as SGLang rewrites greedy, filters nothing."""
    student_BV = torch.tensor([[1.0, 0.9, -3.0]] * 2)
    teacher_BV = torch.tensor([[-3.0, 3.0, 1.0]] * 2)
    rows = [Row(epsilon=0.0, greedy=True, top_k=1), Row(epsilon=0.2, greedy=True, top_k=1)]
    output = blend_step(student_BV, teacher_BV, controls(rows), ONE_STOP)
    assert output.token_ids_B.tolist() == [0, 1]
    assert output.record.kl[1].item() == pytest.approx(0.2, rel=KL_TOLERANCE)


def test_greedy_rows_keep_to_top_p():
    """The teacher's favourite lies outside the student's nucleus; without the filter it would win."""
    student_BV = torch.tensor([[1.0, 0.0, -3.0]] * 2)
    teacher_BV = torch.tensor([[-3.0, 0.0, 3.0]] * 2)
    rows = [Row(epsilon=5.0, greedy=True, top_k=1, top_p=p) for p in (0.9, 1.0)]
    assert blend_step(student_BV, teacher_BV, controls(rows), ONE_STOP).token_ids_B.tolist() == [1, 2]


def test_a_step_without_the_teacher_draws_the_same_tokens():
    student, teacher = llm_like(12, 300, seed=21)
    rows = [
        Row(Rule.STUDENT, **setting) for setting in ({}, {"temperature": 0.7}, {"top_p": 0.8}, {"greedy": True}) * 3
    ]
    settled = controls(rows, work=frozenset())
    beside = blend_step(student, teacher, settled, TWO_STOPS, need_log_mu=True)
    alone = dataclasses.replace(settled, any_teacher=False)
    found = blend_step(student, student, alone, TWO_STOPS, need_log_mu=True)
    for name in ("token_ids_B", "log_mu_BV", "error_B"):
        assert torch.equal(getattr(found, name), getattr(beside, name)), name
    for name in ("behavior_logprob", "student_logprob", "student_entropy", "beta", "kl"):
        assert torch.equal(getattr(found.record, name), getattr(beside.record, name)), name

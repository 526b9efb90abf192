"""Stop-id alignment (App. D): one event, at the student's id, whatever ids the two models stop with."""

import numpy as np
import pytest
import torch

from sglang_trb import align_eos
from sglang_trb.blend import StopAlignment, reference
from sglang_trb.blend.align import aligned
from sglang_trb.errors import InvalidParameter
from tests.blend_rows import FLOAT32_ULP, INF, forbid_some, llm_like

ALIGNMENTS = {
    "one id each": StopAlignment((3,), (5,), 3),
    "same two ids": StopAlignment((3, 5), (3, 5), 3),
    "same two ids, other primary": StopAlignment((3, 5), (5, 3), 5),
    "teacher has one more": StopAlignment((3,), (3, 5), 3),
    "student has one more": StopAlignment((3, 5), (5,), 3),
    "nothing shared": StopAlignment((3, 4), (5, 6), 4),
    "identity": StopAlignment((3,), (3,), 3),
}
ROUNDING = 1e-12
"""Nats; a log-sum-exp of 50 float64 terms of size 20 is off by 50 × 20 × 2^-53 at most."""


def align(log_probs_BV, alignment, own_ids):
    return align_eos(
        log_probs_BV, own_ids=own_ids, canonical_id=alignment.canonical_id, masked_ids=alignment.masked_ids
    )


@pytest.mark.parametrize("name", ALIGNMENTS)
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_agrees_with_the_reference(name, who):
    alignment = ALIGNMENTS[name]
    own_ids = alignment.student_ids if who == "student" else alignment.teacher_ids
    logits_BV, _ = llm_like(6, 50, seed=1)
    logits_BV = torch.cat([logits_BV[:3], forbid_some(logits_BV[3:], seed=2)])
    log_probs_BV = logits_BV.double().log_softmax(1)
    result_BV = align(log_probs_BV, alignment, own_ids).numpy()
    _, dropped_B = aligned(log_probs_BV, own_ids, alignment.canonical_id, alignment.masked_ids)
    for before, after, dropped in zip(log_probs_BV.numpy(), result_BV, dropped_B.tolist(), strict=True):
        expected = reference.align(before, own_ids, alignment)
        assert np.array_equal(np.isfinite(after), np.isfinite(expected))
        on = np.isfinite(expected)
        np.testing.assert_allclose(after[on], expected[on], atol=ROUNDING)
        assert np.exp(after).sum() == pytest.approx(1.0, abs=ROUNDING)
        strangers = {*alignment.masked_ids, alignment.canonical_id} - {*own_ids}
        assert dropped == pytest.approx(np.exp(before[list(strangers)]).sum(), rel=1e-10, abs=0)


def test_a_pair_that_differs_in_its_stop_id_alone_does_not_differ():
    alignment = StopAlignment((3,), (5,), 3)
    student_BV, _ = llm_like(1, 50, seed=3)
    student_BV[:, 3], student_BV[:, 5] = student_BV.logsumexp(1) + 3.0, -30.0  # at the end of an answer
    log_p_BV = student_BV.double().log_softmax(1)
    log_q_BV = log_p_BV.clone()
    log_q_BV[:, [3, 5]] = log_p_BV[:, [5, 3]]  # not a softmax of its own, whose sum a CPU may round in another way
    assert reference.kl(log_p_BV[0].numpy(), log_q_BV[0].numpy()) > 20.0

    p, p_dropped_B = aligned(log_p_BV, (3,), 3, alignment.masked_ids)
    q, q_dropped_B = aligned(log_q_BV, (5,), 3, alignment.masked_ids)
    assert torch.equal(p.weights_BV, q.weights_BV) and torch.equal(p.log_weights_BV, q.log_weights_BV)
    assert reference.kl(p.log_probs()[0].numpy(), q.log_probs()[0].numpy()) == 0.0
    for dropped_B, log_probs_BV, stranger in ((p_dropped_B, log_p_BV, 5), (q_dropped_B, log_q_BV, 3)):
        assert dropped_B.item() == pytest.approx(log_probs_BV[0, stranger].exp().item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_identity_exactly_when_both_stop_with_the_same_single_id(dtype):
    log_probs_BV = llm_like(2, 50, seed=4)[0].log_softmax(1).to(dtype)
    for name, alignment in ALIGNMENTS.items():
        assert alignment.is_identity == (name == "identity")
        result_BV = align(log_probs_BV, alignment, alignment.student_ids)
        assert (result_BV is log_probs_BV) == (name == "identity")
        assert result_BV.dtype == dtype
        assert result_BV[:, list(alignment.masked_ids)].isneginf().all()


def test_float32_rows_are_aligned_to_float32_rounding():
    log_probs_BV = llm_like(2, 1000, seed=5)[0].log_softmax(1)
    alignment = ALIGNMENTS["nothing shared"]
    result_BV = align(log_probs_BV, alignment, (5, 6))
    exact_BV = align(log_probs_BV.double(), alignment, (5, 6))
    torch.testing.assert_close(result_BV.double(), exact_BV, rtol=FLOAT32_ULP, atol=0)


def test_the_argument_is_left_alone():
    log_probs_BV = llm_like(2, 50, seed=6)[0].double().log_softmax(1)
    before_BV = log_probs_BV.clone()
    align(log_probs_BV, ALIGNMENTS["nothing shared"], (5, 6))
    assert torch.equal(log_probs_BV, before_BV)


def test_dropping_nearly_all_of_a_row_keeps_the_rest():
    """At a low temperature an ordinary token of one model, the other's stop id, may hold all but e^-900."""
    logits_BV = torch.tensor([[-900.0, -901.0, -905.0, 0.0]], dtype=torch.float64)
    distribution, dropped_B = aligned(logits_BV, (2,), 2, (3,))
    expected_BV = torch.tensor([[0.0, -1.0, -5.0, -INF]], dtype=torch.float64).log_softmax(1)
    torch.testing.assert_close(distribution.log_probs(), expected_BV, rtol=1e-12, atol=1e-12)
    assert dropped_B.item() == 1.0


def test_dropping_all_of_a_row_leaves_it_empty():
    logits_BV = torch.tensor([[-INF, -INF, -INF, 0.0], [-INF] * 4], dtype=torch.float64)
    distribution, dropped_B = aligned(logits_BV, (2,), 2, (3,))
    assert distribution.empty().all() and distribution.log_probs().isneginf().all()
    assert dropped_B.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [(((), (1,), 1), "stop ids"), (((1,), (), 1), "stop ids"), (((1, 2), (1,), 3), "canonical_id")],
)
def test_wrong_stop_ids_are_named(arguments, field):
    with pytest.raises(InvalidParameter, match=f"^{field}: got .*; allowed: ") as caught:
        StopAlignment(*arguments)
    assert caught.value.field == field

"""The batched solver and `trust_region_blend` against the float64 reference, and the properties of the blend."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sglang_trb import trust_region_blend
from sglang_trb.blend import reference
from sglang_trb.blend.distribution import Distribution
from sglang_trb.blend.solver import MARGIN, TRIPS, solve
from sglang_trb.errors import InvalidParameter, TrbError
from tests.blend_rows import DTYPES, FLOAT32_ULP, INF, forbid_some, llm_like

KL_TOLERANCE = 1e-4
"""KL <= epsilon (1 + 1e-4) is what docs/methods.md allows. The search ends within MARGIN; the rest is for rounding."""
assert 1.5 * MARGIN < KL_TOLERANCE

ROUNDING = 1e-12
"""Absolute error of a KL that is a difference of float64 sums with |log-ratio| <= 200: 200 × 2^-52 × a few, in nats."""

EPSILONS = [0.0, 1e-6, 1e-4, 1e-2, 0.3, 3.0, 1e3, INF]
FINITE_EPSILONS = [e for e in EPSILONS if 0.0 < e < INF]


def solved(student_BV, teacher_BV, epsilon_B, **options):
    """`solve` on logits; everything in float64."""
    p, q = Distribution.from_logits(student_BV.double()), Distribution.from_logits(teacher_BV.double())
    return p, q, solve(p, q, torch.as_tensor(epsilon_B, dtype=torch.float64), **options)


def check_row(student_V, teacher_V, epsilon, log_mu, beta, kl):
    """One row of float64 results against the reference."""
    log_p, log_q = (reference.log_softmax(x.double().numpy()) for x in (student_V, teacher_V))
    log_mu_expected, beta_expected, kl_expected = reference.blend(log_p, log_q, epsilon)
    if beta_expected in (0.0, 1.0):
        assert beta == beta_expected
        on = np.exp(log_mu_expected) > 0
        assert np.array_equal(np.isfinite(log_mu), np.isfinite(log_mu_expected))
        np.testing.assert_allclose(log_mu[on], log_mu_expected[on], rtol=1e-12, atol=1e-12)
        assert kl == pytest.approx(kl_expected, rel=1e-9, abs=ROUNDING)
        return
    achieved = reference.kl(reference.mu_at(log_p, log_q, beta), log_p)
    assert achieved <= epsilon * (1 + KL_TOLERANCE) + ROUNDING
    assert achieved >= kl_expected - epsilon * KL_TOLERANCE - ROUNDING
    assert kl == pytest.approx(achieved, rel=1e-9, abs=ROUNDING)
    np.testing.assert_allclose(log_mu, reference.mu_at(log_p, log_q, beta), rtol=1e-11, atol=1e-11)


def check_rows(student_BV, teacher_BV, epsilon_B):
    _, _, blend = solved(student_BV, teacher_BV, epsilon_B)
    log_mu_BV = blend.mu.log_probs().numpy()
    for i, epsilon in enumerate(epsilon_B):
        check_row(student_BV[i], teacher_BV[i], epsilon, log_mu_BV[i], blend.beta_B[i].item(), blend.kl_B[i].item())


# --- against the reference


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [2, 3, 50, 1000])
def test_agrees_with_the_reference(vocab, dtype):
    student_BV, teacher_BV = llm_like(len(EPSILONS), vocab, seed=vocab)
    check_rows(student_BV.to(dtype), teacher_BV.to(dtype), EPSILONS)


@pytest.mark.parametrize("vocab", [2, 3, 50, 1000])
def test_agrees_with_the_reference_off_the_common_support(vocab):
    student_BV, teacher_BV = llm_like(len(EPSILONS), vocab, seed=vocab)
    student_BV, teacher_BV = forbid_some(student_BV, seed=1), forbid_some(teacher_BV, seed=2)
    check_rows(student_BV, teacher_BV, EPSILONS)
    check_rows(student_BV, llm_like(len(EPSILONS), vocab, seed=9)[1], EPSILONS)


def test_agrees_with_the_reference_at_full_vocabulary():
    student_BV, teacher_BV = llm_like(2, 151_936, seed=3)
    teacher_BV[1, :75_000] = -INF  # about half of the student's mass: a budget below it keeps the student
    check_rows(student_BV.bfloat16(), teacher_BV.bfloat16(), [0.01, 2.0])


@pytest.mark.parametrize("epsilon", FINITE_EPSILONS)
@pytest.mark.parametrize("reach", [3.0, 30.0, 200.0])
def test_hostile_log_ratios(reach, epsilon):
    """Log-ratios to -200, teacher and student sure of different tokens, two tokens to fifty."""
    generator = torch.Generator().manual_seed(int(reach))
    for vocab in (2, 3, 50):
        student_BV = reach * (torch.rand(8, vocab, generator=generator, dtype=torch.float64) - 0.5)
        teacher_BV = reach * (torch.rand(8, vocab, generator=generator, dtype=torch.float64) - 0.5)
        check_rows(student_BV, teacher_BV, [epsilon] * 8)


PECULIAR = {
    "p = q": ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]),
    "one-hot, the same": ([0.0, -INF, -INF, -INF], [0.0, -INF, -INF, -INF]),
    "one-hot student": ([0.0, -INF, -INF, -INF], [1.0, 2.0, 3.0, 4.0]),
    "one-hot teacher": ([1.0, 2.0, 3.0, 4.0], [-INF, 0.0, -INF, -INF]),
    "almost one-hot, opposite": ([0.0, -200.0, -200.0, -200.0], [-200.0, 0.0, -200.0, -200.0]),
    "disjoint": ([0.0, 1.0, -INF, -INF], [-INF, -INF, 0.0, 1.0]),
    "teacher mass off the student's support": ([0.0, 1.0, -INF, -INF], [1.0, 0.0, 5.0, -INF]),
    "student mass off the teacher's support": ([0.0, 1.0, 2.0, -INF], [1.0, 0.0, -INF, -INF]),
    "nearly constant ratio": ([0.0, 1.0, 2.0, 3.0], [1e-9, 1.0, 2.0, 3.0]),
    "constant ratio on part of the support": ([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, -INF, -INF]),
    "small against huge ratio": ([0.0, -1.0, -2.0, -190.0], [0.0, -1.1, -2.0, 5.0]),
    "uniform, sure": ([0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0]),
    "lowest float32 as a mask": ([0.0, 1.0, -3e38, -3e38], [1.0, 0.0, -INF, -INF]),
}


@pytest.mark.parametrize("name", PECULIAR)
def test_peculiar_rows(name):
    student_V, teacher_V = (torch.tensor(row) for row in PECULIAR[name])
    student_V = student_V.masked_fill(student_V < -1e30, -INF)
    check_rows(student_V.expand(len(EPSILONS), -1), teacher_V.expand(len(EPSILONS), -1), EPSILONS)


def test_a_mask_of_huge_negative_logits_counts_as_forbidden():
    pair = torch.tensor([[0.0, 1.0, -3e38]]), torch.tensor([[1.0, 0.0, -1e30]])
    log_mu_BV = trust_region_blend(*pair, torch.tensor([0.01])).log_mu_BV
    assert log_mu_BV.isneginf().tolist() == [[False, False, True]]


def test_beyond_the_range_of_float64_the_blend_stays_feasible():
    """Where q(S) < e^-708 the search may stop short of beta = 1, never beyond the budget."""
    student_BV = torch.tensor([[0.0, -1.0, -INF]], dtype=torch.float64)
    teacher_BV = torch.tensor([[-900.0, -901.5, 0.0]], dtype=torch.float64)
    for epsilon in FINITE_EPSILONS:
        p, _, blend = solved(student_BV, teacher_BV, [epsilon])
        log_mu = blend.mu.log_probs().numpy()[0]
        assert np.exp(log_mu).sum() == pytest.approx(1.0)
        assert reference.kl(log_mu, p.log_probs().numpy()[0]) <= epsilon * (1 + KL_TOLERANCE)


def log_rows(vocab):
    finite = st.floats(-200.0, 0.0, width=32)
    rows = hnp.arrays(np.float64, (vocab,), elements=st.one_of(finite, st.floats(-5.0, 0.0), st.just(-np.inf)))
    return rows.filter(lambda row: np.isfinite(row).any())


@settings(max_examples=120, deadline=None)
@given(st.data(), st.integers(2, 12), st.sampled_from(FINITE_EPSILONS))
def test_never_over_budget_and_never_short_of_it(data, vocab, epsilon):
    student_V, teacher_V = (torch.from_numpy(data.draw(log_rows(vocab))) for _ in range(2))
    log_p, log_q = (reference.log_softmax(x.numpy()) for x in (student_V, teacher_V))
    _, _, blend = solved(student_V[None], teacher_V[None], [epsilon])
    beta, log_mu = blend.beta_B.item(), blend.mu.log_probs()[0].numpy()
    achieved = reference.kl(log_mu, log_p)
    assert 0.0 <= beta <= 1.0
    assert np.exp(log_mu).sum() == pytest.approx(1.0, abs=1e-12)
    assert achieved <= epsilon * (1 + KL_TOLERANCE) + ROUNDING
    _, beta_expected, kl_expected = reference.blend(log_p, log_q, epsilon)
    if abs(epsilon - kl_expected) > ROUNDING or beta_expected < 1.0:
        assert achieved >= kl_expected - epsilon * KL_TOLERANCE - ROUNDING


# --- defined cases and properties


def test_zero_budget_is_the_student_bit_for_bit():
    student_BV, teacher_BV = llm_like(6, 1000, seed=4)
    p, _, blend = solved(student_BV, teacher_BV, [0.0] * 6)
    assert torch.equal(blend.mu.log_weights_BV, p.log_weights_BV)
    assert torch.equal(blend.mu.weights_BV, p.weights_BV)
    assert torch.equal(blend.mu.log_total_B, p.log_total_B)
    assert blend.beta_B.eq(0).all() and blend.kl_B.eq(0).all()


def test_a_feasible_teacher_is_taken_on_the_common_support():
    student_BV, teacher_BV = llm_like(4, 50, seed=5)
    teacher_BV[:, 7] = -INF
    student_BV[:, 8] = -INF
    _, _, blend = solved(student_BV, teacher_BV, [INF] * 4)
    assert blend.beta_B.eq(1).all()
    restricted_BV = teacher_BV.double().index_fill(1, torch.tensor([8]), -INF).log_softmax(1)
    torch.testing.assert_close(blend.mu.log_probs(), restricted_BV, rtol=1e-12, atol=1e-12)


def test_an_unblended_row_is_the_same_whatever_the_others_do():
    student_BV, teacher_BV = llm_like(4, 1000, seed=6)
    _, _, alone = solved(student_BV, teacher_BV, [0.0, 0.0, 0.0, 0.0])
    _, _, mixed = solved(student_BV, teacher_BV, [0.01, 0.0, 1e-6, 0.0])
    for rows in (1, 3):
        assert torch.equal(alone.mu.weights_BV[rows], mixed.mu.weights_BV[rows])
        assert torch.equal(alone.mu.log_weights_BV[rows], mixed.mu.log_weights_BV[rows])
    assert mixed.beta_B[0] > 0 and mixed.beta_B[2] > 0


def test_beta_and_kl_rise_with_the_budget():
    student_BV, teacher_BV = (x.expand(60, -1) for x in llm_like(1, 1000, seed=7, noise=2.0))
    epsilon_B = torch.logspace(-6, 2, 60, dtype=torch.float64)  # steps of 37%, far above MARGIN
    _, _, blend = solved(student_BV, teacher_BV, epsilon_B)
    assert blend.beta_B.diff().ge(0).all() and blend.kl_B.diff().ge(0).all()
    assert blend.beta_B[0] > 0 and blend.beta_B[-1] == 1.0


def test_the_order_of_the_rows_is_irrelevant():
    student_BV, teacher_BV = llm_like(16, 1000, seed=8)
    epsilon_B = torch.tensor((EPSILONS * 2), dtype=torch.float64)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    _, _, blend = solved(student_BV, teacher_BV, epsilon_B)
    _, _, permuted = solved(student_BV[order], teacher_BV[order], epsilon_B[order])
    torch.testing.assert_close(blend.beta_B[order], permuted.beta_B, rtol=1e-9, atol=0)
    torch.testing.assert_close(blend.mu.weights_BV[order], permuted.mu.weights_BV, rtol=1e-9, atol=0)


@pytest.mark.parametrize("trips", range(TRIPS))
def test_feasible_at_every_trip_count(trips):
    student_BV, teacher_BV = llm_like(6, 50, seed=10, noise=3.0)
    epsilon_B = [1e-6, 1e-4, 1e-2, 0.1, 1.0, 3.0]
    p, _, blend = solved(student_BV, teacher_BV, epsilon_B, trips=trips)
    log_p_BV, log_mu_BV = p.log_probs().numpy(), blend.mu.log_probs().numpy()
    for log_mu, log_p, epsilon in zip(log_mu_BV, log_p_BV, epsilon_B, strict=True):
        assert reference.kl(log_mu, log_p) <= epsilon * (1 + KL_TOLERANCE)


def test_small_budgets_follow_the_expansion():
    """beta ≈ sqrt(2 epsilon / sigma²) (Eq. 22); its next term is of relative order sqrt(epsilon)."""
    student_BV, teacher_BV = llm_like(4, 1000, seed=11)
    epsilon = 1e-8
    p, q, blend = solved(student_BV, teacher_BV, [epsilon] * 4)
    ratio_BV = q.log_weights_BV - p.log_weights_BV
    variance_B = p.mean(ratio_BV.square()) - p.mean(ratio_BV).square()
    torch.testing.assert_close(blend.beta_B, (2 * epsilon / variance_B).sqrt(), rtol=1e-3, atol=0)


# --- the public function


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_public_backends(backend, dtype):
    student_BV, teacher_BV = (x.to(dtype) for x in llm_like(5, 50, seed=12))
    student_BV[1, 0], teacher_BV[2, 3], student_BV[3] = float("nan"), INF, -INF
    epsilon_B = torch.tensor([0.01] * 5)
    output = trust_region_blend(student_BV, teacher_BV, epsilon_B, backend=backend)
    assert {x.dtype for x in (output.log_mu_BV, output.beta_B, output.kl_B)} == {torch.float32}
    assert output.beta_B.isnan().tolist() == [False, True, True, True, False]
    assert output.kl_B.isnan().equal(output.beta_B.isnan())
    assert output.log_mu_BV.isnan().all(1).equal(output.beta_B.isnan())
    assert output.log_mu_BV.isnan().any(1).equal(output.beta_B.isnan())
    for i in (0, 4):
        log_p, log_q = (reference.log_softmax(x[i].double().numpy()) for x in (student_BV, teacher_BV))
        epsilon, beta = epsilon_B[i].item(), output.beta_B[i].item()
        log_mu = reference.mu_at(log_p, log_q, beta)
        assert output.kl_B[i].item() == pytest.approx(epsilon, rel=KL_TOLERANCE)
        assert reference.kl(log_mu, log_p) <= epsilon * (1 + KL_TOLERANCE)
        ratio = np.abs(log_q - log_p).max()  # beta is rounded to float32 too
        np.testing.assert_allclose(
            output.log_mu_BV[i].numpy(), log_mu, rtol=FLOAT32_ULP, atol=2 * FLOAT32_ULP * beta * ratio
        )


def test_a_bad_row_changes_no_other_bit():
    student_BV, teacher_BV = llm_like(6, 151, seed=13)
    epsilon_B = torch.tensor([0.01, 0.0, 0.1, 1.0, INF, 1e-6])
    clean = trust_region_blend(student_BV, teacher_BV, epsilon_B, backend="torch")
    student_BV[1, 5], teacher_BV[3, 0] = float("nan"), INF
    dirty = trust_region_blend(student_BV, teacher_BV, epsilon_B, backend="torch")
    others = [0, 2, 4, 5]
    for name in ("log_mu_BV", "beta_B", "kl_B"):
        assert torch.equal(getattr(clean, name)[others], getattr(dirty, name)[others])
        assert getattr(dirty, name)[[1, 3]].isnan().all()


def test_the_arguments_are_left_alone():
    for dtype in DTYPES:
        student_BV, teacher_BV = (x.to(dtype) for x in llm_like(3, 50, seed=14))
        student_BV[0, 0] = float("nan")
        before = student_BV.clone(), teacher_BV.clone()
        trust_region_blend(student_BV, teacher_BV, torch.tensor([0.01] * 3))
        torch.testing.assert_close((student_BV, teacher_BV), before, rtol=0, atol=0, equal_nan=True)


LOGITS = torch.zeros(2, 5)
BUDGETS = torch.zeros(2)


@pytest.mark.parametrize(
    ("student", "teacher", "epsilon", "options", "field", "received", "allowed"),
    [
        (LOGITS[0], LOGITS, BUDGETS, {}, "student_logits_BV.shape", "(5,)", "[B, V]"),
        (LOGITS[:0], LOGITS[:0], BUDGETS[:0], {}, "student_logits_BV.shape", "(0, 5)", "B, V >= 1"),
        (LOGITS.int(), LOGITS, BUDGETS, {}, "student_logits_BV.dtype", "int32", "bfloat16"),
        (LOGITS, LOGITS.long(), BUDGETS, {}, "teacher_logits_BV.dtype", "int64", "float16"),
        (LOGITS, LOGITS[:, :4], BUDGETS, {}, "teacher_logits_BV.shape", "(2, 4)", "(2, 5)"),
        (LOGITS, LOGITS, BUDGETS[:1], {}, "epsilon_B.shape", "(1,)", "(2,)"),
        (LOGITS, LOGITS, torch.tensor(0.1), {}, "epsilon_B.shape", "()", "one budget per row"),
        (LOGITS, LOGITS, BUDGETS.int(), {}, "epsilon_B.dtype", "int32", "floating-point"),
        (LOGITS, LOGITS, torch.tensor([0.1, -0.5]), {}, "epsilon_B", "-0.5", ">= 0"),
        (LOGITS, LOGITS, torch.tensor([0.1, float("nan")]), {}, "epsilon_B", "nan", ">= 0"),
        (LOGITS, LOGITS.to("meta"), BUDGETS, {}, "device", "meta", "one device"),
        (LOGITS, LOGITS, BUDGETS, {"backend": "cuda"}, "backend", "cuda", "one of auto, torch, "),
        (LOGITS.double(), LOGITS, BUDGETS, {"backend": "triton"}, "dtype", "float64", "float32, bfloat16 or float16"),
    ],
)
def test_wrong_arguments_are_named(student, teacher, epsilon, options, field, received, allowed):
    with pytest.raises(InvalidParameter) as caught:
        trust_region_blend(student, teacher, epsilon, **options)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, TrbError)
    assert caught.value.field == field
    before, after = str(caught.value).split("; allowed: ")
    assert before.startswith(f"{field}: got ") and received in before and allowed in after

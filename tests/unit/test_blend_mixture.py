"""Rule ``mixture``: both ends, disjoint supports, and what holds of every alpha."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_trb.blend import blend_step, reference
from sglang_trb.blend.types import EMPTY_SUPPORT, OK
from sglang_trb.wire.params import Rule
from tests.blend_rows import FILTERS, INF, ONE_STOP, TWO_STOPS, Row, controls, expected, forbid_some, llm_like
from tests.hostile_rows import pairs

ROUNDING = 1e-6
"""Relative: log mu and KL are float32, of a float64 result."""


def mixed(alpha, **settings):
    return Row(rule=Rule.MIXTURE, mixture_alpha=alpha, **settings)


def stepped(logits, rows, **options):
    return blend_step(*logits, controls(rows), TWO_STOPS, need_log_mu=True, **options)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_are_the_student_and_the_teacher_bit_for_bit(alpha):
    filters = [{}] if alpha else [{}, *FILTERS]
    rows = [
        mixed(alpha, greedy=greedy, temperature=temperature, seed=i, **settings)
        for i, settings in enumerate(filters)
        for greedy in (False, True)
        for temperature in (1.0, 0.7)
    ]
    end = [dataclasses.replace(row, rule=Rule.TEACHER if alpha else Rule.STUDENT) for row in rows]
    student_BV, teacher_BV = llm_like(len(rows), 151, seed=20)
    logits = forbid_some(student_BV, 1), forbid_some(teacher_BV, 2)
    left, right = (stepped(logits, each).tensors() for each in (rows, end))
    for name, column in left.items():
        assert torch.equal(column, right[name]), name


def test_filters_leave_the_teacher_whole():
    logits = llm_like(1, 50, seed=21)
    output = stepped(logits, [mixed(0.1, top_k=1, top_p=0.5)])
    want = expected(logits[0][0], logits[1][0], mixed(0.0, top_k=1), TWO_STOPS)
    mu_V = 0.1 * np.exp(want.q) + 0.9 * np.exp(want.p)
    np.testing.assert_allclose(output.log_mu_BV[0].double().exp().numpy(), mu_V, rtol=ROUNDING, atol=1e-12)


def test_disjoint_supports():
    student_BV = torch.tensor([[0.0, 1.0, -INF, -INF, -INF]])
    teacher_BV = torch.tensor([[-INF, -INF, 2.0, 2.0, -INF]])
    output = blend_step(student_BV, teacher_BV, controls([mixed(0.4)]), ONE_STOP, need_log_mu=True)
    share = 0.6 / (1.0 + math.e)
    want_V = torch.tensor([share, 0.6 - share, 0.2, 0.2, 0.0])
    torch.testing.assert_close(output.log_mu_BV[0].exp(), want_V, rtol=ROUNDING, atol=0)
    assert output.record.kl.item() == INF and output.record.beta.item() == np.float32(0.4)


def test_what_both_models_all_but_exclude_keeps_its_logarithm():
    student_BV, teacher_BV = torch.tensor([[0.0, -5000.0]]), torch.tensor([[0.0, -4000.0]])
    output = blend_step(student_BV, teacher_BV, controls([mixed(0.5)]), ONE_STOP, need_log_mu=True)
    assert output.log_mu_BV[0, 1].item() == pytest.approx(-4000.0 + math.log(0.5), rel=ROUNDING)


@pytest.mark.parametrize(
    ("alpha", "without_student", "without_teacher"),
    [(0.0, EMPTY_SUPPORT, OK), (0.3, EMPTY_SUPPORT, EMPTY_SUPPORT), (1.0, OK, EMPTY_SUPPORT)],
)
def test_a_model_without_a_share_needs_no_token(alpha, without_student, without_teacher):
    student_BV, teacher_BV = llm_like(1, 50, seed=22)
    nothing_BV = torch.full_like(student_BV, -INF)
    output = stepped((student_BV, teacher_BV), [mixed(alpha)], adjusted_student_logits_BV=nothing_BV)
    assert output.error_B.item() == without_student
    mask_BV = torch.ones(1, 50, dtype=torch.bool)
    mask_BV[:, 10:20] = False
    teacher_BV[:, 10:20] = -INF
    assert stepped((student_BV, teacher_BV), [mixed(alpha)], mask_BV=mask_BV).error_B.item() == without_teacher


@settings(max_examples=100, deadline=None)
@given(pairs(), st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6))
def test_the_kl_grows_with_alpha_and_stays_below_the_chord(logits, alphas):
    """KL(. || p) is convex and 0 at alpha = 0."""
    alphas = sorted(alphas)
    rows = [mixed(alpha) for alpha in alphas]
    output = blend_step(*(x.expand(len(rows), -1) for x in logits), controls(rows), ONE_STOP)
    log_p, log_q = (reference.log_softmax(x[0].double().numpy()) for x in logits)
    kl_B, whole = output.record.kl.double().numpy(), reference.kl(log_q, log_p)
    assert output.error_B.eq(OK).all()
    np.testing.assert_array_equal(output.record.beta.numpy(), np.float32(alphas))
    assert (kl_B[1:] >= kl_B[:-1] * (1 - ROUNDING) - 1e-9).all()
    assert all(kl <= alpha * whole * (1 + ROUNDING) + 1e-9 for kl, alpha in zip(kl_B, alphas, strict=True) if alpha)

"""KL(mu || p) <= epsilon for any logits, temperature and budget, by an oracle of 60 digits that shares no code."""

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_trb.blend import blend_step, reference
from sglang_trb.blend.align import aligned
from sglang_trb.blend.distribution import LIMIT
from sglang_trb.blend.solver import solve
from sglang_trb.blend.types import EMPTY_SUPPORT, OK
from sglang_trb.wire.params import Rule
from tests.blend_rows import INF, ONE_STOP, TWO_STOPS, Row, controls, expected
from tests.hostile_rows import pairs

KL_TOLERANCE, BETA_TOLERANCE = 1e-4, 1e-5
"""docs/methods.md: of |ΔKL| / epsilon and |Δbeta| the kinder one counts; the bound itself has no tolerance."""

ONE_ROUNDING = 1e-18
"""Nats. From this budget on, what the division by the temperature rounds away is within the solver's SLACK; below, the
oracle takes the rounded quotients."""

TEMPERATURES = st.one_of(
    st.just(1.0), st.sampled_from([1e-6, 1e-5, 1e6]), st.floats(-6, 6).map(lambda x: float(np.float32(10**x)))
)
EPSILONS = st.one_of(st.floats(-30, 30).map(lambda x: 10.0**x), st.floats(-3, 3).map(lambda x: 10.0**x))


class Exact:
    """The laws of one row in mpmath, from the definition."""

    def __init__(self, student_V, teacher_V, temperature, exact_quotient):
        self.p, self.q = (self.law(x.double().tolist(), temperature, exact_quotient) for x in (student_V, teacher_V))
        self.common = sorted(self.p.keys() & self.q.keys())
        self.log_mass = mpmath.log(mpmath.fsum(mpmath.exp(self.p[i]) for i in self.common)) if self.common else -INF

    @staticmethod
    def law(logits, temperature, exact_quotient):
        peak = max(logits)
        below = {i: x - peak for i, x in enumerate(logits) if x > -INF}
        scale = mpmath.mpf(temperature) if exact_quotient else temperature
        below = {i: mpmath.mpf(x / scale) for i, x in below.items() if x / temperature > -LIMIT}
        total = mpmath.log(mpmath.fsum(map(mpmath.exp, below.values())))
        return {i: x - total for i, x in below.items()}

    def kl(self, beta):
        if not self.common or beta == 0.0:
            return mpmath.mpf(0)
        beta = mpmath.mpf(beta)
        log_mu = [(1 - beta) * self.p[i] + beta * self.q[i] for i in self.common]
        peak = max(log_mu)
        total = peak + mpmath.log(mpmath.fsum(mpmath.exp(x - peak) for x in log_mu))
        return mpmath.fsum(
            mpmath.exp(x - total) * (x - total - self.p[i]) for x, i in zip(log_mu, self.common, strict=True)
        )

    def budget(self, epsilon):
        return mpmath.mpf(epsilon) + self.log_mass


@settings(max_examples=300, deadline=None)
@given(pairs(), TEMPERATURES, EPSILONS)
def test_never_over_budget_and_never_short_of_it(rows, temperature, epsilon):
    column_B = torch.tensor([temperature])
    p, q = (aligned(row.double(), (0,), 0, (), None if temperature == 1.0 else column_B)[0] for row in rows)
    blend = solve(p, q, torch.tensor([epsilon], dtype=torch.float64))
    beta, reported = blend.beta_B.item(), blend.kl_B.item()
    with mpmath.workdps(80):
        exact = Exact(rows[0][0], rows[1][0], column_B.item(), epsilon >= ONE_ROUNDING)
        kl = exact.kl(beta)
        assert 0.0 <= beta <= 1.0 and kl <= epsilon and reported <= epsilon
        assert abs(kl - reported) <= 1e-5 * epsilon
        if beta == 1.0 or kl >= epsilon * (1 - KL_TOLERANCE) or exact.budget(epsilon * (1 - KL_TOLERANCE)) < 0:
            return
        assert exact.kl(min(beta + BETA_TOLERANCE, 1.0)) > epsilon * (1 - KL_TOLERANCE)


def test_what_the_teacher_all_but_excludes_is_not_free():
    """On the student's support the teacher has e^-900, all of it on a token that costs the student 2,000 nats."""
    student_BV = torch.tensor([[0.0, -0.02, -INF]])
    teacher_BV = torch.tensor([[-0.02, -0.009, 0.0]])
    for epsilon in (667.0, 1000.0, 1990.0, 2001.0):
        row = Row(epsilon=epsilon, temperature=1e-5)
        output = blend_step(student_BV, teacher_BV, controls([row]), ONE_STOP, need_log_mu=True)
        want = expected(student_BV[0], teacher_BV[0], row)
        assert reference.kl(output.log_mu_BV[0].double().numpy(), want.p) <= epsilon * (1 + 1e-5)
        assert output.record.kl.item() == pytest.approx(want.kl, rel=KL_TOLERANCE)
        assert (output.record.beta.item() == 1.0) == (epsilon > 2000)


def rows_of(epsilon, top_k, skd_temperature, temperature):
    """Each rule, drawn and greedy."""
    rules = [
        {"rule": Rule.TRUST_REGION, "epsilon": epsilon},
        {"rule": Rule.STUDENT},
        {"rule": Rule.TEACHER},
        {"rule": Rule.SKD, "skd_top_k": top_k, "skd_temperature": skd_temperature},
        *[{"rule": Rule.MIXTURE, "mixture_alpha": alpha} for alpha in (0.0, 0.2, 1.0)],
    ]
    return [Row(**rule, greedy=greedy, temperature=temperature) for rule in rules for greedy in (False, True)]


FLOAT32_LAW = 1e-6
"""What rounding log mu to float32 does to a KL, in nats."""


def close_call(log_q, top_k):
    """Whether normalised float64 rows, which the reference has, cannot tell the last kept token from the next."""
    first, second = np.append(np.sort(log_q)[::-1], [-INF, -INF])[top_k - 1 : top_k + 1]
    return second > first - 1e-9 * max(1.0, -second) if second > -INF else False


def drawn_from(row, want):
    """The models' laws that must have a token."""
    if row.rule is Rule.MIXTURE:
        return [law for law, share in ((want.q, row.mixture_alpha), (want.p, 1.0 - row.mixture_alpha)) if share]
    return {Rule.TEACHER: (want.q,), Rule.SKD: (want.p, want.q)}.get(row.rule, (want.p,))


def check_row(row, want, log_mu, output, i):
    """Row i of a step against the definition: the law, its KL, the token."""
    if any(np.isneginf(law).all() for law in drawn_from(row, want)):
        assert output.error_B[i] == EMPTY_SUPPORT
        return
    assert output.error_B[i] == OK
    token, kl = int(output.token_ids_B[i]), output.record.kl[i].item()
    assert np.isfinite(log_mu[token]) and np.exp(log_mu).sum() == pytest.approx(1.0, rel=1e-5)
    if row.greedy:
        assert log_mu[token] == log_mu.max()
    if row.rule is Rule.TRUST_REGION:
        assert reference.kl(log_mu, want.p) <= row.epsilon * (1 + KL_TOLERANCE) + FLOAT32_LAW
        assert kl <= np.float32(row.epsilon) and 0.0 <= output.record.beta[i] <= 1.0
        return
    if row.rule is Rule.SKD and close_call(want.q, row.skd_top_k):
        return
    on = want.law > -600.0
    np.testing.assert_allclose(log_mu[on], want.law[on], rtol=2.0**-22, atol=1e-6)
    assert (log_mu[~on] < -599.0).all()
    assert kl == pytest.approx(want.kl, rel=1e-6, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    pairs(),
    TEMPERATURES,
    EPSILONS,
    st.integers(1, 3),
    st.floats(-300, 300).map(lambda x: 10.0**x),
    st.integers(0, 2**9),
)
def test_every_rule_at_the_edge(logits, temperature, epsilon, top_k, skd_temperature, seed):
    rows = rows_of(epsilon, top_k, skd_temperature, temperature)
    student_BV, teacher_BV = (x.expand(len(rows), -1) for x in logits)
    mask_V = torch.tensor([seed >> i & 1 for i in range(student_BV.shape[1])]).bool()
    for alignment in (ONE_STOP, TWO_STOPS)[: 1 + (len(mask_V) >= 6)]:
        output = blend_step(
            student_BV,
            teacher_BV,
            controls(rows),
            alignment,
            mask_BV=mask_V.expand(len(rows), -1),
            need_log_mu=True,
        )
        log_mu_BV = output.log_mu_BV.double().numpy()
        for i, row in enumerate(rows):
            want = expected(student_BV[i], teacher_BV[i], row, alignment, None, mask_V)
            check_row(row, want, log_mu_BV[i], output, i)

"""Schedules as docs/methods.md, "Schedules", states them, at their ends and in between."""

from __future__ import annotations

import math

import pytest

from trainer import schedules


def test_trust_region_budget_reaches_zero_at_k_and_stays():
    budgets = [schedules.trust_region_budget(0.5, 4, k) for k in range(7)]
    assert budgets == [0.5, 0.375, 0.25, 0.125, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("epsilon", [0.001, 0.005, 0.01, 0.02, 0.05])
@pytest.mark.parametrize("warmup", [15, 25, 50])
def test_trust_region_budget_is_equation_3(epsilon, warmup):
    for k in range(warmup + 5):
        want = epsilon * (1 - k / warmup) if k <= warmup else 0.0
        assert schedules.trust_region_budget(epsilon, warmup, k) == pytest.approx(want, rel=1e-12, abs=1e-18)
    assert schedules.trust_region_budget(epsilon, warmup, warmup) == 0.0, "exactly, so that the rule becomes student"


def test_temperature_rises_to_one():
    assert schedules.rollout_temperature(0.8, 15, 0) == 0.8
    assert schedules.rollout_temperature(0.8, 15, 15) == schedules.rollout_temperature(0.8, 15, 400) == 1.0
    assert schedules.rollout_temperature(0.8, 10, 5) == pytest.approx(0.9)


def test_veto_falls_to_zero():
    assert [schedules.veto_beta(0.8, 2, k) for k in range(4)] == [0.8, 0.4, 0.0, 0.0]


def test_learning_rate_warms_up_along_a_cosine_then_stays():
    factors = [schedules.learning_rate_factor(15, k) for k in range(20)]
    assert factors[0] == pytest.approx(0.5 * (1 - math.cos(math.pi / 15)))
    assert factors == sorted(factors)
    assert factors[13] < 1.0 and set(factors[14:]) == {1.0}
    assert factors[6] + factors[7] == pytest.approx(1.0), "the half cosine is symmetric about its middle"
    assert schedules.learning_rate_factor(0, 0) == 1.0

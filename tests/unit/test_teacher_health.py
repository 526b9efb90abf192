"""A teacher that is broken and looks alive has a name; one that is trained, sure or unsure of itself, has none."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from sglang_trb.pair.teacher_health import CONSTANT, UNIFORM, look_at
from tests.rollout_answers import make_rollout
from trainer.rollouts.rollout import RolloutKey
from trainer.rollouts.teacher_check import BrokenTeacher, check_server, check_teacher, teacher_row

V = 151_669
RNG = np.random.default_rng(0)


def entropy(logits_NV):
    log_p = logits_NV - np.log(np.exp(logits_NV).sum(1, keepdims=True))
    return -(np.exp(log_p) * log_p).sum(1).astype(np.float32)


SURE = RNG.exponential(0.05, 500) * (RNG.random(500) < 0.2)
CASES = {
    "zero weights": (np.full(200, math.log(V), np.float32), UNIFORM, True),
    "random initialisation": (entropy(RNG.normal(0, 0.64, (80, 20_000))) + math.log(V / 20_000), UNIFORM, True),
    "the same law everywhere": (np.full(200, 3.25, np.float32) + RNG.normal(0, 1e-6, 200), CONSTANT, True),
    "one token everywhere": (np.zeros(200), CONSTANT, True),
    "barely trained": (RNG.normal(0.93 * math.log(V), 0.5, 200), UNIFORM, False),
    "hardly moved by its prefix": (RNG.normal(4, 0.02, 200), CONSTANT, False),
    "a text model": (RNG.exponential(0.9, 200), None, False),
    "very sure of itself": (SURE, None, False),
    "too few positions": (np.full(20, math.log(V)), None, False),
}


@pytest.mark.parametrize("case", CASES)
def test_conditions_have_names(case):
    entropy_N, condition, broken = CASES[case]
    health = look_at(entropy_N, V)
    assert (health.condition, health.broken) == (condition, broken)
    assert (condition or "") in health.explained() and bool(health.explained()) == (condition is not None)


def rollouts(entropies):
    made = [make_rollout(RolloutKey(0, i, 0), 40) for i in range(2)]
    for rollout, value in zip(made, entropies, strict=True):
        rollout.tokens.teacher_entropy[:] = value
    return made


def test_the_run_is_told_then_stopped():
    notes = []
    check_teacher(rollouts([0.1, 4.0]), V, False, notes.append)
    assert not notes
    check_teacher(rollouts([4.0, 4.04]), V, False, notes.append)
    assert "constant teacher" in notes.pop()
    with pytest.raises(BrokenTeacher, match=r"^uniform teacher: .*server\.allow_broken_teacher=true"):
        check_teacher(rollouts([math.log(V)] * 2), V, False, notes.append)
    check_teacher(rollouts([math.log(V)] * 2), V, True, notes.append)
    assert "uniform teacher" in notes.pop() and not notes
    assert teacher_row(rollouts([1.0, 2.0]))["rollout/teacher_entropy_spread"] == pytest.approx(0.5)


@pytest.mark.parametrize("case", CASES)
def test_a_server_that_found_its_teacher_broken_gets_no_run_unless_that_is_allowed(case):
    entropy_N, condition, broken = CASES[case]
    info = {"teacher_health": json.loads(json.dumps(dataclasses.asdict(look_at(entropy_N, V))))}
    check_server("http://a", info, True)
    if broken:
        with pytest.raises(BrokenTeacher, match=rf"^http://a: {condition}: .*server\.allow_broken_teacher=true only"):
            check_server("http://a", info, False)
    else:
        check_server("http://a", info, False)

"""What holds of every rule and every solver, by their tables: a new entry is tested without a new test."""

import random

import numpy as np
import pytest
import torch

from sglang_trb.blend import RowControls, blend_step, reference, solvers
from sglang_trb.blend.distribution import Distribution
from sglang_trb.blend.rules import BLENDED_RULES, FUSED_WORK, columns, work_of
from sglang_trb.blend.types import OK
from sglang_trb.errors import InvalidParameter
from sglang_trb.wire.params import BlendParams
from sglang_trb.wire.rules import PARAMETERS, Rule
from tests.blend_rows import ONE_STOP, Row, controls, forbid_some, llm_like

ROWS, VOCAB = 12, 61
KL_TOLERANCE = 1e-4
LOG_MU_TOLERANCE = 1e-3
"""A KL within KL_TOLERANCE puts beta within half of that; log-ratios of these rows are below 10."""


def some_params(rule: Rule, seed: int) -> BlendParams:
    """Parameters from the declared ranges, as far as they matter for these rows."""
    chance = random.Random(seed)
    settings: dict[str, float] = {}
    for parameter in rule.parameters:
        if parameter.type is int:
            settings[parameter.name] = chance.randint(int(parameter.low), min(int(parameter.high), VOCAB))
        else:
            settings[parameter.name] = chance.uniform(max(parameter.low, 0.01), min(parameter.high, 1.5))
    return BlendParams(rule, **settings)


def asked(params: list[BlendParams], **flags) -> RowControls:
    """Controls as the server makes them, nothing filtered."""
    flags["unfused"] = tuple(i for i, one in enumerate(params) if not work_of(one) <= FUSED_WORK)
    plain = controls([Row(rule=one.rule, seed=i) for i, one in enumerate(params)], any_filter=False, **flags)
    plain.settings.update(
        {name: torch.tensor(values, dtype=dtype) for name, (values, dtype) in columns(params).items()}
    )
    return plain


@pytest.fixture(scope="module")
def logits():
    student_BV, teacher_BV = llm_like(ROWS, VOCAB, seed=3)
    return forbid_some(student_BV, 1, share=0.1), forbid_some(teacher_BV, 2, share=0.1)


def test_every_rule_has_its_distribution_and_its_definition():
    assert {*BLENDED_RULES, Rule.STUDENT} == {*reference.RULES} == {*Rule}
    assert [rule.code for rule in Rule] == list(range(len(Rule)))


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize("backend", solvers.BACKENDS)
def test_a_rule_draws_from_its_definition(rule, backend, logits):
    params = [some_params(rule, seed) for seed in range(ROWS)]
    output = blend_step(*logits, asked(params, backend=backend), ONE_STOP, need_log_mu=True)
    assert output.error_B.eq(OK).all()
    for i, one in enumerate(params):
        log_p, log_q = (reference.log_softmax(x[i].double().numpy()) for x in logits)
        log_mu, beta, kl = reference.RULES[rule](log_p, log_q, one.values())
        found = output.log_mu_BV[i].numpy()
        on = np.isfinite(log_mu)
        assert np.array_equal(np.isfinite(found), on)
        np.testing.assert_allclose(found[on], log_mu[on], atol=LOG_MU_TOLERANCE)
        assert output.record.kl[i].item() == pytest.approx(kl, rel=KL_TOLERANCE, abs=1e-7)
        assert np.isnan(beta) or output.record.beta[i].item() == pytest.approx(beta, rel=KL_TOLERANCE)
        assert on[output.token_ids_B[i]]


@pytest.mark.parametrize("rule", Rule)
def test_a_rule_changes_no_bit_of_other_rules_rows(rule, logits):
    others = [some_params(other, i) for i, other in enumerate([*Rule] * ROWS)][:ROWS]
    mine = [some_params(rule, i) if i % 2 else one for i, one in enumerate(others)]
    before, after = (blend_step(*logits, asked(params), ONE_STOP, need_log_mu=True) for params in (others, mine))
    for name in ("token_ids_B", "beta", "kl", "log_mu_BV"):
        assert torch.equal(before.tensors()[name][::2], after.tensors()[name][::2]), name


@pytest.mark.parametrize("rule", Rule)
def test_what_a_request_does_not_ask_for_can_be_left_out(rule, logits):
    params = [some_params(rule, seed) for seed in range(ROWS)]
    work = frozenset().union(*map(work_of, params))
    everything, needed = (blend_step(*logits, asked(params, work=w), ONE_STOP, need_log_mu=True) for w in (None, work))
    assert torch.equal(everything.log_mu_BV, needed.log_mu_BV)
    assert torch.equal(everything.token_ids_B, needed.token_ids_B)


@pytest.mark.parametrize("rule", Rule)
def test_a_rule_travels(rule):
    for seed in range(20):
        params = some_params(rule, seed)
        for default in (None, *(some_params(other, seed + 1) for other in Rule)):
            assert BlendParams.from_wire(params.to_wire(), default) == params


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_is_refused_out_of_its_range(name):
    parameter = PARAMETERS[name]
    assert parameter.parse(parameter.neutral) == parameter.neutral
    for value in (parameter.low - 1, parameter.high + 1, "1", True, None, float("nan")):
        with pytest.raises(InvalidParameter) as caught:
            parameter.parse(value)
        assert caught.value.field == f"trb_{name}" and parameter.allowed in str(caught.value)


@pytest.mark.parametrize(
    ("values", "named", "says"),
    [((0.1, 0.2), {}, "0.1, 0.2"), ((), {"skd_top_k": 3}, "skd_top_k"), ((0.1,), {"epsilon": 0.1}, "0.1, epsilon")],
)
def test_a_rule_takes_its_own_parameters_once(values, named, says):
    with pytest.raises(InvalidParameter, match=says):
        BlendParams(Rule.TRUST_REGION, *values, **named)


@pytest.mark.parametrize("name", solvers.BACKENDS)
def test_a_backend_meets_the_budget(name, logits):
    p, q = (Distribution.from_logits(x.double()) for x in logits)
    epsilon_B = torch.logspace(-9, 1, ROWS, dtype=torch.float64)
    epsilon_B[0] = 0.0
    blend = solvers.find(name, p.log_total_B.device).solve(p, q, epsilon_B, any_small=True)
    for i, epsilon in enumerate(epsilon_B.tolist()):
        log_p, log_q = (x.log_probs()[i].numpy() for x in (p, q))
        _, _, kl = reference.blend(log_p, log_q, epsilon)
        assert blend.kl_B[i].item() <= epsilon
        assert blend.kl_B[i].item() == pytest.approx(kl, rel=KL_TOLERANCE)
    assert torch.equal(blend.mu.log_weights_BV[0], p.log_weights_BV[0])


def test_an_unknown_backend_is_refused_by_the_step(logits):
    with pytest.raises(InvalidParameter, match="backend.*cuda.*" + ", ".join(["auto", *solvers.BACKENDS])):
        blend_step(*logits, asked([BlendParams(Rule.TRUST_REGION, 0.1)] * ROWS, backend="cuda"), ONE_STOP)

"""The request parameters: every key, every way to get one wrong, and the round trip to the wire."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_trb.errors import InvalidParameter, TrbError
from sglang_trb.wire.params import MAX_SKD_TOP_K, MAX_TEMPERATURE, MIN_TEMPERATURE, BlendParams, Return, Rule

SKD = {"trb_rule": "skd", "trb_skd_top_k": 25, "trb_skd_temperature": 0.6}

returns = st.sampled_from(Return)
params = st.one_of(
    st.builds(BlendParams, st.just(Rule.TRUST_REGION), st.floats(0, 1e300), returned=returns),
    st.builds(BlendParams, st.sampled_from([Rule.STUDENT, Rule.TEACHER]), returned=returns),
    st.builds(lambda alpha, **rest: BlendParams(Rule.MIXTURE, alpha, **rest), st.floats(0, 1), returned=returns),
    st.builds(
        BlendParams,
        st.just(Rule.SKD),
        st.integers(1, MAX_SKD_TOP_K),
        st.floats(MIN_TEMPERATURE, MAX_TEMPERATURE),
        returned=returns,
    ),
)


@given(params, params)
def test_round_trip_whatever_the_servers_defaults(wanted, default):
    wire = json.loads(json.dumps(wanted.to_wire()))
    assert BlendParams.from_wire(wire, default) == wanted


@given(params)
def test_nothing_given_is_the_servers_default(default):
    for nothing in (None, {}, {"other_key": 1}):
        assert BlendParams.from_wire(nothing, default) == default


def test_an_epsilon_alone_means_trust_region():
    assert BlendParams.from_wire({"trb_epsilon": 0.01}) == BlendParams(Rule.TRUST_REGION, 0.01)
    teacher = BlendParams(Rule.TEACHER, returned=Return.TOKENS)
    assert BlendParams.from_wire({"trb_epsilon": 1}, teacher) == BlendParams(
        Rule.TRUST_REGION, 1.0, returned=Return.TOKENS
    )


def test_trust_region_without_an_epsilon_takes_the_servers():
    default = BlendParams(Rule.TRUST_REGION, 0.05)
    assert BlendParams.from_wire({"trb_rule": "trust_region"}, default).epsilon == 0.05
    assert BlendParams.from_wire({"trb_rule": "trust_region"}, BlendParams(Rule.TEACHER)).epsilon == 0.0


def test_skd_takes_what_is_missing_from_an_skd_default():
    default = BlendParams(Rule.SKD, 50, 0.2)
    assert BlendParams.from_wire({"trb_skd_top_k": 15}, default) == BlendParams(Rule.SKD, 15, 0.2)


@pytest.mark.parametrize(
    ("wire", "key", "says"),
    [
        ({"trb_epsilom": 0.1}, "trb_epsilom", "did you mean trb_epsilon?"),
        ({"trb_": 0}, "trb_", "the keys"),
        ({"trb_rule": "trb"}, "trb_rule", "trust_region, student, teacher, skd"),
        ({"trb_rule": "TEACHER"}, "trb_rule", "one of"),
        ({"trb_rule": None}, "trb_rule", "one of"),
        ({"trb_rule": 1}, "trb_rule", "one of"),
        ({"trb_rule": ["teacher"]}, "trb_rule", "one of"),
        ({"trb_return": "all"}, "trb_return", "none, summary, tokens, support, support_both"),
        ({"trb_return": True}, "trb_return", "one of"),
        ({"trb_epsilon": "0.1"}, "trb_epsilon", "finite number >= 0"),
        ({"trb_epsilon": None}, "trb_epsilon", "finite number"),
        ({"trb_epsilon": True}, "trb_epsilon", "finite number"),
        ({"trb_epsilon": [0.1]}, "trb_epsilon", "finite number"),
        ({"trb_epsilon": -0.1}, "trb_epsilon", "finite number"),
        ({"trb_epsilon": -5e-324}, "trb_epsilon", "finite number"),
        ({"trb_epsilon": math.nan}, "trb_epsilon", "finite number"),
        ({"trb_epsilon": math.inf}, "trb_epsilon", "finite number"),
        ({"trb_epsilon": json.loads("1e400")}, "trb_epsilon", "finite number"),
        ({"trb_epsilon": 10**400}, "trb_epsilon", "finite number"),
        (SKD | {"trb_skd_top_k": 0}, "trb_skd_top_k", "integer from 1"),
        (SKD | {"trb_skd_top_k": -1}, "trb_skd_top_k", "integer from 1"),
        (SKD | {"trb_skd_top_k": 25.0}, "trb_skd_top_k", "integer from 1"),
        (SKD | {"trb_skd_top_k": True}, "trb_skd_top_k", "integer from 1"),
        (SKD | {"trb_skd_top_k": "25"}, "trb_skd_top_k", "integer from 1"),
        (SKD | {"trb_skd_top_k": MAX_SKD_TOP_K + 1}, "trb_skd_top_k", str(MAX_SKD_TOP_K)),
        (SKD | {"trb_skd_temperature": 0}, "trb_skd_temperature", "a number from 0.001 to 1000"),
        (SKD | {"trb_skd_temperature": 1e-40}, "trb_skd_temperature", "a number from 0.001 to 1000"),
        (SKD | {"trb_skd_temperature": 1e39}, "trb_skd_temperature", "a number from 0.001 to 1000"),
        (SKD | {"trb_skd_temperature": math.nan}, "trb_skd_temperature", "a number from 0.001 to 1000"),
        (SKD | {"trb_skd_temperature": math.inf}, "trb_skd_temperature", "a number from 0.001 to 1000"),
        (SKD | {"trb_skd_temperature": False}, "trb_skd_temperature", "a number from 0.001 to 1000"),
        ({"trb_rule": "skd"}, "trb_skd_top_k", "required"),
        ({"trb_rule": "skd", "trb_skd_top_k": 5}, "trb_skd_temperature", "required"),
        ({"trb_rule": "teacher", "trb_epsilon": 0.1}, "trb_epsilon", "only with trb_rule 'trust_region'"),
        ({"trb_rule": "student", "trb_epsilon": 0}, "trb_epsilon", "only with trb_rule 'trust_region'"),
        (SKD | {"trb_epsilon": 0.1}, "trb_epsilon", "only with"),
        ({"trb_skd_top_k": 5}, "trb_skd_top_k", "only with trb_rule 'skd'"),
        ({"trb_epsilon": 0.1, "trb_skd_temperature": 1}, "trb_skd_temperature", "only with trb_rule 'skd'"),
    ],
)
def test_a_wrong_request_is_told_the_key_and_what_is_allowed(wire, key, says):
    with pytest.raises(InvalidParameter) as raised:
        BlendParams.from_wire(wire)
    assert raised.value.field == key
    assert says in str(raised.value)
    assert repr(wire.get(key)) in str(raised.value)


@pytest.mark.parametrize("custom_params", ["trb_epsilon", [("trb_epsilon", 1)], 3, True])
def test_custom_params_must_be_an_object(custom_params):
    with pytest.raises(InvalidParameter, match=r"custom_params.*object"):
        BlendParams.from_wire(custom_params)


def test_the_error_is_what_callers_expect_to_catch():
    assert issubclass(InvalidParameter, ValueError) and issubclass(InvalidParameter, TrbError)


def test_zero_and_negative_zero_and_huge_budgets_are_fine():
    for epsilon in (0, 0.0, -0.0, 5e-324, 1e308, 10**15):
        assert BlendParams.from_wire({"trb_epsilon": epsilon}).epsilon == epsilon


def test_each_return_level_includes_the_ones_before_it():
    order = list(Return)
    for i, level in enumerate(order):
        assert [level.includes(other) for other in order] == [j <= i for j in range(len(order))]

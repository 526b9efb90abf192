"""Statistics of a response: rows in, wire form out; and the keys of its draws."""

from __future__ import annotations

import numpy as np
import pytest

from sglang_trb.wire.packing import unpack
from sglang_trb.wire.params import BlendParams, Return, Rule
from sglang_trb.wire.record import SUPPORT_COLUMNS, TokenRecord, TokenStatistics
from sglang_trb.wire.seeds import sample_seed
from sglang_trb.wire.trace import Trace, columns_for


def filled(returned: Return, tokens: int = 5) -> tuple[Trace, np.ndarray]:
    """A trace over rows as wide as the widest request's, with token ids in the support's first cells."""
    rows = np.random.default_rng(0).normal(size=(tokens, columns_for(Return.SUPPORT_BOTH))).astype(np.float32)
    for start in (len(TokenRecord.names()), len(TokenRecord.names()) + SUPPORT_COLUMNS):
        rows[:, start : start + 16] = np.arange(tokens * 16, dtype=np.int32).reshape(tokens, 16).view(np.float32)
    trace = Trace(BlendParams(Rule.TRUST_REGION, 0.5, returned=returned))
    for row in rows:
        trace.append(row)
    return trace, rows


@pytest.mark.parametrize("returned", [level for level in Return if level is not Return.NONE])
def test_wire_form_holds_what_was_asked_for(returned: Return) -> None:
    trace, rows = filled(returned)
    wire = trace.finish(5, "v7").to_wire()
    assert (wire["rule"], wire["epsilon"], wire["completion_tokens"]) == ("trust_region", 0.5, 5)
    assert wire["student_weight_version"] == "v7"
    for i, name in enumerate(TokenStatistics.names()):
        assert (name in wire) == returned.includes(Return.TOKENS)
        if name in wire:
            np.testing.assert_array_equal(unpack(wire[name]), rows[:, i])
    for key, level in (("support", Return.SUPPORT), ("teacher_support", Return.SUPPORT_BOTH)):
        assert (key in wire) == returned.includes(level)
        if key in wire:
            np.testing.assert_array_equal(unpack(wire[key]["ids"]), np.arange(80).reshape(5, 16))
            assert unpack(wire[key]["teacher_logprob"]).shape == (5, 16)


def test_tokens_cut_off_by_a_stop_string_are_left_out() -> None:
    trace, rows = filled(Return.TOKENS)
    wire = trace.finish(3, None).to_wire()
    assert wire["completion_tokens"] == 3
    np.testing.assert_allclose(wire["sum_kl"], rows[:3, TokenStatistics.names().index("kl")].sum(), rtol=1e-6)


def test_missing_statistics_are_an_error_not_a_guess() -> None:
    with pytest.raises(RuntimeError, match="6 tokens"):
        filled(Return.TOKENS)[0].finish(6, None)


def test_empty_and_divergent_responses_are_json() -> None:
    assert Trace(BlendParams(returned=Return.SUPPORT)).finish(0, None).to_wire()["mean_kl"] is None
    trace = Trace(BlendParams(Rule.TEACHER))
    trace.append(np.full(len(TokenRecord.names()), np.inf, np.float32))
    assert trace.finish(1, None).to_wire()["sum_kl"] is None


def test_sample_seeds_are_distinct_signed_and_fixed() -> None:
    seeds = {sample_seed(seed, index) for seed in (-1, 0, 1, 2**63 - 1) for index in range(1000)}
    assert len(seeds) == 4000
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
    assert sample_seed(0, 0) == sample_seed(0, 0) != 0

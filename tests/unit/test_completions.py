"""Reading a response back: records, totals, and token pieces that never split a character."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_trb.display.completions import (
    TracedCompletion,
    by_label,
    number,
    token_pieces,
    totals,
    visible,
)
from sglang_trb.errors import InvalidParameter
from sglang_trb.wire.packing import pack
from sglang_trb.wire.record import TokenStatistics
from tests.pairs import small_tokenizer


def completion(label="ε = 0.1", beta=(0.5, 1.0), kl=(0.1, 0.05), teacher=(-1.0, -3.0), **summary):
    n = len(beta)
    summary = {"rule": "trust_region", "epsilon": 0.1} | summary
    other = {name: [-1.0] * n for name in TokenStatistics.names()}
    tokens = TokenStatistics(**other | {"beta": [*beta], "kl": [*kl], "teacher_logprob": [*teacher]})
    return TracedCompletion("p", label, "ab"[:n], list("ab"[:n]), summary, tokens)


def wire(n=2, **changes):
    arrays = {name: pack(np.linspace(0, 1, n, dtype=np.float32)) for name in TokenStatistics.names()}
    return {"rule": "trust_region", "epsilon": 0.5, "mean_beta": 0.5} | arrays | changes


def test_from_wire_keeps_the_summary_and_unpacks_the_arrays():
    read = TracedCompletion.from_wire(wire(), prompt="p", label="l", text="ab", pieces=["a", "b"], correct=True)
    assert read.summary == {"rule": "trust_region", "epsilon": 0.5, "mean_beta": 0.5, "correct": True}
    assert read.tokens.beta == [0.0, 1.0] and read.budget == 0.5


def test_from_wire_names_what_is_missing_or_does_not_fit():
    arguments = {"prompt": "p", "label": "l", "text": "ab", "pieces": ["a", "b"]}
    with pytest.raises(InvalidParameter, match=r"trb\.behavior_logprob.*trb_return 'tokens'"):
        TracedCompletion.from_wire({"rule": "teacher"}, **arguments)
    with pytest.raises(InvalidParameter, match=r"trb\.kl\.dtype"):
        TracedCompletion.from_wire(wire(kl={"dtype": "float64", "shape": [2], "data": ""}), **arguments)
    with pytest.raises(InvalidParameter, match=r"behavior_logprob.*3 values.*one per token: 2"):
        TracedCompletion.from_wire(wire(n=3), **arguments)


def test_only_a_trust_region_has_a_budget():
    assert completion().budget == 0.1
    assert completion(rule="teacher", epsilon=0.0).budget is None


def test_json_form_holds_no_infinity():
    line = json.dumps(completion(kl=(math.inf, math.nan)).to_json(), allow_nan=False)
    assert json.loads(line)["kl"] == [None, None]


def test_totals_are_means_over_tokens_and_sums_over_completions():
    result = totals([completion(correct=True), completion(beta=(0.0,), kl=(0.2,), teacher=(-2.0,), correct=False)])
    assert (result.completions, result.tokens, result.correct, result.judged) == (2, 3, 1, 2)
    assert result.mean_beta == pytest.approx(0.5)
    assert result.saturated == pytest.approx(1 / 3)
    assert result.sum_kl == pytest.approx((0.15 + 0.2) / 2)
    assert result.mean_teacher_logprob == pytest.approx(-2.0)


def test_totals_of_nothing():
    assert totals([]).mean_beta is None and totals([]).judged == 0
    assert totals([completion(kl=(math.inf, 0.0))]).sum_kl is None


def test_labels_keep_their_order():
    assert list(by_label([completion("b"), completion("a"), completion("b")])) == ["b", "a"]


@pytest.mark.parametrize(
    "text", ["plain text", "Café 日本語 🙂👩‍👩‍👧 naïve\n\n x", "a\ufffdb \u2028", "🙂🙂", "", "the<|im_end|>", "ΑΒ"]
)
def test_pieces_joined_are_the_text(text):
    tokenizer = small_tokenizer()
    ids = tokenizer.encode(text).ids
    pieces = token_pieces(tokenizer, ids)
    assert len(pieces) == len(ids) and "".join(pieces) == text


def test_a_split_character_belongs_to_the_token_that_completes_it():
    tokenizer = small_tokenizer()
    assert token_pieces(tokenizer, tokenizer.encode("é🙂").ids) == ["", "é", "", "", "", "🙂"]


def test_an_unfinished_character_shows_at_the_end_only():
    tokenizer = small_tokenizer()
    assert token_pieces(tokenizer, tokenizer.encode("a🙂").ids[:-1]) == ["a", "", "", "\ufffd"]


@given(st.lists(st.integers(0, 300), max_size=20))
def test_pieces_of_arbitrary_bytes(ids):
    """The first ids of the small tokenizer are single bytes: most sequences are not UTF-8."""
    tokenizer = small_tokenizer()
    assert "".join(token_pieces(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=False)


def test_untrusted_text_cannot_drive_a_terminal():
    assert visible("\x1b[31mred\x07\x00\x7f\r") == "␛[31mred␇␀␡␍"
    assert visible("a\u202eb\u2066c\x9b\ud800") == "a\ufffdb\ufffdc\ufffd\ufffd"
    assert visible("é日本\n\t🙂") == "é日本\n\t🙂"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (-1.234, "−1.23"), (0.0123, "0.012"), (1e-5, "1e−05"), (None, "–"), (math.inf, "–")],
)
def test_numbers_for_display(value, text):
    assert number(value) == text

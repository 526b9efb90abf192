"""A server that a run cannot use is named when it is looked at, with what it would have to be."""

from __future__ import annotations

import types

import pytest

from sglang_trb.checkpoints.digest import ModelDigest
from sglang_trb.pair.alignment import StopAlignment
from sglang_trb.pair.pair import Pair
from tests.pairs import build_pair
from trainer.config.run import RunConfig
from trainer.data.limits import Limits
from trainer.rollouts.server_check import ContextTooShort, OtherPair, ServerCheck
from trainer.rollouts.teacher import OtherTeacher
from trainer.rollouts.teacher_check import BrokenTeacher

BROKEN = {"entropy_mean": 11.9, "entropy_spread": 0.0, "condition": "uniform teacher", "broken": True}


@pytest.fixture(scope="module")
def check():
    pair = build_pair("plain")
    values = {
        "name": "run", "models": {"student": str(pair.student), "teacher": str(pair.teacher)},
        "data": {"path": "problems.jsonl"}, "loss": {"name": "reverse_kl"}, "server": {"urls": ["http://a"]},
        "rollouts": {"max_new_tokens": 90},
    }  # fmt: skip
    made = ServerCheck(RunConfig(**values), Pair("student", "teacher", 50, StopAlignment((3, 7), (5, 7), 7)), print)
    made.longest_prompt = 10
    return made


def look(check, url="http://a", **changes):
    info = {
        "stop_ids": {"student": [3, 7], "teacher": [5, 7]}, "vocab_size": 50, "teacher": "/models/teacher",
        "teacher_digest": ModelDigest.of(build_pair("plain").teacher).to_wire(), "teacher_health": None,
        "limits": {"prompt_tokens": 99, "total_tokens": 100},
    }  # fmt: skip
    check(types.SimpleNamespace(url=url), info | changes)


def test_the_least_of_several_servers_counts(check):
    look(check)
    look(check, url="http://b", limits={"prompt_tokens": 98, "total_tokens": 200})
    assert check.limits() == Limits(98, 100)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"vocab_size": 51}, OtherPair, r"51 ids; allowed: .* and 50, as models\.student"),
        ({"stop_ids": {"student": [3], "teacher": [5, 7]}}, OtherPair, r"got stop ids .*\[3\].*allowed: .*\[3, 7\]"),
        ({"teacher_digest": {"config": "0", "weights": "0"}}, OtherTeacher, r"teacher: got '/models/teacher', which"),
        ({"teacher_health": BROKEN}, BrokenTeacher, r"uniform teacher.*allow_broken_teacher"),
        ({"limits": {"prompt_tokens": 99, "total_tokens": 99}}, ContextTooShort, "prompts of 9 tokens.* at least 10"),
    ],
)
def test_one_that_cannot_be_used_is_named(check, changes, error, says):
    with pytest.raises(error, match=f"^http://a: .*{says}"):
        look(check, **changes)


def test_what_is_no_account_of_a_server_is_a_key_error(check):
    """Which `ServerPool` takes for a faulty server."""
    with pytest.raises(KeyError):
        check(types.SimpleNamespace(url="http://a"), {"student_weight_version": "1"})

"""Only an answer that is whole, and to what was asked, becomes a rollout."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sglang_trb.packing import pack, unpack
from tests.rollout_answers import make_answer, make_order
from trainer.rollouts import RolloutKey, UntrustedRollout, parse_rollout

KEY = RolloutKey(3, 7, 1)


def test_a_good_answer_keeps_its_numbers():
    order = make_order(KEY, teacher_support=True)
    answer = make_answer(order, 6)
    rollout = parse_rollout(order, answer)
    trb = answer["meta_info"]["trb"]
    assert (rollout.key, rollout.finish, len(rollout)) == (KEY, "stop", 6)
    assert rollout.token_ids_T.tolist() == answer["output_ids"]
    assert np.array_equal(rollout.tokens["kl"], unpack(trb["kl"]))
    assert np.array_equal(rollout.support["ids"], unpack(trb["support"]["ids"]))
    assert np.array_equal(rollout.teacher_support["teacher_logprob"], unpack(trb["teacher_support"]["teacher_logprob"]))


def break_path(answer, path, value):
    *parents, last = path
    for key in parents:
        answer = answer[key]
    if value is None:
        del answer[last]
    else:
        answer[last] = value


TRB = ("meta_info", "trb")
BROKEN = [
    (("meta_info",), None, "meta_info"),
    (TRB, None, "trb"),
    (TRB, [], "malformed"),
    ((*TRB, "kl"), None, "kl"),
    ((*TRB, "kl"), pack(np.zeros(3, np.float32)), "shape"),
    ((*TRB, "kl"), pack(np.full(4, np.nan, np.float32)), "NaN"),
    ((*TRB, "kl"), pack(np.full(4, 0.2, np.float32)), "epsilon"),
    ((*TRB, "kl"), {"dtype": "object", "shape": [4], "data": ""}, "dtype"),
    ((*TRB, "beta"), pack(np.full(4, 1.5, np.float32)), "beta"),
    ((*TRB, "support"), None, "support"),
    ((*TRB, "support", "ids"), pack(np.full((4, 16), -1, np.int32)), "ids"),
    ((*TRB, "support", "student_logprob"), pack(np.full((4, 15), -1, np.float32)), "shape"),
    ((*TRB, "support", "teacher_logprob"), pack(np.full((4, 16), np.nan, np.float32)), "NaN"),
    ((*TRB, "student_weight_version"), "run/step-1", "student_weight_version"),
    ((*TRB, "epsilon"), 0.2, "epsilon"),
    ((*TRB, "rule"), "student", "rule"),
    (("output_ids",), [], "output_ids"),
    (("output_ids",), ["a"] * 4, "output_ids"),
    (("output_ids",), [1.5] * 4, "output_ids"),
    (("output_ids",), [-1] * 4, "output_ids"),
    (("output_ids",), list(range(65)), "output_ids"),
    (("output_ids",), [1, 2, 3], "shape"),
    (("meta_info", "finish_reason"), {"type": "abort"}, "finish_reason"),
    (("meta_info", "finish_reason"), "stop", "malformed"),
    (("meta_info", "prompt_tokens"), 4, "prompt_tokens"),
]


@pytest.mark.parametrize(("path", "value", "named"), BROKEN)
def test_anything_else_is_refused_by_name(path, value, named):
    order = make_order(KEY)
    answer = make_answer(order)
    break_path(answer, path, value)
    with pytest.raises(UntrustedRollout, match=named):
        parse_rollout(order, answer)


@pytest.mark.parametrize("answer", [None, [], "text", {}, {"meta_info": None}, {"meta_info": {"trb": None}}])
def test_garbage_is_refused(answer):
    with pytest.raises(UntrustedRollout):
        parse_rollout(make_order(KEY), answer)


def test_seeds_depend_on_prompt_and_sample_and_differ():
    keys = [RolloutKey(0, prompt, sample) for prompt, sample in itertools.product(range(500), range(4))]
    seeds = {key.seed(0) for key in keys}
    assert len(seeds) == len(keys) and all(0 <= seed < 1 << 31 for seed in seeds)
    assert not seeds & {key.seed(1) for key in keys[:100]}

"""Only an answer that is whole, and to what was asked, becomes a rollout."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools

import numpy as np
import pytest

from sglang_trb.wire.packing import pack, unpack
from sglang_trb.wire.params import BlendParams, Return, Rule
from tests.rollout_answers import make_answer, make_request
from trainer.rollouts.rollout import OtherPolicy, RolloutKey, UntrustedRollout, parse_rollout

KEY = RolloutKey(3, 7, 1)


def test_a_good_answer_keeps_its_numbers():
    request = make_request(KEY, teacher_support=True)
    answer = make_answer(request, 6)
    rollout = parse_rollout(request, answer)
    trb = answer["meta_info"]["trb"]
    assert (rollout.key, rollout.finish, len(rollout)) == (KEY, "stop", 6)
    assert rollout.token_ids_T.tolist() == answer["output_ids"]
    assert np.array_equal(rollout.tokens.kl, unpack(trb["kl"]))
    assert np.array_equal(rollout.support.ids, unpack(trb["support"]["ids"]))
    assert np.array_equal(rollout.teacher_support.teacher_logprob, unpack(trb["teacher_support"]["teacher_logprob"]))


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
    (("meta_info", "weight_version"), "run/step-1", "weight_version"),
    (("meta_info", "weight_version"), None, "weight_version"),
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
    request = make_request(KEY)
    answer = make_answer(request)
    break_path(answer, path, value)
    with pytest.raises(UntrustedRollout, match=named):
        parse_rollout(request, answer)


def test_a_response_that_was_cut_off_before_its_length_is_refused():
    request = make_request(KEY)
    answer = make_answer(request, request.max_new_tokens)
    answer["meta_info"]["finish_reason"] = {"type": "length"}
    assert len(parse_rollout(request, answer)) == request.max_new_tokens
    shorter = make_answer(request, request.max_new_tokens - 2)
    shorter["meta_info"]["finish_reason"] = {"type": "length"}
    with pytest.raises(UntrustedRollout, match="62 tokens, cut off"):
        parse_rollout(request, shorter)


@pytest.mark.parametrize(("temperature", "moved", "refused"), [(1.0, 0.0, False), (1.0, 2e-4, True), (0.9, 0.5, False)])
def test_the_students_own_law_is_the_one_that_was_drawn_from(temperature, moved, refused):
    blend = BlendParams(Rule.STUDENT, returned=Return.TOKENS)
    request = dataclasses.replace(make_request(KEY), blend=blend, temperature=temperature)
    answer = make_answer(request)
    trb = answer["meta_info"]["trb"]
    behavior_T = unpack(trb["behavior_logprob"]).copy()
    behavior_T[2] += np.float32(moved)
    trb["behavior_logprob"] = pack(behavior_T)
    with pytest.raises(OtherPolicy, match="filtered sampling") if refused else contextlib.nullcontext():
        parse_rollout(request, answer)


def test_no_value_that_changes_the_law_is_left_to_the_server():
    """SGLang fills in what is missing from its own preferences; these are all its fields, but for those of the text."""
    sent = make_request(KEY).body()["sampling_params"].keys()
    of_text = {"skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim", "stream_interval"}
    made_by_sglang = {"stop_strs", "stop_regex_strs", "stop_str_max_len", "stop_regex_max_len", "is_normalized"}
    sampling_params = pytest.importorskip("sglang.srt.sampling.sampling_params").SamplingParams
    others = set(sampling_params.__struct_fields__) - sent - of_text - made_by_sglang
    assert others == {"ebnf_full_assistant"}, "read again what these do"


@pytest.mark.parametrize("answer", [None, [], "text", {}, {"meta_info": None}, {"meta_info": {"trb": None}}])
def test_garbage_is_refused(answer):
    with pytest.raises(UntrustedRollout):
        parse_rollout(make_request(KEY), answer)


def test_seeds_depend_on_prompt_and_sample_and_differ():
    keys = [RolloutKey(0, prompt, sample) for prompt, sample in itertools.product(range(500), range(4))]
    seeds = {key.seed(0) for key in keys}
    assert len(seeds) == len(keys) and all(0 <= seed < 1 << 31 for seed in seeds)
    assert not seeds & {key.seed(1) for key in keys[:100]}

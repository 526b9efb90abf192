"""The description of requests: what is refused and how, and that it knows every field of SGLang's."""

from __future__ import annotations

import dataclasses
import functools
import math

import pytest
from pydantic import ValidationError

from sglang_trb.errors import InvalidParameter
from sglang_trb.requests import stop_patterns
from sglang_trb.requests.anthropic import CountTokensFields, MessagesFields
from sglang_trb.requests.fields import Fields, ServerFacts
from sglang_trb.requests.generate import MAX_SEQUENCES, GenerateFields, SamplingFields, VertexFields
from sglang_trb.requests.openai import ChatFields, CompletionFields, DetokenizeFields, TokenizeFields
from sglang_trb.wire.params import BlendParams, Rule
from tests.request_cases import CASES, PLACES, chat, completion, generate, sampling

SERVER = ServerFacts(vocab_size=2000, context_length=512, masked_ids=frozenset({7}), canonical_id=6)
BODIES: dict[str, type[Fields]] = {
    "/generate": GenerateFields,
    "/v1/completions": CompletionFields,
    "/v1/chat/completions": ChatFields,
    "/vertex_generate": VertexFields,
    "/v1/tokenize": TokenizeFields,
    "/v1/detokenize": DetokenizeFields,
}


@pytest.mark.parametrize(("route", "body", "field"), CASES, ids=[f"{case[0]} {case[2]}" for case in CASES])
def test_a_wrong_field_is_named_with_what_is_allowed(route, body, field):
    with pytest.raises(InvalidParameter) as raised:
        BODIES[route].check(body, SERVER)
    assert field in str(raised.value)
    assert "allowed: " in str(raised.value)


@pytest.mark.parametrize(("says", "cases"), PLACES.items(), ids=PLACES)
def test_a_misplaced_or_misspelt_field_is_told_its_place(says, cases):
    for route, body, _ in cases:
        with pytest.raises(InvalidParameter) as raised:
            BODIES[route].check(body, SERVER)
        assert says in str(raised.value)


@pytest.mark.parametrize("fields", [ChatFields, TokenizeFields, MessagesFields, CountTokensFields])
def test_a_conversation_that_cannot_fit_the_context_is_refused_before_it_is_tokenized(fields):
    def check(**more):
        body = {"model": "m", "messages": [{"role": "user", "content": "x" * 1000}]} | more
        fields.check(body | ({"max_tokens": 1} if fields is MessagesFields else {}), SERVER)

    many = 256 * SERVER.context_length
    deep = functools.reduce(lambda inside, _: {"a": [inside]}, range(400), "x" * many)
    check()
    check(tools=[{"name": "f", "function": {"name": "f"}, "input_schema": {}}])
    for long in ([{"role": "user", "content": "x" * many}], [{"role": "user", "content": "x"}] * many):
        with pytest.raises(InvalidParameter, match=f"^messages: got .*; allowed: at most {many} characters in all"):
            check(messages=long)
    with pytest.raises(InvalidParameter, match="^tools: got "):
        check(tools=[{"name": "f", "function": {"name": "f", "parameters": deep}}])


@pytest.mark.parametrize(
    ("route", "body"),
    [
        generate("stream", False)[:2],
        generate("text", ["a", "b"], rid=["r", "s"], return_logprob=[True, False], logprob_start_len=-1)[:2],
        generate("input_ids", [[1], [2]], text=None, token_ids_logprob=[[1], [2, 3]], sampling_params=[{}, {}])[:2],
        generate("token_ids_logprob", [1, 2], text=["a", "b"])[:2],
        generate("rid", "r", text=["a", "b"], sampling_params={"n": 4})[:2],
        generate("lora_path", None, image_data=None, return_sampling_mask=False, sampling_params=None)[:2],
        sampling("temperature", 0)[:2],
        sampling("temperature", 1e-7)[:2],
        sampling("max_new_tokens", None, top_k=-1, stop=None, stop_token_ids=[1, 2], json_schema="")[:2],
        sampling("logit_bias", {"0": 3, "17": -1e39, "23": -100.0})[:2],
        sampling("stop_regex", [r"\n{1,64}", "(END|STOP)"])[:2],
        sampling("custom_params", {"trb_epsilon": 1, "mine": {"a": [1][0]}, "list": [None, True, "x", 1.5]})[:2],
        completion("prompt", [1, 2], user="me", metadata={"a": 1}, response_format={"type": "text"})[:2],
        completion("prompt", ["a", "b"], rid=["r", "s"])[:2],
        chat("messages", [{"role": "assistant", "content": None, "refusal": None, "audio": None}])[:2],
        chat("tools", [{"type": "function", "function": {"name": "f", "parameters": {}}}], tool_choice="auto")[:2],
        chat("reasoning_effort", "low", chat_template_kwargs={"enable_thinking": False})[:2],
    ],
)
def test_what_people_send_is_accepted(route, body):
    BODIES[route].check(body, SERVER)


def test_every_field_of_sglang_is_described():
    """A field that a new SGLang brings is missing here before it can reach the scheduler unchecked."""
    from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest
    from sglang.srt.managers.io_struct import GenerateReqInput
    from sglang.srt.sampling.sampling_params import SamplingParams

    from sglang_trb.requests.field_types import HEALTH_CHECK

    assert SamplingFields.model_fields.keys() == set(SamplingParams.__struct_fields__)
    assert GenerateFields.model_fields.keys() == {field.name for field in dataclasses.fields(GenerateReqInput)}
    assert not CompletionRequest.model_fields.keys() - CompletionFields.model_fields.keys()
    assert not ChatCompletionRequest.model_fields.keys() - ChatFields.model_fields.keys()
    assert HEALTH_CHECK == HEALTH_CHECK_RID_PREFIX


def test_a_field_that_the_description_does_not_know_is_refused():
    with pytest.raises(InvalidParameter, match=r"new_field: got 1; allowed: known fields only"):
        GenerateFields.check({"text": "x", "new_field": 1}, SERVER)


def test_numbers_that_are_not_finite_are_refused():
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(InvalidParameter, match="temperature"):
            SamplingFields.check({"temperature": value}, SERVER)
    with pytest.raises(InvalidParameter, match="logit_bias"):
        SamplingFields.check({"logit_bias": {"1": math.nan}}, SERVER)
    SamplingFields.check({"logit_bias": {"1": -math.inf}}, SERVER)


def test_messages_stay_short():
    with pytest.raises(InvalidParameter) as raised:
        GenerateFields.check({"text": "x" * 10_000_000}, SERVER)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (GenerateFields, {"input_ids": ["x"] * 1000}),
        (GenerateFields, {"text": "x", "rid": [1] * 1000}),
        (GenerateFields, dict.fromkeys(map(str, range(1000)))),
        (SamplingFields, {"logit_bias": dict.fromkeys(map(str, range(3000)), "x")}),
        (SamplingFields, {"stop": [1] * 1000}),
        (CompletionFields, {"prompt": [[None]] * 1000}),
        (ChatFields, {"messages": [{"role": "user", "content": [5] * 1000}] * 1000}),
    ],
)
def test_a_long_wrong_body_is_refused_at_its_first_fault(fields, body):
    """A fault for each item of a body of some megabytes would take seconds, in which the server answers nobody."""
    with pytest.raises(ValidationError) as raised:
        fields.model_validate(body, context=SERVER)
    assert raised.value.error_count() < 10


def test_one_request_has_a_bounded_number_of_sequences():
    GenerateFields.check({"text": ["x"] * 16, "sampling_params": {"n": 1024}}, SERVER)
    with pytest.raises(InvalidParameter, match=f"n: got 1024; allowed: at most {MAX_SEQUENCES}"):
        GenerateFields.check({"text": ["x"] * 17, "sampling_params": {"n": 1024}}, SERVER)


def test_grammars_and_labels_are_taken_where_the_server_has_them():
    server = dataclasses.replace(SERVER, grammar_backend="xgrammar", metric_labels=frozenset({"team"}))
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    GenerateFields.check({"text": "x", "custom_labels": {"team": "a"}, "sampling_params": {"regex": "a+"}}, server)
    named = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    CompletionFields.check({"prompt": "x", "response_format": named}, server)
    ChatFields.check(chat("response_format", {"type": "json_schema", "schema": schema})[1], server)
    for wrong in ({"json_schema": []}, {"schema": []}, {"schema": {"properties": None}}, {"json_schema": {"name": 5}}):
        with pytest.raises(InvalidParameter, match=next(iter(wrong))):
            CompletionFields.check({"prompt": "x", "response_format": {"type": "json_schema"} | wrong}, server)


def test_vertex_prompts_are_checked_with_their_parameters():
    VertexFields.check({"instances": [{"text": "x"}, {"text": "y"}], "parameters": {"stream": False}}, SERVER)
    VertexFields.check({"instances": []}, SERVER)
    for instances, parameters, field in (
        ([{"text": 5}], None, "text"),
        ([{"text": "x"}, {"input_ids": [1]}], None, "instances"),
        ([{}], None, "text"),
        ([{"text": "x"}], {"sampling_params": {"top_k": 2**31}}, "top_k"),
        ([{"text": "x"}], {"nothing": 1}, "nothing"),
    ):
        with pytest.raises(InvalidParameter, match=field):
            VertexFields.check({"instances": instances, "parameters": parameters}, SERVER)


def test_a_stop_pattern_is_bounded():
    for pattern in ("END", r"\d{1,3}\.", "(a|bc){2}", "^x$", "[^a]{0,64}", "(?i:x)", "(?>a{1,9})"):
        stop_patterns.check("stop_regex", pattern)
    for pattern in ("", "a*", "a+?", "(a{0,9}){0,9}", "a{0,30}" * 4, "(?=a)", r"(a)\1", "a{1,4294967299}", "x" * 257):
        with pytest.raises(InvalidParameter, match="stop_regex"):
            stop_patterns.check("stop_regex", pattern)


def test_the_servers_default_law_is_what_a_request_leaves_out():
    server = dataclasses.replace(SERVER, blend_default=BlendParams(Rule.SKD, 5, 1.0))
    SamplingFields.check({"custom_params": {"trb_rule": "skd"}}, server)
    with pytest.raises(InvalidParameter, match="trb_skd_top_k"):
        SamplingFields.check({"custom_params": {"trb_rule": "skd"}}, SERVER)

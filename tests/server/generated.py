"""Generates requests from the description of their fields, and from beyond it; sends them and watches the server."""

from __future__ import annotations

import functools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import requests
from hypothesis import strategies as st

from sglang_trb.requests.anthropic import MessagesFields
from sglang_trb.requests.fields import Fields, words
from sglang_trb.requests.generate import PER_PROMPT, GenerateFields, SamplingFields
from sglang_trb.requests.openai import ChatFields, CompletionFields
from tests.pairs import TOKENIZER_SIZE
from tests.server.harness import Server

TIMEOUT = 60
"""Seconds that one answer may take; the longest is of some dozen tokens."""

IMPATIENT = 0.03
"""Seconds after which some clients leave, mostly before their answer."""

Request = tuple[str, Any, float]
"""Route, body, and how long the client waits."""

# Values beyond every description

NUMBERS = [0, -1, 1, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, -(2**63), 1e-45, 1e38, 1e39, 1e308, -1e39, -0.0, 0.5]
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=12) | st.sampled_from(["", "5", "yes", "auto", "last", "\0", "HEALTH_CHECK_x", "a" * 5000])
junk = st.recursive(
    scalars | texts | st.sampled_from(NUMBERS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)

# Values that a server should take

ids = st.integers(0, TOKENIZER_SIZE - 1)
prompts = st.lists(ids, min_size=1, max_size=40)
few = st.integers(0, 8)
names = st.text(st.characters(codec="utf-8"), min_size=9, max_size=12)
blends = st.fixed_dictionaries(
    {},
    optional={
        "trb_rule": st.sampled_from(["trust_region", "student", "teacher", "skd", "mixture"]),
        "trb_epsilon": st.floats(0, 1e38),
        "trb_skd_top_k": st.integers(1, 3000),
        "trb_skd_temperature": st.floats(1e-3, 1e3),
        "trb_mixture_alpha": st.floats(0, 1),
        "trb_return": st.sampled_from(["none", "summary", "tokens", "support", "support_both"]),
        "other": scalars,
    },
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": texts},
        optional={"name": texts, "tool_calls": junk, "extra": junk},
    ),
    min_size=1,
    max_size=3,
)
functions = st.fixed_dictionaries({"name": texts}, optional={"parameters": junk})
tools = st.lists(st.fixed_dictionaries({"function": functions}))
KNOWN: dict[str, st.SearchStrategy[Any]] = {
    "text": texts | st.lists(texts, min_size=1, max_size=3),
    "prompt": texts | prompts | st.lists(prompts, min_size=1, max_size=3) | st.lists(texts, min_size=1, max_size=3),
    "input_ids": prompts,
    "max_new_tokens": few,
    "max_tokens": few,
    "max_completion_tokens": few,
    "min_new_tokens": few,
    "min_tokens": few,
    "n": st.integers(1, 4),
    "stop_token_ids": st.lists(ids, max_size=4),
    "stop_regex": st.sampled_from(["a", "[a-z]{1,8}", ["x", "(y|z)"], "\\d"]),
    "logit_bias": st.dictionaries(ids.map(str), st.floats(-1e31, 1e30), max_size=5),
    "token_ids_logprob": st.lists(ids, max_size=5),
    "logprob_start_len": st.integers(-1, 3),
    "custom_params": blends,
    "custom_labels": st.just({}),
    "rid": names,
    "extra_key": names,
    "cache_salt": names,
    "return_logprob": st.booleans(),
    "return_hidden_states": st.just(False),
    "top_logprobs_num": few,
    "sampling_params": st.nothing(),
    "max_thinking_tokens": st.none(),
    "routed_dp_rank": st.just(0),
    "data_parallel_rank": st.just(0),
    "messages": messages,
    "tools": tools,
    "tool_choice": st.sampled_from(["auto", "required", "none"]) | st.fixed_dictionaries({"function": functions}),
    "stream_options": st.dictionaries(st.sampled_from(["include_usage", "continuous_usage_stats"]), st.booleans()),
    "chat_template_kwargs": st.dictionaries(texts, junk, max_size=2),
    "response_format": st.just({"type": "text"}),
    "reasoning": st.just({"effort": "low"}),
    "metadata": junk,
}
PROMPTS: list[dict[str, Any]] = [{"text": "once upon"}, {"text": ["a", "b"]}, {"input_ids": [5, 6, 7]}]
MISPLACED = ["trb_epsilon", "extra_body", "custom_param", "stream", "temperature", "unknown", "__req__"]


@functools.cache
def described(name: str, fields: type[Fields]) -> st.SearchStrategy[Any]:
    """Values of a field by its description alone, where it says enough."""
    if name in KNOWN:
        return KNOWN[name]
    field = fields.model_fields[name]
    kind = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation  # type: ignore[index]
    return st.nothing() if "Any" in str(kind) else st.from_type(kind)


@functools.cache
def usable(fields: type[Fields]) -> list[str]:
    """The fields that a request can use, apart from the prompt, which is in every base."""
    refused = ("nothing", "false: ", "0: ")
    names = [name for name in fields.model_fields if not words(fields, name).startswith(refused)]
    return [name for name in names if name not in ("text", "input_ids") and not described(name, fields).is_empty]


@st.composite
def bodies(draw: st.DrawFn, fields: type[Fields], base: dict[str, Any], prompts: int = 1) -> dict[str, Any]:
    """A body with some fields more than its base: half of them as described, half with anything anywhere."""
    body = dict(base)
    wild = draw(st.booleans())
    names = [*fields.model_fields, *MISPLACED] if wild else usable(fields)
    for name in draw(st.lists(st.sampled_from(names), max_size=6, unique=True)):
        known = described(name, fields) if name in fields.model_fields else junk
        if wild and (known.is_empty or draw(st.booleans())):
            body[name] = draw(junk)
        elif name in PER_PROMPT[3:] and prompts > 1 and draw(st.booleans()):
            body[name] = draw(st.lists(known, min_size=prompts, max_size=prompts))
        elif name not in base:
            body[name] = draw(known)
    return body


@st.composite
def generate_bodies(draw: st.DrawFn) -> dict[str, Any]:
    prompt = draw(st.sampled_from(PROMPTS))
    count = 1 if isinstance(prompt.get("text", ""), str) else 2
    body = draw(bodies(GenerateFields, prompt, count))
    if "sampling_params" not in body:
        body["sampling_params"] = draw(bodies(SamplingFields, {"max_new_tokens": 4}))
        if count > 1 and draw(st.booleans()):
            body["sampling_params"] = [body["sampling_params"]] * count
    return body


def openai_bodies(fields: type[Fields]) -> st.SearchStrategy[dict[str, Any]]:
    base: dict[str, Any] = {"model": "m", "max_tokens": 4}
    chat = {"messages": [{"role": "user", "content": "once"}]}
    return bodies(fields, base | ({"prompt": "once"} if fields is CompletionFields else chat))


vertex_bodies = st.fixed_dictionaries(
    {
        "instances": st.lists(st.fixed_dictionaries({"text": texts}), max_size=2) | junk,
        "parameters": bodies(GenerateFields, {"sampling_params": {"max_new_tokens": 4}}),
    }
)
anything = st.dictionaries(texts, junk, max_size=4) | junk

GENERATING = ["/generate", "/v1/completions", "/v1/chat/completions", "/invocations", "/vertex_generate"]
REFUSED = ["/v1/responses", "/api/chat", "/api/generate", "/v1/embeddings", "/v1/score", "/encode", "/v1/rerank"]
tokens = {"prompt": texts, "messages": messages, "tokens": st.lists(ids | junk), "model": texts | junk}
body_of: dict[str, st.SearchStrategy[Any]] = {
    "/generate": generate_bodies(),
    "/v1/completions": openai_bodies(CompletionFields),
    "/v1/chat/completions": openai_bodies(ChatFields),
    "/invocations": openai_bodies(ChatFields),
    "/v1/messages": openai_bodies(MessagesFields),
    "/vertex_generate": vertex_bodies,
    "/v1/tokenize": st.fixed_dictionaries({}, optional=tokens),
    "/v1/detokenize": st.fixed_dictionaries({}, optional=tokens),
} | dict.fromkeys([*REFUSED, "/v1/messages/count_tokens"], anything)


@st.composite
def routed(draw: st.DrawFn) -> Request:
    """A request to any route that takes one."""
    common = draw(st.sampled_from(["generating"] * 6 + ["any", "anything"]))
    route = draw(st.sampled_from(list(body_of) if common == "any" else GENERATING))
    body = draw(anything if common == "anything" else body_of[route])
    return route, body, draw(st.sampled_from([TIMEOUT] * 7 + [IMPATIENT]))


NEIGHBOUR = {
    "input_ids": list(range(40, 60)),
    "sampling_params": {
        "max_new_tokens": 12,
        "ignore_eos": True,
        "sampling_seed": 7,
        "custom_params": {"trb_epsilon": 0.1},
    },
}


def neighbour(server: Server) -> list[int]:
    """The ids that a request of a known seed draws, whoever else is in its batches."""
    return server.post("/generate", NEIGHBOUR, timeout=TIMEOUT).json()["output_ids"]


def send_together(server: Server, group: list[Request], expected: list[int]) -> None:
    """All at once, beside a known neighbour; none may fault the server, hang, or change the neighbour's answer."""
    with ThreadPoolExecutor(len(group) + 1) as pool:
        beside = pool.submit(neighbour, server)
        answers = list(pool.map(lambda request: send(server, request), group))
    for request, (status, text) in zip(group, answers, strict=True):
        assert status < 500 or status == 501, (request, status, text)
        assert '"code":500' not in text.replace(" ", ""), (request, text)
    assert beside.result() == expected, group


def send(server: Server, request: Request) -> tuple[int, str]:
    route, body, patience = request
    # By hand, so that Infinity is sent too.
    headers = {"Content-Type": "application/json"}
    data = json.dumps(body)
    try:
        response = requests.post(server.url + route, data=data, headers=headers, timeout=patience)
    except (requests.Timeout, requests.ConnectionError) as error:
        if patience != IMPATIENT:
            raise AssertionError(f"no answer to {request}") from error
        return 0, ""
    return response.status_code, response.text


def resident_bytes(server: Server) -> int:
    """Memory of the server's processes."""
    group = str(os.getpgid(server.process.pid))
    pages = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as stat, open(f"/proc/{pid}/statm") as memory:
                if stat.read().rpartition(")")[2].split()[2] == group:
                    pages += int(memory.read().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    return pages * os.sysconf("SC_PAGE_SIZE")

"""Wrong requests: a clear error for that request alone, a server that lives on, and nothing leaked."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.pairs import POISON_STUDENT_ID, POISON_TEACHER_ID, TOKENIZER_SIZE
from tests.server.checks import prompts
from tests.server.harness import Server

CONTEXT = 512

BLENDS = [
    ("trb_unknown", {"trb_unknown": 1}),
    ("trb_rule", {"trb_rule": "greedy"}),
    ("trb_rule", {"trb_rule": 3}),
    ("trb_epsilon", {"trb_epsilon": -0.1}),
    ("trb_epsilon", {"trb_epsilon": "0.1"}),
    ("trb_epsilon", {"trb_epsilon": True}),
    ("trb_epsilon", {"trb_rule": "student", "trb_epsilon": 0.1}),
    ("trb_skd_top_k", {"trb_rule": "skd", "trb_skd_temperature": 1.0}),
    ("trb_skd_temperature", {"trb_rule": "skd", "trb_skd_top_k": 15}),
    ("trb_skd_top_k", {"trb_rule": "skd", "trb_skd_top_k": 0, "trb_skd_temperature": 1.0}),
    ("trb_skd_temperature", {"trb_rule": "skd", "trb_skd_top_k": 5, "trb_skd_temperature": 0}),
    ("trb_skd_top_k", {"trb_epsilon": 0.1, "trb_skd_top_k": 5}),
    ("trb_return", {"trb_return": "everything"}),
]

SAMPLINGS = [
    ("n", {"n": 0}),
    ("n", {"n": -1}),
    ("n", {"n": 10**9}),
    ("n", {"n": "two"}),
    ("beam_width", {"beam_width": 4}),
    ("custom_params", {"custom_params": [1, 2]}),
    ("custom_params", {"custom_params": "trb_epsilon"}),
]

BODIES = [
    ("input_ids", {"input_ids": [1, TOKENIZER_SIZE]}),
    ("input_ids", {"input_ids": [1, -1]}),
    ("context", {"input_ids": [1] * CONTEXT}),
    ("maximum context length", {"input_ids": [1] * 10, "sampling_params": {"max_new_tokens": CONTEXT}}),
    ("custom_logit_processor", {"text": "x", "custom_logit_processor": "abc"}),
    ("return_sampling_mask", {"text": "x", "return_sampling_mask": True}),
    ("input_embeds", {"input_embeds": [[0.0] * 64]}),
    ("lora_path", {"text": "x", "lora_path": "adapter"}),
]


@pytest.mark.parametrize(("field", "blend"), BLENDS)
@pytest.mark.parametrize("route", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_wrong_blend_parameters_name_the_key(server: Server, route: str, field: str, blend: dict[str, Any]) -> None:
    bodies = {
        "/generate": {"text": "x", "sampling_params": {"custom_params": blend}},
        "/v1/completions": {"model": "m", "prompt": "x", "custom_params": blend},
        "/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "x"}], "custom_params": blend},
    }
    response = server.post(route, bodies[route])
    assert response.status_code == 400, response.text
    assert field in response.text
    assert "allowed" in response.text


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e400"])
def test_numbers_that_json_lacks_are_refused(server: Server, value: str) -> None:
    body = json.dumps({"text": "x", "sampling_params": {"custom_params": {"trb_epsilon": "VALUE"}}})
    response = requests.post(
        server.url + "/generate",
        data=body.replace('"VALUE"', value),
        headers={"Content-Type": "application/json"},
        timeout=60,
    )
    assert response.status_code == 400, response.text


@pytest.mark.parametrize(("field", "sampling"), SAMPLINGS)
def test_wrong_sampling_parameters_name_the_field(server: Server, field: str, sampling: dict[str, Any]) -> None:
    response = server.post("/generate", {"text": "x", "sampling_params": sampling})
    assert response.status_code == 400, response.text
    assert field in response.text


@pytest.mark.parametrize(("field", "body"), BODIES)
def test_unusable_requests_name_the_field(server: Server, field: str, body: dict[str, Any]) -> None:
    response = server.post("/generate", body)
    assert response.status_code == 400, response.text
    assert field in response.text


def test_streamed_errors_name_the_key(server: Server) -> None:
    body = {"text": "x", "stream": True, "sampling_params": {"custom_params": {"trb_epsilon": -1}}}
    assert "trb_epsilon" in server.post("/generate", body).text
    body = {"model": "m", "prompt": "x", "stream": True, "custom_params": {"trb_epsilon": -1}}
    response = server.post("/v1/completions", body)
    assert (response.status_code, "trb_epsilon" in response.text) == (400, True)


@pytest.mark.parametrize(
    ("poison", "model"), [(POISON_STUDENT_ID, "student"), (POISON_TEACHER_ID, "teacher")], ids=["student", "teacher"]
)
def test_nan_row_ends_its_request_alone(server: Server, poison: int, model: str) -> None:
    slots = server.kv_slots()
    good = prompts(6, 20, seed=21)
    sampling = {"max_new_tokens": 30, "ignore_eos": True, "sampling_seed": 3, "custom_params": {"trb_epsilon": 0.1}}
    alone = [server.post("/generate", {"input_ids": ids, "sampling_params": sampling}).json() for ids in good]
    bad = [*prompts(1, 12, seed=22)[0], poison, 40, 41]

    with ThreadPoolExecutor(8) as pool:
        bodies = [{"input_ids": ids, "sampling_params": sampling} for ids in (*good[:3], bad, *good[3:], bad)]
        responses = list(pool.map(lambda body: server.post("/generate", body), bodies))
    failed = [response for response in responses if response.status_code == 400]
    assert len(failed) == 2
    assert all(f"the {model}'s logits hold NaN" in response.text for response in failed)
    together = [response.json()["output_ids"] for response in responses if response.status_code == 200]
    assert together == [answer["output_ids"] for answer in alone]

    again = server.generate(bad[:-3], {"trb_epsilon": 0.1}, max_new_tokens=2)
    assert again["meta_info"]["completion_tokens"] == 2
    cached = server.post("/generate", {"input_ids": bad, "sampling_params": sampling})
    assert cached.status_code == 400, "the poisoned prefix is computed anew, not served from the cache"
    assert server.kv_slots() == slots


def test_bias_that_forbids_everything_ends_its_request(server: Server) -> None:
    everything = {str(i): -1e39 for i in range(TOKENIZER_SIZE)}  # -inf in float32
    response = server.post("/generate", {"text": "x", "sampling_params": {"logit_bias": everything}})
    assert response.status_code == 400, response.text
    assert "could not be drawn" in response.text


def test_refused_requests_leak_nothing(server: Server) -> None:
    slots = server.kv_slots()
    for _ in range(20):
        for field, blend in BLENDS:
            body = {"text": "x", "sampling_params": {"n": 2, "custom_params": blend}}
            assert field in server.post("/generate", body).text
    assert server.generate("still here", {"trb_epsilon": 0.1})["meta_info"]["trb"]["mean_kl"] > 0
    assert server.kv_slots() == slots

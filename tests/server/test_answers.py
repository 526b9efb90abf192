"""What a client relies on: every route, seeds, samples, streaming, stops, log-probabilities, sampled frequencies."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sglang_trb.wire.packing import unpack
from sglang_trb.wire.record import TokenStatistics
from tests.server.checks import check_against_oracle, close, mixed_requests, prompts, run_concurrently
from tests.server.harness import Server
from tests.server.oracle import Oracle, kl
from tests.server.staggered import staggered_requests

FALSE_FAILURE = 1e-6
"""Probability that one chi-squared test fails although the law is right; there are four of them."""

SUMMARY = {
    "rule", "epsilon", "completion_tokens", "mean_beta", "mean_kl", "sum_kl", "saturated_fraction",
    "mean_student_logprob", "mean_teacher_logprob", "mean_teacher_entropy", "student_weight_version",
    "max_student_masked_mass", "max_teacher_masked_mass",
}  # fmt: skip


def test_every_rule_and_option_agrees_with_transformers(server: Server, oracle: Oracle) -> None:
    requests = mixed_requests()
    for request, answer in zip(requests, run_concurrently(server, requests), strict=True):
        check_against_oracle(oracle, request, answer, exact_penalties=False)


def test_rows_that_leave_mid_batch_leave_the_others_right(server: Server, oracle: Oracle) -> None:
    requests = staggered_requests(24, longest=20)
    for request, answer in zip(requests, run_concurrently(server, requests), strict=True):
        check_against_oracle(oracle, request, answer, exact_penalties=False)


@pytest.mark.parametrize(
    "blend",
    [
        {"trb_epsilon": 0.1},
        {"trb_epsilon": 0.0},
        {"trb_rule": "teacher"},
        {"trb_rule": "skd", "trb_skd_top_k": 15, "trb_skd_temperature": 1.0},
        {"trb_rule": "mixture", "trb_mixture_alpha": 0.3},
    ],
    ids=["trust_region", "student", "teacher", "skd", "mixture"],
)
def test_sampled_frequencies_follow_the_law(server: Server, oracle: Oracle, blend: dict[str, Any]) -> None:
    ids = prompts(1, 16, seed=3)[0]
    draws = []
    for _ in range(4):
        body = {"n": 1000, "max_new_tokens": 1, "ignore_eos": True, "custom_params": blend | {"trb_return": "none"}}
        answers = server.post("/generate", {"input_ids": ids, "sampling_params": body}).json()
        draws += [answer["output_ids"][0] for answer in answers]
    (position,) = oracle.positions(ids, [0], blend)
    expected = np.exp(position.mu) * len(draws)
    common = expected >= 5  # the usual condition; the rest is one class
    observed = np.bincount(draws, minlength=len(expected))
    classes = np.append(observed[common], observed[~common].sum()), np.append(expected[common], expected[~common].sum())
    assert stats.chisquare(*classes).pvalue > FALSE_FAILURE


def test_seed_fixes_each_sample_whatever_else_runs(server: Server) -> None:
    ids = prompts(1, 20, seed=5)[0]
    sampling = {"n": 4, "sampling_seed": 11, "max_new_tokens": 8, "custom_params": {"trb_epsilon": 0.2}}

    def outputs() -> list[list[int]]:
        answers = server.post("/generate", {"input_ids": ids, "sampling_params": sampling}).json()
        return [answer["output_ids"] for answer in answers]

    alone = outputs()
    assert len({tuple(output) for output in alone}) == 4, "the samples of one request differ"
    run_concurrently(server, mixed_requests())
    assert outputs() == alone
    unseeded = [server.generate(ids, {"trb_epsilon": 0.2})["output_ids"] for _ in range(2)]
    assert unseeded[0] != unseeded[1], "unset seeds are random"


ALONE = {"trb_rule": "student", "trb_return": "none"}
"""What asks nothing of the teacher."""


def test_the_student_alone_draws_what_it_draws_beside_the_teacher(server: Server, oracle: Oracle) -> None:
    """In batches of its own and in others' batches, whose answers stay right."""
    asked = prompts(8, 20, seed=8)
    sampling = {"max_new_tokens": 12, "ignore_eos": True}
    beside = [(ids, ALONE | {"trb_return": "tokens"}, sampling | {"sampling_seed": i}) for i, ids in enumerate(asked)]
    alone = [(ids, ALONE, sampling) for ids, _, sampling in beside]
    expected = [answer["output_ids"] for answer in run_concurrently(server, beside)]
    found = run_concurrently(server, alone)
    assert [answer["output_ids"] for answer in found] == expected
    assert all("trb" not in answer["meta_info"] for answer in found)
    others = staggered_requests(8, longest=12)
    answers = run_concurrently(server, [request for pair in zip(alone, others, strict=True) for request in pair])
    assert [answer["output_ids"] for answer in answers[::2]] == expected
    for request, answer in zip(others, answers[1::2], strict=True):
        check_against_oracle(oracle, request, answer, exact_penalties=False)


@pytest.mark.parametrize("key", [None, "", "student alone|", "pair|", "x"])
def test_nobody_finds_a_prefix_that_the_teacher_has_not_seen(server: Server, oracle: Oracle, key: str | None) -> None:
    server.kv_slots()  # flushes
    (ids,) = prompts(1, 40, seed=9)
    common = {"max_new_tokens": 6, "ignore_eos": True}

    def ask(blend: dict[str, Any]) -> dict[str, Any]:
        body = {"input_ids": ids, "sampling_params": common | {"custom_params": blend}, "return_logprob": True}
        response = server.post("/generate", body | ({} if key is None else {"extra_key": key}))
        assert response.status_code == 200, response.text
        return response.json()

    cached = [ask(ALONE)["meta_info"]["cached_tokens"] for _ in range(2)]
    assert cached[0] == 0 < cached[1], "they share among themselves"
    blend = {"trb_epsilon": 0.05, "trb_return": "support_both"}
    answers = [ask(blend) for _ in range(2)]
    assert [answer["meta_info"]["cached_tokens"] > 0 for answer in answers] == [False, True]
    for answer in answers:
        check_against_oracle(oracle, (ids, blend, common), answer, exact_penalties=False)


def test_a_refused_request_leaves_no_prefix_that_the_teacher_has_not_seen(server: Server, oracle: Oracle) -> None:
    """SGLang's scheduler runs it nevertheless, with token 0 for a prompt."""
    server.kv_slots()  # flushes
    (ids,) = prompts(1, 20, seed=10)
    common = {"max_new_tokens": 6, "ignore_eos": True}
    refused = {"input_ids": prompts(1, 508, seed=11)[0], "sampling_params": {"custom_params": ALONE}}
    response = server.post("/generate", refused)
    assert response.status_code == 400 and "exceeds the maximum allowed length" in response.text
    blend = {"trb_epsilon": 0.05, "trb_return": "support_both"}
    body = {"input_ids": [0, *ids], "sampling_params": common | {"custom_params": blend}, "return_logprob": True}
    answer = server.post("/generate", body).json()
    assert answer["meta_info"]["cached_tokens"] == 0
    check_against_oracle(oracle, ([0, *ids], blend, common), answer, exact_penalties=False)


def test_summary_and_levels(server: Server) -> None:
    ids = prompts(1, 12, seed=6)[0]
    by_level = {
        level: server.generate(ids, {"trb_epsilon": 0.1, "trb_return": level}, sampling_seed=1)["meta_info"].get("trb")
        for level in ("none", "summary", "tokens", "support", "support_both")
    }
    assert by_level["none"] is None
    assert by_level["summary"].keys() == SUMMARY
    assert by_level["tokens"].keys() == SUMMARY | set(TokenStatistics.names())
    assert by_level["support"].keys() == SUMMARY | {*TokenStatistics.names(), "support"}
    assert by_level["support_both"].keys() == SUMMARY | {*TokenStatistics.names(), "support", "teacher_support"}
    tokens = {name: unpack(by_level["tokens"][name], name) for name in TokenStatistics.names()}
    summary = by_level["summary"]
    close(summary["sum_kl"], tokens["kl"].sum(), "sum_kl")
    close(summary["mean_beta"], tokens["beta"].mean(), "mean_beta")
    close(summary["mean_teacher_logprob"], tokens["teacher_logprob"].mean(), "mean_teacher_logprob")
    assert summary["student_weight_version"] == "default"


def test_openai_routes_agree_with_generate(server: Server) -> None:
    blend = {"trb_epsilon": 0.3, "trb_return": "tokens"}
    common = {"model": "pair", "max_tokens": 10, "seed": 4, "temperature": 1.0, "custom_params": blend}
    text = "hello world, how many"
    native = server.generate(text, blend, sampling_seed=4, max_new_tokens=10, ignore_eos=False)
    completion = server.post("/v1/completions", common | {"prompt": text}).json()["choices"][0]
    assert completion["text"] == native["text"]
    same_statistics(completion["trb"], native["meta_info"]["trb"])
    streamed = stream(server, "/v1/completions", common | {"prompt": text})
    assert "".join(choice["text"] for choice in streamed) == native["text"]
    assert ["trb" in choice for choice in streamed] == [False] * (len(streamed) - 1) + [True]
    same_statistics(streamed[-1]["trb"], native["meta_info"]["trb"])

    chat = common | {"messages": [{"role": "user", "content": "how many apples"}], "n": 2}
    choices = server.post("/v1/chat/completions", chat).json()["choices"]
    assert choices[0]["trb"]["beta"] != choices[1]["trb"]["beta"]
    streamed = stream(server, "/v1/chat/completions", chat)
    for choice in choices:
        own = [part for part in streamed if part["index"] == choice["index"]]
        assert "".join(part["delta"].get("content") or "" for part in own) == choice["message"]["content"]
        assert ["trb" in part for part in own] == [False] * (len(own) - 1) + [True]
        same_statistics(own[-1]["trb"], choice["trb"])


def test_generate_streams_statistics_in_the_last_chunk(server: Server) -> None:
    sampling = {"max_new_tokens": 6, "sampling_seed": 9, "ignore_eos": True, "custom_params": {"trb_epsilon": 0.3}}
    chunks = events(server, "/generate", {"text": "the sum of", "sampling_params": sampling, "stream": True})
    assert ["trb" in chunk["meta_info"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["meta_info"]["trb"]["completion_tokens"] == 6


def test_messages_answer_as_the_chat_route(server: Server) -> None:
    """Anthropic's format has no seed: greedy answers are compared."""
    common = {"model": "pair", "max_tokens": 8, "messages": [{"role": "user", "content": "how many apples"}]}
    common |= {"temperature": 0.0, "custom_params": {"trb_epsilon": 0.3, "trb_return": "tokens"}}
    (choice,) = server.post("/v1/chat/completions", common).json()["choices"]
    message = server.post("/v1/messages", common).json()
    assert (message["type"], message["stop_reason"]) == ("message", "max_tokens")
    assert message["content"] == [{"type": "text", "text": choice["message"]["content"]}]
    assert message["usage"]["output_tokens"] == 8
    same_statistics(message["trb"], choice["trb"])

    text = server.post("/v1/messages", common | {"stream": True}).text
    payloads = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    deltas = [payload["delta"] for payload in payloads if payload["type"] == "content_block_delta"]
    assert "".join(delta["text"] for delta in deltas) == choice["message"]["content"]
    (last,) = (payload for payload in payloads if payload["type"] == "message_delta")
    same_statistics(last["trb"], choice["trb"])

    refused = server.post("/v1/messages", common | {"custom_params": {"trb_epsilon": -1}})
    assert (refused.status_code, "trb_epsilon" in refused.json()["error"]["message"]) == (400, True)
    plain = server.post("/v1/messages", {key: value for key, value in common.items() if key != "custom_params"})
    assert plain.json()["trb"]["epsilon"] == 0


@pytest.mark.parametrize("ended_by", ["abort", "pause"])
def test_an_aborted_request_brings_the_statistics_of_its_tokens(server: Server, ended_by: str) -> None:
    sampling = {
        "max_new_tokens": 450,
        "ignore_eos": True,
        "custom_params": {"trb_epsilon": 0.3, "trb_return": "tokens"},
    }
    body = {"rid": "to-abort", "input_ids": prompts(1, 12, seed=10)[0], "return_logprob": True}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.post, "/generate", body | {"sampling_params": sampling})
        time.sleep(0.5)
        if ended_by == "abort":
            server.post("/abort_request", {"rid": "to-abort"}, admin=True)
        else:
            server.post("/pause_generation", {"mode": "abort"}, admin=True)
            server.post("/continue_generation", {}, admin=True)
        answer = running.result().json()
    meta = answer["meta_info"]
    assert meta["finish_reason"]["type"] == "abort"
    count = len(answer["output_ids"])
    assert 0 < count < 450
    assert meta["trb"]["completion_tokens"] == count
    returned = [entry[0] for entry in meta["output_token_logprobs"]]
    close(unpack(meta["trb"]["behavior_logprob"]), returned, "log mu")


def test_stop_string_cuts_the_statistics_with_the_text(server: Server) -> None:
    free = server.generate("solve the", {"trb_epsilon": 0.1}, sampling_seed=2, max_new_tokens=12)
    word = free["text"][len(free["text"]) // 2 :][:3]
    blend = {"trb_epsilon": 0.1, "trb_return": "tokens"}
    cut = server.generate("solve the", blend, sampling_seed=2, max_new_tokens=12, stop=[word])
    assert cut["meta_info"]["finish_reason"]["type"] == "stop"
    count = cut["meta_info"]["trb"]["completion_tokens"]
    assert count == cut["meta_info"]["completion_tokens"] < 12
    assert len(unpack(cut["meta_info"]["trb"]["beta"])) == count


def test_input_logprobs_are_the_students(server: Server, oracle: Oracle) -> None:
    ids = prompts(1, 10, seed=8)[0]
    body = {"input_ids": ids, "return_logprob": True, "logprob_start_len": 0, "sampling_params": {"max_new_tokens": 1}}
    found = [entry[0] for entry in server.post("/generate", body).json()["meta_info"]["input_token_logprobs"]]
    rows = oracle.raw_student(ids)
    close(found[1:], [rows[t][ids[t + 1]] for t in range(len(ids) - 1)], "input logprobs")


def test_rollout_kl_stays_within_its_budget(server: Server, oracle: Oracle) -> None:
    ids = prompts(1, 12, seed=9)[0]
    blend = {"trb_epsilon": 0.02, "trb_return": "tokens"}
    answer = server.generate(ids, blend, max_new_tokens=40)
    trb = answer["meta_info"]["trb"]
    positions = oracle.positions(ids, answer["output_ids"], blend)
    assert trb["sum_kl"] <= 40 * 0.02 * (1 + 1e-4)
    close(trb["sum_kl"], sum(kl(position.mu, position.p) for position in positions), "sum_kl")


def test_metrics_count_tokens_and_rejections(server: Server) -> None:
    def metric(name: str) -> float:
        lines = server.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    before = metric("sglang:trb_tokens_total"), metric("sglang:trb_rejected_requests_total")
    server.generate("one two", {"trb_epsilon": 0.1}, max_new_tokens=7)
    unknown = {"text": "x", "sampling_params": {"custom_params": {"trb_x": 1}}}
    assert server.post("/generate", unknown).status_code == 400
    after = metric("sglang:trb_tokens_total"), metric("sglang:trb_rejected_requests_total")
    assert (after[0] - before[0], after[1] - before[1]) == (7, 1)
    assert 0 < metric("sglang:trb_mean_beta") <= 1
    assert 0 < metric("sglang:trb_mean_kl") <= 1000


def same_statistics(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal up to the rounding of a forward over a cached prefix and one over the whole prompt."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name in TokenStatistics.names():
            close(unpack(found[name]), unpack(value), name)
        elif isinstance(value, float):
            close(found[name], value, name)
        else:
            assert found[name] == value


def events(server: Server, route: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The JSON payloads of a server-sent event stream."""
    text = server.post(route, body).text
    payloads = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert payloads[-1] == "[DONE]"
    return [json.loads(payload) for payload in payloads[:-1]]


def stream(server: Server, route: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of an OpenAI stream, in order."""
    return [choice for event in events(server, route, body | {"stream": True}) for choice in event["choices"]]

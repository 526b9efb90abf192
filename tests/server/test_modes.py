"""The answers of a real server against transformers, in every mode of SGLang's scheduler that could disturb a pair."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from sglang_trb.checkpoints.memory import model_memory
from tests.pairs import POISON_STUDENT_ID, TOKENIZER_SIZE, Pair, build_pair
from tests.server.checks import check_against_oracle, check_the_student_alone, mixed_requests, prompts, run_concurrently
from tests.server.deaths import check_all_end_with
from tests.server.harness import ADMIN_KEY, Server, serve
from tests.server.oracle import Oracle
from tests.server.trainer_side import push_tensors, serialized, session


@dataclasses.dataclass(frozen=True)
class Mode:
    """A way to run the server, and proof in its log or answers that it was run that way.

    ``ends_with`` says which process is killed at the end (`deaths.check_all_end_with`).
    """

    name: str
    ends_with: str
    options: dict[str, Any]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    length: int = 24
    new_tokens: int = 12
    variant: str = "plain"
    module: str = "sglang.launch_server"


MODES = [
    Mode(
        "synchronous", "sglang::detokenizer",
        {"disable_overlap_schedule": True, "max_total_tokens": None, "mem_fraction_static": 0.02},
    ),
    Mode(
        "chunked", "sglang::scheduler",
        {"chunked_prefill_size": 32, "enable_mixed_chunk": True}, length=90, variant="poison",
    ),
    Mode("paged", "main", {"page_size": 4}, length=30, variant="padded", module="tests.server.launched_by_child"),
    Mode(
        "retracting", "paused main",
        {"max_total_tokens": 320, "schedule_conservativeness": 0.01}, length=16, new_tokens=40,
    ),
    Mode("tensor_parallel", "scheduler_TP1", {"tp_size": 2}, {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def oracles() -> dict[str, Oracle]:
    return {}


def oracle_of(oracles: dict[str, Oracle], variant: str, pair: Pair, server: Server) -> Oracle:
    if variant not in oracles:
        info = server.get("/trb/info").json()
        assert info["vocab_size"] == TOKENIZER_SIZE
        oracles[variant] = Oracle(pair.student, pair.teacher, TOKENIZER_SIZE, info["stop_ids"])
    return oracles[variant]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_answers_agree_with_transformers(mode: Mode, oracles: dict[str, Oracle]) -> None:
    pair = build_pair(mode.variant)
    options = {"admin_api_key": ADMIN_KEY, **mode.options}
    with serve(pair.student, pair.teacher, mode.environment, mode.module, **options) as server:
        oracle = oracle_of(oracles, mode.variant, pair, server)
        if mode.name == "synchronous":
            check_both_models_are_in_the_memory_plan(server, pair, mode.options["mem_fraction_static"])
        requests = mixed_requests(mode.length, mode.new_tokens)
        for _ in range(2):  # the second round finds its prompts in the radix cache
            answers = run_concurrently(server, requests)
            for request, answer in zip(requests, answers, strict=True):
                check_against_oracle(oracle, request, answer, exact_penalties=mode.name == "synchronous")
        assert all(answer["meta_info"]["cached_tokens"] > 0 for answer in answers)
        if mode.name == "retracting":
            assert any(answer["meta_info"]["num_retractions"] for answer in answers)
        check_the_student_alone(server, oracle, requests)
        if mode.name == "tensor_parallel":
            check_an_update_reaches_all_ranks_or_none(server, pair)
        if mode.name == "chunked":
            check_failed_prompt_leaves_no_prefix(server)
        check_all_end_with(server, mode.ends_with)


def check_both_models_are_in_the_memory_plan(server: Server, pair: Pair, fraction: float) -> None:
    """`trb doctor` expects what was allocated, and both pools fit; sized for the student alone they are 2.5 times it.

    The bounds are wide because what is free is measured, and whatever else runs changes it.
    """
    memory = server.get("/trb/info").json()["memory"]
    for role, path in (("student", pair.student), ("teacher", pair.teacher)):
        expected = model_memory(path, dtype="float32")
        assert memory[f"{role}_weight_bytes"] == expected.weight_bytes
        assert memory[f"{role}_kv_bytes_per_token"] == expected.kv_bytes_per_token
    weights = memory["student_weight_bytes"] + memory["teacher_weight_bytes"]
    pool = memory["max_total_tokens"] * (memory["student_kv_bytes_per_token"] + memory["teacher_kv_bytes_per_token"])
    assert memory["step_bytes"] > 0
    assert 0.3 < (weights + pool) / (fraction * psutil.virtual_memory().available) < 1.3


def check_failed_prompt_leaves_no_prefix(server: Server) -> None:
    """The NaN is in the third chunk; the first two must not have been cached while it was still unknown."""
    slots = server.kv_slots()
    (start,) = prompts(1, 70, seed=31)
    response = server.post("/generate", {"input_ids": [*start, POISON_STUDENT_ID, *start[:20]]})
    assert (response.status_code, "NaN" in response.text) == (400, True), response.text
    assert server.generate(start, max_new_tokens=1)["meta_info"]["cached_tokens"] == 0
    assert server.generate(start, max_new_tokens=1)["meta_info"]["cached_tokens"] > 0, "good prompts are cached"
    assert server.kv_slots() == slots


def check_an_update_reaches_all_ranks_or_none(server: Server, pair: Pair) -> None:
    """The second rank's payload is missing, then broken; then both are there."""
    weights = {name: weight * 1.5 for name, weight in load_file(pair.student / "model.safetensors").items()}
    whole = serialized(weights)
    prompt, question = prompts(1, 24, seed=3)[0], {"trb_return": "tokens"}
    before = server.generate(prompt, question, temperature=0.0)
    assert session(server, "begin").status_code == 200
    for payloads in ([whole], [whole, base64.b64encode(b"not a pickle").decode()]):
        response = push_tensors(server, {}, serialized_named_tensors=payloads)
        assert (response.status_code, "nothing was changed" in response.text) == (400, True), response.text
    assert session(server, "end").status_code == 200
    again = server.generate(prompt, question, temperature=0.0)
    assert again["output_ids"] == before["output_ids"]
    assert session(server, "begin").status_code == 200
    response = push_tensors(server, {}, serialized_named_tensors=[serialized(weights), serialized(weights)])
    assert response.status_code == 200, response.text
    assert session(server, "end").status_code == 200
    assert server.generate(prompt, question, temperature=0.0)["output_ids"] != before["output_ids"]

"""An exception in the scheduler's handling of one request ends that request alone, wherever it is raised."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.pairs import Pair
from tests.server.checks import prompts
from tests.server.generated import resident_bytes
from tests.server.harness import ADMIN_KEY, Server, serve

PLACES = (
    "made", "limited", "grammar", "ordered", "matched", "matched-chunk", "admitted", "tokens", "tokens-chunk",
    "parameters", "built", "stopped", "stopped-later", "logprobs", "logprobs-later", "row", "closed", "streamed",
    "streamed-later",
)  # fmt: skip
"""Receive, prefill build, result processing, in this order; see probe/trb_faults.py."""

CHUNK = 64
MIB = 1 << 20


@pytest.fixture(scope="module")
def faulty_server(pair: Pair) -> Iterator[Server]:
    environment = {"PYTHONPATH": f"{Path(__file__).parent / 'probe'}:{Path.cwd()}", "TRB_PROBE_FAULTS": "1"}
    options = {"admin_api_key": ADMIN_KEY, "chunked_prefill_size": CHUNK, "schedule_policy": "lpm"}
    with serve(pair.student, pair.teacher, environment, **options) as server:
        yield server


def test_a_fault_ends_its_request_alone(faulty_server: Server) -> None:
    server = faulty_server
    sampling = {"max_new_tokens": 8, "ignore_eos": True, "stop": "never", "custom_params": {"trb_epsilon": 0.1}}
    neighbours = [
        {"input_ids": ids, "return_logprob": True, "sampling_params": sampling | {"sampling_seed": seed}}
        for seed, ids in enumerate([*prompts(3, 20, seed=51), *prompts(1, 3 * CHUNK, seed=52)])
    ]

    def answers() -> list[Any]:
        with ThreadPoolExecutor(len(neighbours)) as pool:
            return list(pool.map(lambda body: server.post("/generate", body).json()["output_ids"], neighbours))

    expected, slots, memory = answers(), server.kv_slots(), resident_bytes(server)
    for place in PLACES:
        ids = prompts(1, 3 * CHUNK if "chunk" in place else 30, seed=53)[0]
        body = {"rid": f"fault-{place}", "input_ids": ids, "return_logprob": True, "sampling_params": sampling}
        body["stream"] = place == "streamed-later"
        server.post("/pause_generation", {"mode": "in_place"}, admin=True)  # so that they share their batches
        with ThreadPoolExecutor(2) as pool:
            others, failing = pool.submit(answers), pool.submit(server.post, "/generate", body)
            time.sleep(0.1)
            server.post("/continue_generation", {}, admin=True)
            failed = failing.result()
            assert others.result() == expected, place
        assert failed.status_code == (200 if place == "streamed-later" else 500), (place, failed.text)
        assert f"fault at {place}" in failed.text, place
        assert "and on no other" in failed.text
        assert server.kv_slots() == slots, place
        again = server.post("/generate", body)
        assert (again.status_code, f"fault at {place}" in again.text) == (failed.status_code, True), "its id is free"
        assert server.post("/generate", body | {"rid": f"sound-{place}"}).status_code == 200, place
    assert server.kv_slots() == slots
    assert resident_bytes(server) < memory + 64 * MIB

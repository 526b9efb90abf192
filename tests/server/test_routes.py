"""What an operator, or whoever reaches the port, can do to a server with both keys set. The last tests break it."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import requests
from safetensors.torch import load_file
from sglang.srt.entrypoints import http_server

from sglang_trb.engine.http.keys import require_sendable
from sglang_trb.engine.http.routes import ADMIN, ANY, ROUTES, plain_routes
from sglang_trb.errors import NotInForce
from sglang_trb.launch.local_server import free_port
from tests.pairs import Pair
from tests.server.deaths import check_all_end_with
from tests.server.harness import ADMIN_KEY, Server, serve

API_KEY = "test-api-key"
JOIN_SECONDS = 3
TABLE = {route.endpoint: route for route in ROUTES}
SERVED = [route for route in plain_routes(http_server.app) if hasattr(route, "methods")]


@pytest.fixture(scope="module")
def server(pair: Pair) -> Iterator[Server]:
    environment = {"TRB_JOIN_SECONDS": str(JOIN_SECONDS)}
    with serve(pair.student, pair.teacher, environment, api_key=API_KEY, admin_api_key=ADMIN_KEY) as server:
        yield server


def path_of(route: Any) -> str:
    return re.sub(r"\{.*?\}", "x", route.path)


def generate(server: Server, tokens: int = 4) -> requests.Response:
    body = {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}}
    return server.post("/generate", body)


def test_keys_are_shown_nowhere(server: Server) -> None:
    paths = [path_of(route) for route in SERVED if "GET" in route.methods and "profile" not in route.path]
    for path in (*paths, "/trb/info", "/metrics"):
        for key in (API_KEY, ADMIN_KEY):
            answer = server.ask("GET", path, key).text
            assert API_KEY not in answer and ADMIN_KEY not in answer, f"{path}, to the holder of {key}"
    info = server.get("/server_info").json()
    assert info["admin_api_key"] == info["api_key"] == "***"
    assert "--admin-api-key ***" in info["launch_command"]

    log = server.log.read_text()
    assert "server_args=" in log, "the line is still there"
    main = psutil.Process(server.process.pid)
    command_lines = [" ".join(process.cmdline()) for process in (main, *main.children(recursive=True))]
    assert any("--admin-api-key" in line for line in command_lines)
    for place in (log, *command_lines):
        assert API_KEY not in place
        assert ADMIN_KEY not in place


def test_every_refused_route_says_why(server: Server) -> None:
    for route in SERVED:
        rule = TABLE[route.endpoint.__name__]
        if rule.refused:
            key = API_KEY if rule.level == ANY else ADMIN_KEY
            answer = server.ask(sorted(route.methods)[0], path_of(route), key)
            assert (answer.status_code, rule.here in answer.text) == (501, True), (route.path, answer.text)
    assert generate(server).status_code == 200


@pytest.mark.parametrize("key", ["clé", "key\r", " key"])
def test_a_key_that_nobody_could_send_is_refused_when_the_server_starts(key: str) -> None:
    for name in ("api_key", "admin_api_key"):
        with pytest.raises(NotInForce, match=f"^{name} is no printable ASCII") as raised:
            require_sendable(SimpleNamespace(**{"api_key": None, "admin_api_key": "fine"} | {name: key}))
        assert key not in str(raised.value)


def test_every_route_asks_for_its_key(server: Server) -> None:
    for route in SERVED:
        rule, method = TABLE[route.endpoint.__name__], sorted(route.methods)[0]
        if route.path not in ("/ready", "/health", "/health_generate"):
            wrong = API_KEY if rule.level != ANY else ADMIN_KEY
            for key in (None, wrong, "clé"):
                assert server.ask(method, path_of(route), key).status_code == 401, (method, route.path, key)
    assert {rule.level for rule in TABLE.values()} > {ADMIN, ANY}


def test_no_action_of_the_weights_checker_writes(server: Server) -> None:
    def check(**body: str) -> requests.Response:
        return server.post("/weights_checker", body, admin=True)

    before = check(selector="all").json()["ranks"][0]["checksums"]
    assert any(name.startswith("draft.") for name in before), "the teacher is read"
    for action in ("reset_tensors", "snapshot", "compare", "other"):
        for selector in ("all", "draft", "target"):
            answer = check(action=action, selector=selector)
            assert (answer.status_code, "allowed: checksum" in answer.text) == (400, True), answer.text
    assert check(selector="all").json()["ranks"][0]["checksums"] == before
    info = server.get("/trb/info").json()
    assert (len(info["teacher_hash"]), info["refusing"]) == (64, None)


def test_a_profile_that_cannot_be_taken_says_why(server: Server, tmp_path: Path) -> None:
    def ask(route: str, **body: Any) -> tuple[int, str]:
        answer = server.post(route, body, admin=True)
        return answer.status_code, answer.text

    file, folder = tmp_path / "file", tmp_path / "folder"
    file.touch()
    for wrong in ({"output_dir": str(file)}, {"activities": ["MEM"]}):
        status, text = ask("/start_profile", **wrong)
        assert (status, "profiling failed: " in text) == (400, True), text
    assert ask("/start_profile", output_dir=str(folder), profile_prefix="no/such", num_steps=2)[0] == 200
    assert generate(server).status_code == 200, "in whose third step the profile cannot be written"
    assert ask("/start_profile", output_dir=str(folder), profile_prefix="such")[0] == 200
    assert generate(server).status_code == 200
    assert ask("/stop_profile")[0] == 200
    assert [path.name.startswith("such-") for path in folder.iterdir()] == [True]


@pytest.mark.parametrize("peer", ["absent", "silent"])
def test_a_peer_that_does_not_answer_is_given_up(server: Server, peer: str) -> None:
    """Nobody listens: requests go on meanwhile. Somebody listens and says nothing: they wait as long."""
    port = free_port()
    body = {
        "master_address": "127.0.0.1", "master_port": port, "rank_offset": 1, "world_size": 2, "group_name": peer,
        "backend": "gloo",
    }  # fmt: skip
    with socket.socket() as listener, ThreadPoolExecutor(1) as pool:
        if peer == "silent":
            listener.bind(("127.0.0.1", port))
            listener.listen()
        started = time.monotonic()
        joining = pool.submit(server.post, "/init_weights_update_group", body, admin=True)
        time.sleep(0.5)
        assert generate(server).status_code == 200
        assert joining.done() == (peer == "silent")
        answer = joining.result()
        assert (answer.status_code, "nothing was changed" in answer.text) == (400, True), answer.text
        assert JOIN_SECONDS - 0.5 < time.monotonic() - started < 4 * JOIN_SECONDS
    assert generate(server).status_code == 200


def test_a_changed_teacher_ends_generation(server: Server, pair: Pair) -> None:
    """A bit of the teacher's tensors changes in the scheduler's memory, as a faulty memory or a bug would change it."""
    starts = (weight.numpy().tobytes()[:256] for weight in load_file(pair.teacher / "model.safetensors").values())
    unlike_any_other = [start for start in starts if len(set(start)) > 128]
    main = psutil.Process(server.process.pid)
    scheduler = next(child for child in main.children() if "scheduler" in " ".join(child.cmdline()))
    assert flip_bits_of(scheduler.pid, unlike_any_other) >= len(unlike_any_other)

    deadline = time.monotonic() + 30
    while not (refusing := server.get("/trb/info").json()["refusing"]):
        assert time.monotonic() < deadline, "the watchdog looks every ten seconds"
        time.sleep(0.5)
    assert "the teacher's weights have changed" in refusing
    answer = generate(server)
    assert (answer.status_code, "is not what was loaded" in answer.text) == (503, True), answer.text

    update = server.post("/update_weights_from_disk", {"model_path": str(pair.student)}, admin=True)
    assert (update.status_code, "the teacher's weights have changed" in update.text) == (400, True), update.text
    assert server.post("/begin_weight_update", {}, admin=True).status_code == 200
    update = server.post("/end_weight_update", {}, admin=True)
    assert (update.status_code, "the teacher's weights have changed" in update.text) == (400, True), update.text
    assert generate(server).status_code == 503


def flip_bits_of(pid: int, patterns: list[bytes]) -> int:
    """Change a bit of each copy of each pattern in the private memory of a process; how many there were.

    Patterns are of one length and, as tensors are, at multiples of 8 bytes.
    """
    found, size = 0, len(patterns[0])
    likely = np.zeros(2**16, bool)  # by the highest two bytes of the first word: a pass over gigabytes takes seconds
    likely[np.frombuffer(b"".join(pattern[:8] for pattern in patterns), np.uint64) >> 48] = True
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for line in maps:
            span, mode, *_ = line.split()
            if mode != "rw-p":  # a checkpoint's file that is mapped is among them; it is not written to
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            for at in range(start, end, 2**24):
                memory.seek(at)
                try:
                    chunk = memory.read(min(2**24 + size, end - at))
                except OSError:
                    continue
                words = np.frombuffer(chunk, np.uint64, len(chunk) // 8)
                for offset in (8 * np.flatnonzero(likely[words >> 48])).tolist():
                    if chunk[offset : offset + size] in patterns:
                        memory.seek(at + offset)
                        memory.write(bytes([chunk[offset] ^ 1]))
                        found += 1
    return found


def test_the_server_ends_with_its_resource_tracker(server: Server) -> None:
    check_all_end_with(server, "resource_tracker")

"""Weight updates: they reach the student only, never half-way, and never under a request."""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.pairs import TOKENIZER_SIZE, Pair, build_pair, hub_cache, shard
from tests.server.checks import check_against_oracle, mixed_requests, prompts, run_concurrently
from tests.server.harness import ADMIN_KEY, Server, serve
from tests.server.oracle import Oracle
from tests.server.trainer_side import Group, push_tensors, serialized, session


@pytest.fixture(scope="module")
def pair() -> Pair:
    return build_pair("plain")


@pytest.fixture
def server(pair: Pair, module_server: Server) -> Server:
    """The module's server with the original weights in it."""
    assert update_from_disk(module_server, pair.student, "original").status_code == 200
    return module_server


@pytest.fixture(scope="module")
def hub(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's cache of the hub, with the student in it as some publish theirs: cut up, with what is no weight."""
    student = tmp_path_factory.mktemp("published") / "student"
    shutil.copytree(pair.student, student)
    shard(student, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    return hub_cache(tmp_path_factory.mktemp("hub"), "some/student", student)


@pytest.fixture(scope="module")
def module_server(pair: Pair, hub: Path) -> Iterator[Server]:
    with serve("some/student", pair.teacher, {"HF_HUB_CACHE": str(hub)}, admin_api_key=ADMIN_KEY) as server:
        yield server


@pytest.fixture(scope="module")
def trained(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint like the student's after training: every tensor moved a little."""
    folder = tmp_path_factory.mktemp("trained") / "student"
    shutil.copytree(pair.student, folder)
    generator = torch.Generator().manual_seed(7)
    weights = load_file(folder / "model.safetensors")
    moved = {k: w + 0.2 * w.std() * torch.randn(w.shape, generator=generator) for k, w in weights.items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def update_from_disk(server: Server, path: str | Path, version: str | None = None, **more: Any):
    body = {"model_path": str(path), **more} | ({"weight_version": version} if version else {})
    return server.post("/update_weights_from_disk", body, admin=True)


def checksums(server: Server, selector: str) -> dict[str, str]:
    response = server.post("/weights_checker", {"action": "checksum", "selector": selector}, admin=True)
    assert response.status_code == 200, response.text
    (rank,) = response.json()["ranks"]
    return rank["checksums"]


def agrees_with(server: Server, student: Path, teacher: Path) -> dict[str, Any]:
    """The server blends these two checkpoints, whatever its cache held before."""
    oracle = Oracle(student, teacher, TOKENIZER_SIZE, server.get("/trb/info").json()["stop_ids"])
    requests = mixed_requests(new_tokens=6)
    answers = run_concurrently(server, requests)
    for request, answer in zip(requests, answers, strict=True):
        check_against_oracle(oracle, request, answer, exact_penalties=False)
    return answers[0]["meta_info"]


def test_disk_update_reaches_the_student_only(server: Server, pair: Pair, trained: Path) -> None:
    before = {role: checksums(server, role) for role in ("target", "draft")}
    agrees_with(server, pair.student, pair.teacher)  # fills the cache with the old weights' keys and values
    response = update_from_disk(server, trained, "step-1", flush_cache=False)
    assert response.status_code == 200, response.text
    meta = agrees_with(server, trained, pair.teacher)
    assert meta["weight_version"] == meta["trb"]["student_weight_version"] == "step-1"
    after = {role: checksums(server, role) for role in ("target", "draft")}
    assert after["draft"] == before["draft"], "the teacher's bytes"
    assert after["target"].keys() == before["target"].keys()
    assert after["target"] != before["target"]


def test_an_id_of_the_hub_is_loaded_from_the_servers_cache(
    server: Server, hub: Path, trained: Path, pair: Pair
) -> None:
    assert server.get("/trb/info").json()["student"] == "some/student"
    before = checksums(server, "target")
    unknown = update_from_disk(server, "some/other")
    assert (unknown.status_code, "nothing was changed" in unknown.text) == (400, True), unknown.text
    assert "in this machine's cache" in unknown.text and checksums(server, "target") == before
    published = shutil.copytree(trained, hub / "published")
    shard(published, **{"model.layers.1.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    hub_cache(hub, "some/trained", published)
    assert update_from_disk(server, "some/trained", "step-1").status_code == 200
    agrees_with(server, trained, pair.teacher)
    assert update_from_disk(server, "some/student", "again").status_code == 200
    assert checksums(server, "target") == before


def test_tensor_update_needs_the_admin_key_and_a_session(server: Server, pair: Pair, trained: Path) -> None:
    weights = load_file(trained / "model.safetensors")
    names = sorted(weights)
    body = {"serialized_named_tensors": [serialized({names[0]: weights[names[0]]})]}
    assert server.post("/update_weights_from_tensor", body).status_code == 401
    outside = push_tensors(server, {names[0]: weights[names[0]]})
    assert (outside.status_code, "begin_weight_update" in outside.text) == (400, True)

    teacher = checksums(server, "draft")
    assert session(server, "begin").status_code == 200
    for part in (names[::2], names[1::2]):
        response = push_tensors(server, {name: weights[name] for name in part}, weight_version="step-2")
        assert response.status_code == 200, response.text
        refused = server.post("/generate", {"text": "x", "sampling_params": {"max_new_tokens": 2}})
        assert (refused.status_code, "being updated" in refused.text) == (503, True)
        chat = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
        assert server.post("/v1/chat/completions", chat).status_code == 503
        assert server.post("/v1/chat/completions", chat | {"stream": True}).status_code == 503
        stream = server.post("/generate", {"input_ids": [5], "stream": True}).text
        assert ("being updated" in stream, '"code":503' in stream, "data: [DONE]" in stream) == (True,) * 3, stream
    assert session(server, "end").status_code == 200
    assert agrees_with(server, trained, pair.teacher)["weight_version"] == "step-2"
    assert checksums(server, "draft") == teacher


def test_an_abandoned_session_is_refused_until_an_update_succeeds(server: Server, pair: Pair, trained: Path) -> None:
    def abandon(admin: bool = True):
        return server.post("/trb/abandon_weight_update", {}, admin=admin)

    weights = load_file(trained / "model.safetensors")
    name = sorted(weights)[0]
    assert (abandon().status_code, abandon(admin=False).status_code) == (400, 401)
    assert session(server, "begin").status_code == 200
    assert push_tensors(server, {name: weights[name]}).status_code == 200
    again = session(server, "begin")
    assert (again.status_code, "already open" in again.text) == (400, True)
    assert abandon().status_code == 200
    refused = server.post("/generate", {"text": "x", "sampling_params": {"max_new_tokens": 2}})
    assert (refused.status_code, "neither the old nor the new" in refused.text) == (503, True)
    assert session(server, "begin").status_code == 200
    assert push_tensors(server, weights, weight_version="whole").status_code == 200
    assert session(server, "end").status_code == 200
    assert agrees_with(server, trained, pair.teacher)["weight_version"] == "whole"


def test_wrong_tensors_change_nothing(server: Server, pair: Pair) -> None:
    weights = load_file(pair.student / "model.safetensors")
    name = sorted(weights)[0]
    before = checksums(server, "target")
    assert session(server, "begin").status_code == 200
    wrong = [{"model.layers.99.mlp.weight": torch.zeros(2, 2)}, {name: torch.zeros(3, 3)}]
    for tensors in wrong:
        response = push_tensors(server, tensors, weight_version="never")
        assert (response.status_code, "nothing was changed" in response.text) == (400, True), response.text
    garbage = {"serialized_named_tensors": [base64.b64encode(b"not a pickle").decode()]}
    good = {"serialized_named_tensors": [serialized({name: weights[name]})]}
    for body in (garbage, good | {"selector": "draft"}, good | {"load_format": "other"}, twice(good)):
        response = server.post("/update_weights_from_tensor", body, admin=True)
        assert (response.status_code, "nothing was changed" in response.text) == (400, True), response.text
    described = {"names": [name], "dtypes": ["float32"], "shapes": [[2, 2]], "group_name": "nobody"}
    for change in ({"names": [name, name]}, {"selector": "draft"}, {"dtypes": ["float33"]}, {}):
        response = server.post("/update_weights_from_distributed", described | change, admin=True)
        assert (response.status_code, "nothing was changed" in response.text) == (400, True), response.text
    assert session(server, "end").status_code == 200
    assert checksums(server, "target") == before


def twice(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value * 2 for key, value in body.items()}


def test_probes_find_the_server_alive_while_it_is_updated(server: Server) -> None:
    assert session(server, "begin").status_code == 200
    started = time.monotonic()
    assert server.get("/health_generate").status_code == 200 and time.monotonic() - started < 5
    assert session(server, "end").status_code == 200


@pytest.mark.parametrize("damage", ["missing", "truncated", "other_model", "shape", "no_weights", "header", "format"])
def test_unusable_checkpoint_leaves_the_old_weights(server: Server, pair: Pair, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "checkpoint"
    if damage != "missing":
        shutil.copytree(pair.student, folder)
    file = folder / "model.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
    elif damage == "no_weights":
        file.unlink()
    elif damage == "header":
        file.write_bytes((4).to_bytes(8, "little") + b"[1] ")
    elif damage in ("other_model", "shape"):
        weights = load_file(file)
        name = sorted(weights)[0]
        weights[name if damage == "shape" else "extra.weight"] = torch.zeros(5, 5)
        save_file(weights, file)
    before = checksums(server, "target")
    response = update_from_disk(server, folder, "broken", **({"load_format": "dummy"} if damage == "format" else {}))
    assert (response.status_code, "nothing was changed" in response.text) == (400, True), response.text
    assert checksums(server, "target") == before
    assert server.generate("x", {"trb_epsilon": 0.1}, max_new_tokens=2)["meta_info"]["weight_version"] == "original"


def test_requests_in_flight_are_drained_first(server: Server, pair: Pair, trained: Path) -> None:
    ids = prompts(4, 16, seed=41)
    with ThreadPoolExecutor(5) as pool:
        running = [pool.submit(server.generate, p, {"trb_epsilon": 0.1}, max_new_tokens=450) for p in ids]
        time.sleep(0.5)
        assert not any(future.done() for future in running)
        response = update_from_disk(server, trained, "step-3")
        assert response.status_code == 200, response.text
        answers = [future.result() for future in running]
    assert {answer["meta_info"]["weight_version"] for answer in answers} == {"original"}
    assert all(answer["meta_info"]["trb"]["completion_tokens"] == 450 for answer in answers)
    agrees_with(server, trained, pair.teacher)


def test_paused_requests_answer_409_before_a_byte_is_written(server: Server, trained: Path) -> None:
    before = checksums(server, "target")
    ids = prompts(1, 16, seed=42)[0]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.generate, ids, {"trb_epsilon": 0.1}, max_new_tokens=450)
        time.sleep(0.5)
        assert server.post("/pause_generation", {"mode": "in_place"}, admin=True).status_code == 200
        for response in (update_from_disk(server, trained, "step-4"), session(server, "begin")):
            assert (response.status_code, "in flight" in response.text) == (409, True), response.text
        assert checksums(server, "target") == before
        assert server.post("/continue_generation", {}, admin=True).status_code == 200
        assert running.result()["meta_info"]["weight_version"] == "original"


def test_distributed_update_over_gloo(server: Server, pair: Pair, trained: Path) -> None:
    weights = load_file(trained / "model.safetensors")
    teacher = checksums(server, "draft")
    with Group(server) as group:
        assert session(server, "begin").status_code == 200
        wrong = group.push({"model.unknown.weight": torch.zeros(4)}, "never")
        assert (wrong.status_code, "nothing was changed" in wrong.text) == (400, True), wrong.text
        names = sorted(weights)
        for part in (names[::2], names[1::2]):
            response = group.push({name: weights[name] for name in part}, "step-5")
            assert response.status_code == 200, response.text
        assert session(server, "end").status_code == 200
    assert agrees_with(server, trained, pair.teacher)["weight_version"] == "step-5"
    assert checksums(server, "draft") == teacher

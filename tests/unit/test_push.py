"""The push: weights in parts, a session that somebody left open, a server that refuses a part."""

from __future__ import annotations

import asyncio
import shutil
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from sglang_trb.checkpoints.model_tensors import check_checkpoint
from tests.pairs import build_pair, hub_cache, shard
from trainer.config.run import Push
from trainer.push import make_pusher, tensor
from trainer.push.distributed import _own_address
from trainer.push.pusher import SessionPusher, _buckets
from trainer.rollouts.client import Refused

WEIGHTS = {name: torch.full((size,), float(size)) for name, size in (("a", 10), ("b", 20), ("c", 100), ("d", 1))}


class Server:
    """What a pusher asks of a server, in order; routes in ``refusing`` are refused once."""

    url = "http://127.0.0.1:1"

    def __init__(self, **refusing: str) -> None:
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self._refusing = refusing

    async def post(self, route: str, body: dict[str, Any], timeout_s: float) -> None:
        self.asked.append(route)
        self.bodies.append(body)
        message = self._refusing.pop(route.removeprefix("/"), None)
        if message is not None:
            raise Refused(message)


class Parts(SessionPusher):
    async def _send_all(self, client, buckets):
        for index, bucket in enumerate(buckets):
            await client.post("/part", {"names": list(bucket), **self._version_with(index, buckets)}, 1.0)


def push(server: Server, pusher: SessionPusher) -> None:
    pusher.publish(WEIGHTS, "run/step-1")
    asyncio.run(pusher.resync(server))  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "want"), [(1, ["a", "b", "c", "d"]), (120, ["ab", "c", "d"]), (1000, ["abcd"])])
def test_parts_are_full_and_a_large_tensor_is_one_of_its_own(size, want):
    assert ["".join(bucket) for bucket in _buckets(WEIGHTS, size)] == want


def test_the_version_goes_with_the_last_part():
    parts = Parts(120)
    parts.publish(WEIGHTS, "run/step-1")
    assert [parts._version_with(i, [{}, {}, {}]) for i in range(3)] == [{}, {}, {"weight_version": "run/step-1"}]


def test_a_session_that_was_left_open_is_abandoned_first():
    server = Server(begin_weight_update="a weight-update session is already open; call end_weight_update() first")
    push(server, Parts(1000))
    begin = "/begin_weight_update"
    assert server.asked == [begin, "/trb/abandon_weight_update", begin, "/part", "/end_weight_update"]


def test_another_refusal_to_begin_is_raised():
    with pytest.raises(Refused, match="401"):
        push(Server(begin_weight_update="401"), Parts(1000))


def test_a_refused_part_closes_the_session():
    server = Server(part="a is not a tensor of the served model")
    with pytest.raises(Refused, match="not a tensor"):
        push(server, Parts(1000))
    assert server.asked == ["/begin_weight_update", "/part", "/trb/abandon_weight_update"]


def test_a_part_larger_than_the_shared_memory_is_refused_before_it_is_written(monkeypatch):
    monkeypatch.setattr(tensor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100))
    with pytest.raises(OSError, match=r"push\.bucket_mib"):
        tensor._shared(WEIGHTS)


@pytest.mark.parametrize("route", ["disk", "tensor", "distributed"])
def test_a_student_of_the_hub_is_held_as_its_own_tensors(route, tmp_path, monkeypatch):
    student = shutil.copytree(build_pair("plain").student, tmp_path / "student")
    weights = load_file(student / "model.safetensors")
    shard(student, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub_cache(tmp_path / "hub", "some/student", student)))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    pusher = make_pusher(Push(route=route), tmp_path, "some/student")
    pusher.publish_folder("some/student", "run/step-0@token")
    if route == "disk":  # in a folder that the servers share, with all that makes a checkpoint
        server = Server()
        asyncio.run(pusher.resync(server))
        folder = Path(server.bodies[0]["model_path"])
        assert folder.parent == tmp_path / "push" and check_checkpoint(folder, "some/student") is None
        assert {"config.json", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
        held = load_file(folder / "model.safetensors")
    else:
        held = pusher._weights
    assert held.keys() == weights.keys() and all(torch.equal(held[name], weights[name]) for name in weights)


def read_by_a_server(pusher, folder):
    server = Server()
    pusher.publish_folder(folder, "run/step-2@token")
    asyncio.run(pusher.resync(server))
    return Path(server.bodies[0]["model_path"])


def test_a_checkpoint_is_copied_only_for_servers_that_see_another_folder_alone(tmp_path):
    student, shared = build_pair("plain").student, tmp_path / "shared"
    assert read_by_a_server(make_pusher(Push(), tmp_path / "run", str(student)), student) == student.resolve()
    copied = read_by_a_server(make_pusher(Push(folder=str(shared)), tmp_path / "run", str(student)), student)
    assert copied.parent == shared / "run" and check_checkpoint(copied, str(student)) is None


@pytest.mark.parametrize("shared", [None, "shared"])
def test_two_pushers_of_a_run_remove_nothing_of_each_other(tmp_path, shared):
    student = str(build_pair("plain").student)
    settings = Push(folder=None if shared is None else str(tmp_path / shared))
    both = [make_pusher(settings, tmp_path / "run", student, apart=apart) for apart in (False, True)]
    for version in ("run/step-1@a", "run/step-2@b"):
        for pusher in both:
            pusher.publish(load_file(Path(student) / "model.safetensors"), version)
    folders = [pusher.folder for pusher in both]
    assert folders[1].name == f"{folders[0].name}@evaluation" and folders[0].parent == folders[1].parent
    assert all([path.name for path in folder.iterdir()] == ["run-step-2@b"] for folder in folders)


@pytest.mark.parametrize("route", ["disk", "tensor", "distributed"])
def test_a_configuration_names_the_route(route, tmp_path):
    pusher = make_pusher(Push(route=route), tmp_path, "source")
    assert type(pusher).__name__ == f"{route.capitalize()}Pusher"


def test_a_server_on_this_machine_is_told_loopback():
    assert _own_address("http://127.0.0.1:30000") == "127.0.0.1"

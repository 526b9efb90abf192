"""What a trainer does to push weights, as tensors or over a process group."""

from __future__ import annotations

import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from sglang.srt.utils import MultiprocessingSerializer, init_custom_process_group

from sglang_trb.launch.local_server import free_port
from tests.server.harness import Server


def serialized(weights: dict[str, torch.Tensor]) -> str:
    # The default strategy passes file descriptors, which only a child process may fetch.
    torch.multiprocessing.set_sharing_strategy("file_system")
    return base64.b64encode(MultiprocessingSerializer.serialize(list(weights.items()))).decode()


def push_tensors(server: Server, weights: dict[str, torch.Tensor], **more: Any):
    body = {"serialized_named_tensors": [serialized(weights)], "flush_cache": False, **more}
    return server.post("/update_weights_from_tensor", body, admin=True)


def session(server: Server, name: str):
    return server.post(f"/{name}_weight_update", {}, admin=True)


class Group:
    """A trainer's side of the distributed route: rank 0 of a process group that the server joins.

    ``gloo`` broadcasts from the CPU, ``nccl`` from this process's current GPU.
    """

    def __init__(self, server: Server, backend: str = "gloo") -> None:
        self.server, self.name, self.backend = server, "trainer", backend

    def __enter__(self) -> Group:
        port = free_port()
        body = {
            "master_address": "127.0.0.1", "master_port": port, "rank_offset": 1, "world_size": 2,
            "group_name": self.name, "backend": self.backend,
        }  # fmt: skip
        answers: list[int] = []
        joining = threading.Thread(
            target=lambda: answers.append(self.server.post("/init_weights_update_group", body, admin=True).status_code)
        )
        joining.start()
        self.group = init_custom_process_group(
            backend=self.backend, init_method=f"tcp://127.0.0.1:{port}", world_size=2, rank=0, group_name=self.name
        )
        joining.join()
        assert answers == [200]
        return self

    def push(self, weights: dict[str, torch.Tensor], version: str):
        body = {
            "names": list(weights),
            "dtypes": [str(w.dtype).removeprefix("torch.") for w in weights.values()],
            "shapes": [list(w.shape) for w in weights.values()],
            "group_name": self.name,
            "weight_version": version,
            "flush_cache": False,
        }
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(self.server.post, "/update_weights_from_distributed", body, True)
            for weight in weights.values():
                sent = weight.contiguous().to("cuda" if self.backend == "nccl" else "cpu")
                torch.distributed.broadcast(sent, src=0, group=self.group)
            return answer.result()

    def __exit__(self, *_: object) -> None:
        body = {"group_name": self.name}
        assert self.server.post("/destroy_weights_update_group", body, admin=True).status_code == 200
        torch.distributed.destroy_process_group(self.group)

"""The distributed route: a broadcast from the trainer to all ranks of one server, NCCL between GPUs, gloo else."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import secrets
import socket
import urllib.parse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from sglang_trb.launch.local_server import free_port
from trainer.errors import TrainerError
from trainer.push.pusher import PUSH_SECONDS, SessionPusher, Weights
from trainer.rollouts.client import Refused, TrbClient, Unreachable

JOIN_SECONDS = 120
"""For trainer and server to find each other."""


class DistributedPusher(SessionPusher):
    """Makes a process group with a server for each push, so that one that died or came back needs no special care.

    Sends from this process's current GPU, which must not be one of the server's; without one, from its CPU.
    """

    def __init__(self, bucket_bytes: int) -> None:
        super().__init__(bucket_bytes)
        gpu = torch.cuda.is_available()
        self._device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
        self._backend = "nccl" if gpu else "gloo"
        # One server after the other: broadcasts of different groups on one GPU must not wait for each other.
        self._turn = asyncio.Lock()

    async def resync(self, client: TrbClient) -> None:
        async with self._turn:
            await super().resync(client)

    async def _send_all(self, client: TrbClient, buckets: list[Weights]) -> None:
        ranks = 1 + int((await client.info())["tp_size"])
        name = f"trb-{os.getpid()}-{secrets.token_hex(4)}"
        group = await self._join(client, name, ranks)
        try:
            for index, bucket in enumerate(buckets):
                body = {
                    "names": list(bucket),
                    "dtypes": [str(weight.dtype).removeprefix("torch.") for weight in bucket.values()],
                    "shapes": [list(weight.shape) for weight in bucket.values()],
                    "group_name": name,
                    "flush_cache": True,
                    **self._version_with(index, buckets),
                }
                post = client.post("/update_weights_from_distributed", body, PUSH_SECONDS)
                await _both(client, post, partial(self._broadcast, bucket, group), group)
            await client.post("/destroy_weights_update_group", {"group_name": name}, JOIN_SECONDS)
        finally:
            with contextlib.suppress(Exception):
                dist.destroy_process_group(group)

    async def _join(self, client: TrbClient, name: str, ranks: int) -> Any:
        address, port = _own_address(client.url), free_port()
        body = {
            "master_address": address,
            "master_port": port,
            "rank_offset": 1,
            "world_size": ranks,
            "group_name": name,
            "backend": self._backend,
        }
        post = client.post("/init_weights_update_group", body, JOIN_SECONDS)
        return await _both(client, post, lambda: _new_group(self._backend, address, port, ranks, name))

    def _broadcast(self, bucket: Weights, group: Any) -> None:
        for weight in bucket.values():
            dist.broadcast(weight.detach().contiguous().to(self._device), src=0, group=group)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


async def _both(client: TrbClient, post: Any, work: Callable[[], Any], group: Any = None) -> Any:
    """Run our part of a collective in a thread while the server is asked to do its own; the result of ours.

    Raises:
        TrainerError: of the request. Its failure is the reason; ours is what followed.
        Unreachable: only our part failed.
    """
    ours = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await post
    except TrainerError as error:
        with contextlib.suppress(Exception):
            if group is not None and not isinstance(error, Refused):
                group.abort()  # else ours would wait for a server that is not there
            # A server that refuses a part takes part in its broadcast all the same.
            await asyncio.wait_for(asyncio.shield(ours), JOIN_SECONDS if group is not None else 1.0)
        raise
    try:
        return await ours
    except RuntimeError as error:  # how torch.distributed reports a peer that is gone
        raise Unreachable(f"{client.url}: the broadcast of the weights failed: {error}") from None


def _new_group(backend: str, address: str, port: int, ranks: int, name: str) -> Any:
    """A group besides the one of the training processes; torch has no public way to make one with outsiders."""
    timeout = datetime.timedelta(seconds=JOIN_SECONDS)
    store = dist.TCPStore(address, port, ranks, is_master=True, timeout=timeout)
    group, _ = c10d._new_process_group_helper(
        ranks,
        0,
        [],
        dist.Backend(backend),
        c10d.PrefixStore(name, store),
        group_name=name,  # type: ignore[arg-type]
        timeout=datetime.timedelta(seconds=PUSH_SECONDS),
    )
    c10d._world.pg_group_ranks[group] = {rank: rank for rank in range(ranks)}
    return group


def _own_address(url: str) -> str:
    """The address of this machine that the server at ``url`` can reach."""
    host = urllib.parse.urlsplit(url).hostname or "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing: only asks the kernel for the route
        return probe.getsockname()[0]

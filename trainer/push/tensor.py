"""The tensor route: shared memory of the machine that trainer and server are both on."""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import os
import shutil
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import torch

from trainer.push.pusher import PUSH_SECONDS, SessionPusher, Weights
from trainer.rollouts.client import TrbClient

SHARED_MEMORY = Path("/dev/shm")


class TensorPusher(SessionPusher):
    """Hands the server handles to shared memory. Needs the admin key: the server unpickles them.

    Raises:
        OSError: (resync) the shared memory cannot hold a part.
    """

    async def _send_all(self, client: TrbClient, buckets: list[Weights]) -> None:
        ranks = int((await client.info())["tp_size"])
        _start_sharing()
        for index, bucket in enumerate(buckets):
            shared = await asyncio.to_thread(_shared, bucket)
            body = {
                "serialized_named_tensors": [_pickled(shared) for _ in range(ranks)],
                "flush_cache": True,
                **self._version_with(index, buckets),
            }
            await client.post("/update_weights_from_tensor", body, PUSH_SECONDS)


@functools.cache
def _start_sharing() -> None:
    """Share by file name; torch's other strategy passes file descriptors, which only a child process may fetch.

    Its helper process (torch_shm_manager) lives until the servers that it served end. It must not keep our standard
    error open, else whoever reads that would wait for it.
    """
    torch.multiprocessing.set_sharing_strategy("file_system")
    with Path(os.devnull).open("wb") as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            torch.zeros(1).share_memory_()
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _shared(bucket: Weights) -> list[tuple[str, torch.Tensor]]:
    needed = sum(weight.nbytes for weight in bucket.values())
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:  # writing to it would end the process with SIGBUS
        raise OSError(
            f"{SHARED_MEMORY}: {free >> 20} MiB are free, a part of the push needs {needed >> 20}; make it larger (a "
            "container: --shm-size), choose a smaller push.bucket_mib, or another push.route"
        )
    return [(name, weight.detach().clone().contiguous().share_memory_()) for name, weight in bucket.items()]


def _pickled(shared: list[tuple[str, torch.Tensor]]) -> str:
    stream = io.BytesIO()
    ForkingPickler(stream).dump(shared)
    return base64.b64encode(stream.getvalue()).decode()

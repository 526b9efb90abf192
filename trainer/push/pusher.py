"""What every route of the push does: hold the newest weights, and bring one server to them whenever it is asked."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from trainer.errors import TrainerError
from trainer.learner.student_folder import read_weights
from trainer.rollouts.client import Refused, TrbClient

PUSH_SECONDS = 1800.0
"""An update waits until the requests in flight are done, then loads the weights."""

_ABANDON = "/trb/abandon_weight_update"

Weights = Mapping[str, torch.Tensor]
"""Named as in the student's checkpoint, whole, on the CPU."""


class Pusher(abc.ABC):
    """A route to the servers."""

    @abc.abstractmethod
    def publish(self, weights: Weights, weight_version: str) -> None:
        """Make this the version that `resync` brings servers to."""

    @abc.abstractmethod
    def publish_folder(self, folder: str | Path, weight_version: str) -> None:
        """The same with a checkpoint that is on disk already."""

    @abc.abstractmethod
    async def resync(self, client: TrbClient) -> None:
        """Bring one server to the held version; it waits for the requests it has under way.

        Raises:
            Unreachable, TookTooLong, Faulty: worth another try once the server is back.
            Refused: the server says that these weights are not its student's.
        """


class SessionPusher(Pusher):
    """Sends the weights part by part between the begin and the end of an update.

    The server refuses requests in between, and the version goes with the last part: what a trainer that died on the
    way leaves behind is never taken for either version.

    Args:
        bucket_bytes: of a part; a larger tensor is a part of its own.
    """

    def __init__(self, bucket_bytes: int) -> None:
        self._bucket_bytes = bucket_bytes
        self._weights: Weights = {}

    def publish(self, weights: Weights, weight_version: str) -> None:
        self._weights, self._version = weights, weight_version

    def publish_folder(self, folder: str | Path, weight_version: str) -> None:
        self.publish(read_weights(folder), weight_version)

    async def resync(self, client: TrbClient) -> None:
        assert self._weights, "publish() comes first"
        await _begin(client)
        try:
            await self._send_all(client, list(_buckets(self._weights, self._bucket_bytes)))
        except Refused:
            with contextlib.suppress(TrainerError):
                await client.post(_ABANDON, {}, PUSH_SECONDS)
            raise
        await client.post("/end_weight_update", {}, PUSH_SECONDS)

    @abc.abstractmethod
    async def _send_all(self, client: TrbClient, buckets: list[Weights]) -> None:
        """Send the parts in order, `_version` with the last."""

    def _version_with(self, index: int, buckets: list[Weights]) -> dict[str, str]:
        return {"weight_version": self._version} if index == len(buckets) - 1 else {}


async def _begin(client: TrbClient) -> None:
    try:
        await client.post("/begin_weight_update", {}, PUSH_SECONDS)
    except Refused as error:
        if "already open" not in str(error):
            raise
        # A trainer that was killed, or an attempt of ours that failed, left it open.
        await client.post(_ABANDON, {}, PUSH_SECONDS)
        await client.post("/begin_weight_update", {}, PUSH_SECONDS)


def _buckets(weights: Weights, size: int) -> Iterator[Weights]:
    bucket: dict[str, torch.Tensor] = {}
    filled = 0
    for name, weight in weights.items():
        if bucket and filled + weight.nbytes > size:
            yield bucket
            bucket, filled = {}, 0
        bucket[name] = weight
        filled += weight.nbytes
    if bucket:
        yield bucket

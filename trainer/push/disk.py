"""The disk route: a folder that trainer and servers share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from trainer.atomic import remove_folder
from trainer.learner.student_folder import read_weights, write_student
from trainer.push.pusher import PUSH_SECONDS, Pusher
from trainer.rollouts.client import TrbClient


class DiskPusher(Pusher):
    """Writes each version once; a server reads it when it is brought to it, also one that comes back later.

    Args:
        folder: of this pusher alone: only the newest version is kept in it.
        source: as in `write_student`.
        reads_elsewhere: the servers see the run's other folders, too: a checkpoint there is not copied.
    """

    def __init__(self, folder: Path, source: str, *, reads_elsewhere: bool = True) -> None:
        self.folder, self._source, self._reads_elsewhere = folder, source, reads_elsewhere
        self._current: str | None = None

    def publish(self, weights: Mapping[str, torch.Tensor], weight_version: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / weight_version.replace("/", "-")
        if target.exists():
            remove_folder(target)
        write_student(target, weights, self._source)
        for other in self.folder.iterdir():
            if other != target:
                shutil.rmtree(other)
        self._read_from(target, weight_version)

    def publish_folder(self, folder: str | Path, weight_version: str) -> None:
        # An id on the hub: its snapshot is in a cache that the servers need not share.
        if self._reads_elsewhere and Path(folder).is_dir():
            self._read_from(folder, weight_version)
        else:
            self.publish(read_weights(folder), weight_version)

    def _read_from(self, folder: str | Path, weight_version: str) -> None:
        self._current, self._version = os.fspath(Path(folder).resolve()), weight_version

    async def resync(self, client: TrbClient) -> None:
        assert self._current is not None, "publish() comes first"
        body = {"model_path": self._current, "weight_version": self._version, "flush_cache": True}
        await client.post("/update_weights_from_disk", body, PUSH_SECONDS)

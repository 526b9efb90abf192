"""New weights for the servers: every one is brought to them at its own address, and again whenever it comes back."""

from __future__ import annotations

from pathlib import Path

from trainer.config.run import Push
from trainer.push.disk import DiskPusher
from trainer.push.distributed import DistributedPusher
from trainer.push.pusher import Pusher
from trainer.push.tensor import TensorPusher

__all__ = ["Pusher", "make_pusher"]


def make_pusher(settings: Push, run_folder: Path, source: str) -> Pusher:
    """The pusher that a configuration names.

    Args:
        settings: the route.
        run_folder: of the run, for the disk route's own folder.
        source: the checkpoint that training started from.
    """
    bucket_bytes = int(settings.bucket_mib * 2**20)
    match settings.route:
        case "disk":
            shared = None if settings.folder is None else Path(settings.folder).expanduser()
            return DiskPusher(run_folder / "push" if shared is None else shared / run_folder.name, source)
        case "tensor":
            return TensorPusher(bucket_bytes)
        case "distributed":
            return DistributedPusher(bucket_bytes)

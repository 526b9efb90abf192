"""New weights for the servers: every one is brought to them at its own address, and again whenever it comes back."""

from __future__ import annotations

from pathlib import Path

from trainer.config.run import Push
from trainer.push.disk import DiskPusher
from trainer.push.distributed import DistributedPusher
from trainer.push.pusher import Pusher
from trainer.push.tensor import TensorPusher

__all__ = ["Pusher", "make_pusher"]


def make_pusher(settings: Push, run_folder: Path, source: str, *, apart: bool = False) -> Pusher:
    """The pusher that a configuration names.

    Args:
        settings: the route.
        run_folder: of the run, for the disk route's own folder.
        source: the checkpoint that training started from.
        apart: not for the servers that draw the training's rollouts: with a folder of its own on the disk route.
    """
    bucket_bytes = int(settings.bucket_mib * 2**20)
    match settings.route:
        case "disk":
            own = "@evaluation" if apart else ""  # no run has a name with an @
            if settings.folder is None:
                return DiskPusher(run_folder / f"push{own}", source)
            folder = Path(settings.folder).expanduser() / f"{run_folder.name}{own}"
            return DiskPusher(folder, source, reads_elsewhere=False)
        case "tensor":
            return TensorPusher(bucket_bytes)
        case "distributed":
            return DistributedPusher(bucket_bytes)

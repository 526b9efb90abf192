"""The training processes: who this one is, and what they say to each other.

Started with plain ``python``, torchrun or the deepspeed launcher; the last two set RANK, WORLD_SIZE and the like.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from sglang_trb.launch.local_server import free_port
from trainer.errors import TrainerError

PATIENCE = datetime.timedelta(days=7)
"""The others wait while the leader collects or evaluates, for hours at times; one that dies is noticed at once."""

_ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


Resource = TypeVar("Resource")


class OtherProcessFailed(TrainerError, RuntimeError):
    """Another training process could not do its part; its own log says why."""


class Processes:
    """All processes of the run, this one among them. Joins them when made, leaves when its context ends.

    One object per process; every process calls every method, in the same order.

    Attributes:
        rank, world: 0 <= rank < world.
        device: where this one computes.
    """

    def __init__(self) -> None:
        if "RANK" not in os.environ:
            os.environ.update(_ALONE, MASTER_PORT=str(free_port()))
        self.device = self._own_device()
        self._join()
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        # For Python objects, which NCCL would carry through the GPU.
        self._control = dist.new_group(backend="gloo", timeout=PATIENCE) if self.world > 1 else None

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, raised: type[BaseException] | None, *_: object) -> None:
        if raised is None:
            self.agree(None)  # nobody takes the group down while another still talks
        self.leave()

    @property
    def leads(self) -> bool:
        """Whether this is the process that talks to servers, grades and writes."""
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """The leader's object, on every process."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def scatter(self, parts: Sequence[Any] | None) -> Any:
        """This process's one of the leader's ``parts``, of which there is one per process."""
        if self.world == 1:
            assert parts is not None
            return parts[0]
        box: list[Any] = [None]
        dist.scatter_object_list(box, list(parts) if parts is not None else None, src=0, group=self._control)
        return box[0]

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        """Sums over the processes, of the same keys on each; float64."""
        if self.world == 1:
            return values
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(total, group=self._control)
        return dict(zip(values, total.tolist(), strict=True))

    def max(self, value: float) -> float:
        """The largest of the processes' values."""
        if self.world == 1:
            return value
        largest = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self._control)
        return largest.item()

    def agree(self, error: BaseException | None) -> None:
        """Raise on every process if any of them brings an error, its own one here; also a barrier.

        Raises:
            OtherProcessFailed: where the error is another process's.
        """
        failed = self.sum({"failed": float(error is not None)})["failed"]
        if error is not None:
            raise error
        if failed:
            raise OtherProcessFailed("another training process failed; its log says why")

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What fails in the block on one process is raised on all, after it; also a barrier.

        Raises:
            OtherProcessFailed: where the error is another process's.
        """
        error: BaseException | None = None
        try:
            yield
        except Exception as caught:  # handed to every process, and raised here
            error = caught
        self.agree(error)

    @contextlib.contextmanager
    def on_leader(self, make: Callable[[], AbstractContextManager[Resource]]) -> Iterator[Resource | None]:
        """Make and enter what the leader alone has; the others get None, once it is there."""
        with contextlib.ExitStack() as stack:
            resource = None
            with self.together():
                if self.leads:
                    resource = stack.enter_context(make())
            yield resource

    def leave(self) -> None:
        """Take the process group down."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @staticmethod
    def _own_device() -> torch.device:
        if not torch.cuda.is_available():
            return torch.device("cpu")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        return device

    def _join(self) -> None:
        import deepspeed

        if self.device.type == "cpu":
            # Its shared-memory collectives would be compiled first, for a minute, or fail without a compiler.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        # Before DeepSpeed does it: it would bind the group to the GPU, and then torch makes every other group, such as
        # that of a push, by splitting this one, for which all training processes would have to come.
        dist.init_process_group(backend)
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)

"""The student as it was some updates ago, for a comparison with a server that still holds it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import torch

from trainer.learner.batches import MicroBatch


@dataclasses.dataclass(frozen=True)
class Sample:
    """A few of a process's rollouts, and how many updates the student had that drew them."""

    drawn_after: int
    batch: MicroBatch


class PastWeights:
    """Copies of this process's part of the weights, one for each of the last updates, beside the weights themselves.

    Args:
        module: the student that trains; under ZeRO-3 each process holds a part of its weights.
        keep: how many students to keep.
        release: makes ZeRO-3 give up what it gathered, so that the parts are all there is of a parameter.
    """

    def __init__(self, module: torch.nn.Module, keep: int, release: Callable[[], None] = lambda: None) -> None:
        self._module, self._keep, self._release = module, keep, release
        self._kept: dict[int, list[torch.Tensor]] = {}

    def __contains__(self, updates: int) -> bool:
        return updates in self._kept

    def remember(self, updates: int) -> None:
        """Keep the student as it is, after so many updates, and drop those that are too old."""
        if self._keep:
            self._kept[updates] = self._copy()
            self._kept = {kept: copy for kept, copy in self._kept.items() if kept > updates - self._keep}

    @contextlib.contextmanager
    def restored(self, updates: int) -> Iterator[None]:
        """In the block the module is a student that is kept; after it what it was, bit for bit."""
        now = self._copy()
        self._put(self._kept[updates])
        try:
            yield
        finally:
            self._put(now)

    def _tensors(self) -> list[torch.Tensor]:
        self._release()
        return [getattr(parameter, "ds_tensor", parameter.data) for parameter in self._module.parameters()]

    def _copy(self) -> list[torch.Tensor]:
        return [tensor.detach().clone() for tensor in self._tensors()]

    def _put(self, values: list[torch.Tensor]) -> None:
        for tensor, value in zip(self._tensors(), values, strict=True):
            tensor.detach().copy_(value)

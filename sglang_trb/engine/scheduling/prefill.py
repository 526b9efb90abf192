"""Prefill batches that cannot be built: each gives back what it took, and is built anew from one request at a time.

`rehearse` makes that rare: what is computed from a request's parameters for a whole batch is computed once before, when
the request is received and still alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.mem_cache.base_prefix_cache import DecLockRefParams
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

from sglang_trb.engine.backend import on_blending_servers

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch


class BatchNotBuilt(Exception):
    """A prefill batch could not be built; its requests hold nothing that they did not hold before.

    Attributes:
        reqs: the batch's requests.
        error: what was raised.
    """

    def __init__(self, reqs: list[Req], error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.reqs, self.error = reqs, error


@on_blending_servers
def prepare_for_extend(original: Callable, batch: ScheduleBatch) -> None:
    """The tensors of a prefill batch. A batch that fails gives back what it took.

    Raises:
        BatchNotBuilt: nothing is held any more; which request it was is not known.
    """
    before = [_Admission.of(req) for req in batch.reqs]
    try:
        original(batch)
    except Exception as error:
        _give_back(batch, before, error)
        raise BatchNotBuilt(batch.reqs, error) from error


@dataclasses.dataclass(frozen=True)
class _BatchOfOne:
    """As much of a `ScheduleBatch` as sampling parameters are made from."""

    reqs: list[Req]
    device: str = "cpu"


def rehearse(req: Req, vocab_size: int) -> None:
    """Make the sampling parameters of a batch of this request alone, on the host, and drop them."""
    batch: Any = _BatchOfOne([req])
    SamplingBatchInfo.from_schedule_batch(batch, vocab_size)


_COUNTERS = (
    "extend_batch_idx",
    "cached_tokens",
    "cached_tokens_device",
    "cached_tokens_host",
    "cached_tokens_storage",
    "_cache_breakdown_computed",
    "already_computed",
    "is_retracted",
)
"""What `ScheduleBatch.prepare_for_extend` changes on a request beside its KV."""


@dataclasses.dataclass(frozen=True)
class _Admission:
    """What a request held when its prefill batch was about to be built."""

    held_kv: bool  # a chunk of its prompt was computed before
    allocated: int
    counters: dict[str, Any]

    @classmethod
    def of(cls, req: Req) -> _Admission:
        return cls(req.kv.holds_kv, req.kv.kv_allocated_len, {name: getattr(req, name) for name in _COUNTERS})


def _give_back(batch: ScheduleBatch, before: list[_Admission], error: Exception) -> None:
    """Free what `prepare_for_extend` allocated. Where only some of the requests got theirs, the pool is broken."""
    pairs = list(zip(batch.reqs, before, strict=True))
    allocated = all(req.kv.holds_kv and req.kv.kv_allocated_len == req.extend_range.end for req, _ in pairs)
    untouched = all((req.kv.holds_kv, req.kv.kv_allocated_len) == (was.held_kv, was.allocated) for req, was in pairs)
    if not (allocated or untouched):
        raise error
    for req, was in pairs:
        if not was.held_kv:
            if allocated:
                release_kv_cache(req, batch.tree_cache, is_insert=False)
            else:
                batch.tree_cache.unpin(req)
            _as_if_waiting(req)
        elif allocated:
            batch.tree_cache.free_kv_row(req.kv, [(was.allocated, req.kv.kv_allocated_len)])
            req.kv.kv_allocated_len = req.kv.kv_committed_len = was.allocated
        for name, value in was.counters.items():
            setattr(req, name, value)


def _as_if_waiting(req: Req) -> None:
    req.prefix_indices = torch.empty((0,), dtype=torch.int64)
    req.last_node = None
    req.lock_receipt = DecLockRefParams()
    req.extend_range = None
    req.kv.cache_protected_len = req.kv.kv_committed_len = 0
    req.inflight_middle_chunks = 0

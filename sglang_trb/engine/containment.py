"""An exception in the scheduler's handling of one request ends that request, not the server.

Requests are checked before the scheduler sees them (the first line). This is the second: whatever SGLang's code or ours
still raises about one request while it is received, put into a prefill batch, given its tokens, or streamed, is logged,
answered with HTTP 500, and what the request held is freed. Every rank sees the same request and so the same exception.
What breaks the model or the pool is not about one request and ends the process, as before.

Where SGLang calls a method about one request inside a loop over many, the method is wrapped here: it marks the request
as failed and returns, so that the loop goes on. `TrbScheduler` and `TrbOutputStreamer` then take the request out and
answer it. `rehearse` moves what is computed from a request's parameters for a whole batch to the moment at which it is
received, where it is still alone; a prefill batch that cannot be built all the same is taken apart (`BatchNotBuilt`).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req
from sglang.srt.managers.schedule_policy import AddReqResult
from sglang.srt.mem_cache.base_prefix_cache import DecLockRefParams
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

from sglang_trb.engine.backend import on_blending_servers

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

logger = logging.getLogger(__name__)


# Marks


def fail(req: Req, error: Exception) -> None:
    """Mark a request: it ends with an error, at the latest with its next token. The first error is kept."""
    if failure_of(req) is not None:
        return
    logger.error("request %s ends: the server failed on it", req.rid, exc_info=error)
    reason = abort_reason(error)
    req.trb_failure = reason
    req.skip_radix_cache_insert = True
    if req.finished():
        req.finished_reason = reason
    else:
        req.to_finish = reason


def failure_of(req: Req) -> FINISH_ABORT | None:
    """Why a request ends, if it was marked."""
    return getattr(req, "trb_failure", None)


def abort_reason(error: Exception) -> FINISH_ABORT:
    """What the client is told."""
    message = f"the server failed on this request, and on no other: {type(error).__name__}: {error}"
    return FINISH_ABORT(message, HTTPStatus.INTERNAL_SERVER_ERROR, "InternalServerError")


def contained(method: Callable, otherwise: Callable[[Req], Any] = lambda req: None) -> Callable:
    """A method about one request, its parameter ``req``: what it raises marks that request.

    Args:
        method: any callable with a parameter named ``req``.
        otherwise: what is returned then, given the request.
    """
    signature = inspect.signature(method)

    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            req = signature.bind(*args, **kwargs).arguments["req"]
            fail(req, error)
            return otherwise(req)

    return wrapper


# Wrapped methods of SGLang; each takes the original first


@on_blending_servers
def logprobs(original: Callable, processor: Any, i: int, req: Req, *args: Any, **kwargs: Any) -> None:
    """A request's share of the batch's log-probabilities."""
    try:
        original(processor, i, req, *args, **kwargs)
    except Exception as error:
        fail(req, error)


@on_blending_servers
def update_finish_state(original: Callable, req: Req, *args: Any, **kwargs: Any) -> None:
    """Stop strings and tokens, length: a request that fails there is finished at once."""
    try:
        original(req, *args, **kwargs)
    except Exception as error:
        fail(req, error)
        if not req.finished():
            req.finished_reason, req.to_finish = req.to_finish, None


@on_blending_servers
def init_next_round_input(original: Callable, req: Req, *args: Any, **kwargs: Any) -> None:
    """The prompt and its cached prefix, just before the request is added to a prefill batch."""
    try:
        original(req, *args, **kwargs)
    except Exception as error:
        fail(req, error)


@on_blending_servers
def add_one_req(original: Callable, adder: Any, req: Req, *args: Any, **kwargs: Any) -> AddReqResult:
    """Admission of a waiting request to a prefill batch: a failed one is passed over."""
    if failure_of(req) is None:
        try:
            return original(adder, req, *args, **kwargs)
        except Exception as error:
            fail(req, error)
            if req in adder.can_run_list:
                adder.can_run_list.remove(req)
                adder.tree_cache.unpin(req)
            if adder.new_chunked_req is req:
                adder.new_chunked_req = None
    return AddReqResult.CONTINUE


@on_blending_servers
def add_chunked_req(original: Callable, adder: Any, req: Req) -> Req | None:
    """Admission of a long prompt's next chunk; None: there is no next chunk."""
    if failure_of(req) is None:
        try:
            return original(adder, req)
        except Exception as error:
            fail(req, error)
            if req in adder.can_run_list:
                adder.can_run_list.remove(req)
    return None


@on_blending_servers
def calc_priority(original: Callable, policy: Any, waiting_queue: list[Req], *args: Any, **kwargs: Any) -> None:
    """The order of the waiting requests; where it fails, each is tried alone and the order stays."""
    try:
        original(policy, waiting_queue, *args, **kwargs)
    except Exception as error:
        for req in list(waiting_queue):
            try:
                original(policy, [req], *args, **kwargs)
            except Exception as own_error:
                fail(req, own_error)
        if all(failure_of(req) is None for req in waiting_queue):
            raise error


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


# Prefill batches


class BatchNotBuilt(Exception):
    """A prefill batch could not be built; its requests hold nothing that they did not hold before.

    Attributes:
        reqs: the batch's requests.
        error: what was raised.
    """

    def __init__(self, reqs: list[Req], error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.reqs, self.error = reqs, error


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

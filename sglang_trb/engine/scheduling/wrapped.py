"""Methods that SGLang calls for one request inside a loop over many: what they raise marks that request alone.

Each takes the original first; `engine.containment` says what follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.schedule_policy import AddReqResult

from sglang_trb.engine.backend import on_blending_servers
from sglang_trb.engine.containment import fail, failure_of


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

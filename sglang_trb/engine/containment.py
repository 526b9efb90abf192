"""An exception in the scheduler's handling of one request ends that request, not the server.

Requests are checked before the scheduler sees them (the first line). This is the second: whatever SGLang's code or ours
still raises about one request while it is received, put into a prefill batch, given its tokens, or streamed, is logged,
answered with HTTP 500, and what the request held is freed. Every rank sees the same request and so the same exception.
What breaks the model or the pool is not about one request and ends the process, as before.

Where SGLang calls a method about one request inside a loop over many, the method marks the request as failed and
returns, so that the loop goes on (`contained` for ours, `scheduling.wrapped` for SGLang's). `TrbScheduler` and
`TrbOutputStreamer` then take the request out and answer it. `scheduling.prefill` is about batches that cannot be built.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req

logger = logging.getLogger(__name__)


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

"""A profile that cannot be taken or written ends no server: SGLang's profiler runs inside the scheduler's loop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sglang.srt.managers.io_struct import ProfileReq, ProfileReqOutput

from sglang_trb.engine.backend import on_blending_servers

logger = logging.getLogger(__name__)


@on_blending_servers
def profile(original: Callable[..., Any], profiler: Any, recv_req: ProfileReq) -> ProfileReqOutput:
    """What an operator asks for; where it cannot be done, the answer says why."""
    try:
        if recv_req.output_dir is not None:  # written to at the end, when it would be too late
            Path(recv_req.output_dir).expanduser().mkdir(parents=True, exist_ok=True)
        return original(profiler, recv_req)
    except Exception as error:
        return _given_up(profiler, error)


@on_blending_servers
def in_a_step(original: Callable[..., Any], profiler: Any, batch: Any) -> None:
    """A profile begins or ends with a step."""
    try:
        original(profiler, batch)
    except Exception as error:
        _given_up(profiler, error)


def _given_up(profiler: Any, error: Exception) -> ProfileReqOutput:
    """Ranks write to one disk, so they fail alike."""
    logger.error("profiling ends: it failed", exc_info=error)
    profiler.__post_init__()  # as before the profile
    return ProfileReqOutput(success=False, message=f"profiling failed: {type(error).__name__}: {error}")

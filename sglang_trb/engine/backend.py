"""Whether a server blends: it was started with ``--sampling-backend trb``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from sglang.srt.runtime_context import get_exec

BACKEND = "trb"
"""The sampling backend of a blending server."""


def blends() -> bool:
    """Whether this process is part of a blending server, once SGLang has published its configuration."""
    return get_exec().kernel.sampling_backend == BACKEND


def asks_to_blend(server_args: Any) -> bool:
    """Whether these options, resolved or not, ask for a blending server."""
    return server_args.sampling_backend == BACKEND


def on_blending_servers(hook: Callable) -> Callable:
    """A hook around a function of SGLang, which is called unchanged on a server that does not blend."""

    @functools.wraps(hook)
    def wrapper(original: Callable, *args: Any, **kwargs: Any) -> Any:
        if not blends():
            return original(*args, **kwargs)
        return hook(original, *args, **kwargs)

    return wrapper

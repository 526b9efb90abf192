"""Where SGLang decides by an attention backend's name whether its Triton kernels may be launched; ours has none."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sglang.srt.mem_cache.allocation import get_last_loc_torch
from sglang.srt.runtime_context import attention_backends

from sglang_trb.engine.cpu.platform import ATTENTION_BACKEND


def support_triton(original: Callable[[str], bool], backend: str) -> bool:
    """Asked where prompts are given their KV slots and positions."""
    return backend != ATTENTION_BACKEND and original(backend)


def get_last_loc(original: Callable[..., torch.Tensor], *args: torch.Tensor) -> torch.Tensor:
    """The slot of each request's last token, where pages hold more than one."""
    return (get_last_loc_torch if ATTENTION_BACKEND in attention_backends() else original)(*args)

"""An SGLang platform that serves on a plain CPU, without sglang-kernel.

SGLang's own CPU platform (``SGLANG_USE_CPU_ENGINE=1``) imports sglang-kernel's CPU build and wants AMX. This one is an
out-of-tree platform (entry-point group ``sglang.srt.platforms``), so that every operator takes its plain torch form.
It is what the tests, the demo and development without a GPU run on. Launch with ``--device cpu``.

SGLang imports this module half-way through importing ``sglang.srt.utils``, so what builds on SGLang's memory classes is
imported inside the methods. Paths in comments are inside ``sglang/srt``.
"""

from __future__ import annotations

import os

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform

ATTENTION_BACKEND = "torch_batched"
"""What `cpu.attention` registers, by its name in ``--attention-backend``."""


def activate() -> str | None:
    """Entry point: names the platform class, or None where another platform should be used.

    None wherever torch sees an accelerator (CUDA, ROCm, XPU, ...) and where SGLang's own CPU engine is asked for.
    """
    if torch.accelerator.is_available() or os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1":
        return None
    return f"{__name__}:{PlainCpuPlatform.__name__}"


class PlainCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """A CPU on which nothing but torch is assumed.

    ``_enum`` is OOT, not CPU: SGLang takes the pool, the allocator and the attention backend from the platform only
    when it is out of tree (mem_cache/kv_cache_configurator.py, arg_groups/model_override_base.py). The inherited
    defaults already say no pinned memory, no graphs, no fp8, and dispatch key ``native``.
    """

    _enum = PlatformEnum.OOT

    def get_default_attention_backend(self) -> str:
        return ATTENTION_BACKEND

    def init_backend(self) -> None:
        """Called where SGLang's model runner is imported; registers the attention backend."""
        import sglang_trb.engine.cpu.attention  # noqa: F401

    def get_mha_kv_pool_cls(self) -> type:
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        return MHATokenToKVPool

    def get_paged_allocator_cls(self) -> type:
        from sglang_trb.engine.cpu.allocator import TorchPagedAllocator

        return TorchPagedAllocator

    def get_torch_profiler_activity_str(self) -> str:
        return "CPU"

    def get_torch_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        return torch.profiler.ProfilerActivity.CPU

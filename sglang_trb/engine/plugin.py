"""The SGLang plugin: registers the sampling backend, and the hooks of the table of touch points.

Everything that is replaced behaves as SGLang's own unless the server was started with ``--sampling-backend trb``.
"""

from __future__ import annotations

import importlib.metadata
from typing import NoReturn

from sglang.srt.layers.sampler import register_sampler_backend
from sglang.srt.platforms import current_platform
from sglang.srt.server_args import add_attention_backend_choices

from sglang_trb.engine import hooks
from sglang_trb.engine.backend import BACKEND
from sglang_trb.engine.cpu.platform import ATTENTION_BACKEND, PlainCpuPlatform
from sglang_trb.engine.touch_points.checked import CHECKED_SGLANG
from sglang_trb.errors import NotInForce


def register() -> None:
    """Entry point of ``sglang.srt.plugins``; called once in the main process and in every scheduler process.

    Everything is replaced in each of them: which one a process will be cannot be told, for frameworks launch servers
    from children too.
    """
    installed = importlib.metadata.version("sglang")
    if installed != CHECKED_SGLANG:
        register_sampler_backend(BACKEND, lambda: _refuse_version(installed))
        return
    # Imported now: it subclasses SGLang's sampler, so it loads only once SGLang asks for its plugins.
    from sglang_trb.engine.worker.sampler import TrbSampler

    register_sampler_backend(BACKEND, TrbSampler)
    if isinstance(current_platform, PlainCpuPlatform):
        add_attention_backend_choices([ATTENTION_BACKEND])
    hooks.put_all()


def _refuse_version(installed: str) -> NoReturn:
    raise NotInForce(f"sglang {installed} is installed; this version of sglang-trb works with {CHECKED_SGLANG} only")

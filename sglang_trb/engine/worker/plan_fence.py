"""Keeps a model's next attention plan off the host buffer that its last one is still copied from.

FlashInfer plans on the host: a wrapper writes its plan into one pinned buffer and queues a copy to the device, without
waiting (``cudaMemcpyAsync`` in its ``scheduler.cuh``; decode replays take the sync-free ``fast_decode_plan``, as
SGLang's `FlashInferIndicesUpdaterDecode.call_begin_forward` calls it). SGLang's `Scheduler.event_loop_overlap` launches
a step when only the last but one has ended. With one model that copy stands at the head of the running step and is long
done. In a pair the student's copy waits behind the whole teacher, and the next plan would overwrite it: wrong KV rows,
or a kernel that never ends. FA3 and Triton make their metadata on the device and need no fence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

HOST_PLANNERS = frozenset({"flashinfer"})
"""Attention backends that stage a plan on the host."""

_PLANS = ("init_forward_metadata", "init_forward_metadata_out_graph")
"""What makes a plan: eagerly, and before a graph is replayed. Neither runs inside a capture."""


class PlanFence:
    """Waits, before the next plan, until the device has passed the end of the last one; the rest stays queued."""

    def __init__(self, event: Any) -> None:
        self._event = event

    def around(self, plan: Callable[..., None]) -> Callable[..., None]:
        """``plan``, behind the fence."""

        def fenced(*args: Any, **kwargs: Any) -> None:
            self._event.synchronize()  # an event that was never recorded is done
            plan(*args, **kwargs)
            self._event.record()

        return fenced


def fence_plans(runner: Any) -> None:
    """Put the plans of a model runner behind a fence if its attention backend stages them on the host.

    Call once, when its attention backend is there.
    """
    if HOST_PLANNERS.isdisjoint((runner.prefill_attention_backend_str, runner.decode_attention_backend_str)):
        return
    fence = PlanFence(torch.get_device_module(runner.device).Event())
    for name in _PLANS:
        setattr(runner.attn_backend, name, fence.around(getattr(runner.attn_backend, name)))

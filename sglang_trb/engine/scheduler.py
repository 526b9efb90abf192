"""The scheduler of a blending server: SGLang's own, with the paired worker and our result streamer in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.runtime_context import get_device, get_exec

from sglang_trb.engine import plugin
from sglang_trb.engine.pair import PairedWorker
from sglang_trb.engine.results import TrbOutputStreamer
from sglang_trb.errors import NotInForce

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


class TrbScheduler(Scheduler):
    """Hosts the pair when the server runs with ``--sampling-backend trb``; otherwise SGLang's scheduler."""

    @property
    def blends(self) -> bool:
        return get_exec().kernel.sampling_backend == plugin.BACKEND

    def init_tp_model_worker(self) -> None:
        if not self.blends:
            if self.server_args.sampling_backend == plugin.BACKEND:
                raise NotInForce("sampling_backend is 'trb', but it was resolved to another: it would not blend")
            return super().init_tp_model_worker()
        plugin.require_in_force()
        self.tp_worker = PairedWorker(
            server_args=self.server_args, gpu_id=get_device().gpu_id, nccl_port=self.nccl_port
        )
        # A request ends on the ids that alignment maps to the stop event, whatever the checkpoint's files say.
        self.model_config.hf_eos_token_id = set(self.tp_worker.pair.alignment.student_ids)

    def stash_chunked_request(self, req: Req) -> None:
        """Between the chunks of a long prompt, keep its KV out of the radix cache: its row may yet turn out NaN.

        What SGLang's ChunkCache does, instead of inserting each chunk at once; the whole prompt is inserted with the
        first token drawn. Prompts are shared from then on.
        """
        if not self.blends or self.tree_cache.is_chunk_cache():
            return super().stash_chunked_request(req)
        slots = self.req_to_token_pool.req_to_token[req.kv.req_pool_idx, : req.extend_range.end]
        req.prefix_indices = slots.to(dtype=torch.int64, copy=True)

    def get_output_streamer_class(self) -> type:
        return TrbOutputStreamer if self.blends else super().get_output_streamer_class()

    def get_init_info(self) -> dict[str, Any]:
        info = super().get_init_info()
        return info | {"trb_memory": self.tp_worker.memory_plan()} if self.blends else info

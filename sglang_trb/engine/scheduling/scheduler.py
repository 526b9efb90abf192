"""The scheduler of a blending server: SGLang's own, with the paired worker and our result streamer in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import FINISH_ABORT, NextBatchPlan
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.srt.runtime_context import get_device

from sglang_trb.engine import backend, containment, hooks
from sglang_trb.engine.containment import fail, failure_of
from sglang_trb.engine.scheduling.prefill import BatchNotBuilt, rehearse
from sglang_trb.engine.scheduling.results import TrbOutputStreamer
from sglang_trb.engine.worker.batch import trace_of
from sglang_trb.engine.worker.paired_worker import PairedWorker
from sglang_trb.errors import NotInForce

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch


def prefix_namespace(req: Req) -> str | None:
    """The key under which a request's prefixes are cached: the client's, apart for requests without the teacher.

    The teacher has not seen theirs, so no other request may find them, whatever key its client chose.
    """
    if not trace_of(req).params.needs_teacher:
        return f"student alone|{req.extra_key or ''}"
    return f"pair|{req.extra_key}" if req.extra_key else None


def _keep_apart(req: Req) -> None:
    """Move a request into its namespace, once: it is queued again when it was preempted or held back.

    One that SGLang refused is moved too: it runs with a prompt of one token, which is cached as any other.
    """
    if not getattr(req, "trb_kept_apart", False):
        req.extra_key = prefix_namespace(req)
        req.trb_kept_apart = True


class TrbScheduler(Scheduler):
    """Hosts the pair when the server runs with ``--sampling-backend trb``; otherwise SGLang's scheduler."""

    @property
    def blends(self) -> bool:
        """Whether this server blends."""
        return backend.blends()

    def init_tp_model_worker(self) -> None:
        """SGLang's, with a worker for the pair."""
        if not self.blends:
            if backend.asks_to_blend(self.server_args):
                raise NotInForce("sampling_backend is 'trb', but it was resolved to another: it would not blend")
            return super().init_tp_model_worker()
        hooks.require_in_force()
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
        """SGLang's choice, ours on a blending server."""
        return TrbOutputStreamer if self.blends else super().get_output_streamer_class()

    def get_init_info(self) -> dict[str, Any]:
        info = super().get_init_info()
        if not self.blends:
            return info
        teacher_hash = self.weight_updater.teacher_hash()
        return info | {"trb_memory": self.tp_worker.memory_plan(), "trb_teacher_hash": teacher_hash}

    def abort_request(self, recv_req: AbortReq) -> None:
        """As SGLang's; a request that waits to go on after a retraction brings its tokens with their statistics."""
        if self.blends and recv_req.finished_reason is None:
            asked = [r for r in self.waiting_queue if recv_req.abort_all or r.rid.startswith(recv_req.rid)]
            for req in [req for req in asked if req.output_ids]:
                self.waiting_queue.remove(req)
                self._release_aborted_request(req)
                req.finished_reason = FINISH_ABORT()
                self.output_streamer.stream_output([req], req.return_logprob)
        super().abort_request(recv_req)

    # An exception about one request ends it alone: see containment.py

    def handle_generate_request(self, recv_req: Any, **kwargs: Any) -> None:
        """As SGLang's; a request that cannot be received is answered with an error."""
        if not self.blends:
            return super().handle_generate_request(recv_req, **kwargs)
        try:
            super().handle_generate_request(recv_req, **kwargs)
        except Exception as error:
            containment.logger.error("request %s ends: it could not be received", recv_req.rid, exc_info=error)
            self.waiting_queue = [req for req in self.waiting_queue if req.rid != recv_req.rid]
            self._answer(recv_req, containment.abort_reason(error))

    def _add_request_to_queue(self, req: Req, is_retracted: bool = False) -> None:
        if self.blends and not is_retracted:
            try:
                _keep_apart(req)
                if req.to_finish is None:
                    rehearse(req, self.model_config.vocab_size)
            except Exception as error:
                return self._end(req, error)
        return super()._add_request_to_queue(req, is_retracted)

    def get_new_batch_prefill(self, running_batch: ScheduleBatch) -> NextBatchPlan:
        """As SGLang's, without the requests that fail on the way."""
        if not self.blends:
            return super().get_new_batch_prefill(running_batch)
        chunked = self.chunked_req
        try:
            plan = super().get_new_batch_prefill(running_batch)
        except BatchNotBuilt as unbuilt:
            plan = self._built_from_one(unbuilt, chunked, running_batch)
        if chunked is not None and failure_of(chunked) is not None and not chunked.finished():
            self._end_chunked(chunked)
        for req in [req for req in self.waiting_queue if failure_of(req) is not None]:
            self.waiting_queue.remove(req)
            self._end(req)
        return plan

    def _built_from_one(self, unbuilt: BatchNotBuilt, chunked: Req | None, running: ScheduleBatch) -> NextBatchPlan:
        """A prefill batch of the first request that can be built alone; those before it fail, the others wait on."""
        waiting = [req for req in unbuilt.reqs if req is not chunked] + self.waiting_queue
        for candidate in sorted(unbuilt.reqs, key=lambda req: req is not chunked):
            if chunked is not None and self.chunked_req is chunked:
                chunked.inflight_middle_chunks -= 1  # counted for the chunk that was not computed
            self.chunked_req = chunked if chunked is not None and failure_of(chunked) is None else None
            others = [req for req in waiting if req is not candidate]
            self.waiting_queue = [req for req in waiting if req is candidate]
            running.batch_is_full = False
            try:
                plan = super().get_new_batch_prefill(running)
            except BatchNotBuilt as error:
                self.waiting_queue = waiting
                fail(candidate, error.error)
                continue
            self.waiting_queue += others
            return plan
        running.batch_is_full = False
        return NextBatchPlan(batch_to_run=None, running_batch=running)

    def process_batch_result(self, batch: ScheduleBatch, result: Any) -> None:
        """SGLang's, then answers requests that failed on the way."""
        super().process_batch_result(batch, result)
        for req in batch.reqs:
            if getattr(req, "trb_unanswered", False):
                req.trb_unanswered = False
                self._answer(req, failure_of(req))

    def _end(self, req: Req, error: Exception | None = None) -> None:
        """End a request that holds nothing."""
        if error is not None:
            fail(req, error)
        self._release_aborted_request(req)
        self._answer(req, failure_of(req))

    def _end_chunked(self, req: Req) -> None:
        """End a request of whose prompt some chunks were computed, as SGLang does when its client is gone."""
        req.finished_reason, req.to_finish = failure_of(req), None
        if self.chunked_req is req:
            self.chunked_req = None
        self._release_aborted_request(req)
        release_kv_cache(req, self.tree_cache, is_insert=False)
        self._answer(req, failure_of(req))

    def _answer(self, req: Any, reason: FINISH_ABORT) -> None:
        self.ipc_channels.send_to_tokenizer.send_output(AbortReq(rid=req.rid, finished_reason=reason.to_json()), req)

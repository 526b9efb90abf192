"""What the scheduler does with a step's statistics: end requests whose row failed, send traces with the answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar

from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.managers.scheduler_components.batch_result_processor import SchedulerBatchResultProcessor
from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer
from sglang.srt.runtime_context import get_parallel, get_serving

from sglang_trb.engine import metrics
from sglang_trb.engine.backend import on_blending_servers
from sglang_trb.engine.containment import contained, fail, failure_of
from sglang_trb.engine.worker.batch import trace_of
from sglang_trb.engine.worker.sampler import HostStatistics
from sglang_trb.wire.params import Return
from sglang_trb.wire.trace import FinishedTrace

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.utils import GenerationBatchResult

ROW_ERRORS = {
    1: "the student's logits hold NaN or +inf, or no finite value",
    2: "the teacher's logits hold NaN or +inf, or no finite value",
    3: "no token is left to draw: masks and filters forbid every token that the rule allows",
}
"""What `StepOutput.error_B` codes mean to a user."""


class TrbBatchResultProcessor(SchedulerBatchResultProcessor):
    """Aborts the requests whose row could not be drawn, alone, and keeps their prefix out of the radix cache.

    What SGLang does with one request's token in the loop over a batch ends that request alone if it fails.
    """

    _base = SchedulerBatchResultProcessor
    _maybe_update_reasoning_tokens = contained(_base._maybe_update_reasoning_tokens)
    _maybe_collect_customized_info = contained(_base._maybe_collect_customized_info)
    _apply_decode_logprobs = contained(_base._apply_decode_logprobs)
    _append_decode_hidden_states = staticmethod(contained(_base._append_decode_hidden_states))
    _apply_prefill_grammar = contained(_base._apply_prefill_grammar)
    _accept_grammar_tokens = contained(_base._accept_grammar_tokens, otherwise=lambda req: [])
    del _base

    def process_batch_result_prefill(self, batch: ScheduleBatch, result: GenerationBatchResult) -> None:
        """SGLang's, after rows that failed were ended."""
        self._end_failed_rows(batch, result)
        super().process_batch_result_prefill(batch, result)

    def process_batch_result_decode(self, batch: ScheduleBatch, result: GenerationBatchResult) -> None:
        """SGLang's, after rows that failed were ended."""
        self._end_failed_rows(batch, result)
        super().process_batch_result_decode(batch, result)

    def _end_failed_rows(self, batch: ScheduleBatch, result: GenerationBatchResult) -> None:
        statistics = getattr(result, "auxiliary_host_output", None)
        if not isinstance(statistics, HostStatistics):
            return
        if result.copy_done is not None:
            result.copy_done.synchronize()
        for req, code in zip(batch.reqs, statistics.error_B.tolist(), strict=True):
            if code and failure_of(req) is None and not req.finished() and not req.is_retracted:
                req.skip_radix_cache_insert = True
                if req.to_finish is not None:
                    continue  # a chunk of its prompt failed before
                req.to_finish = FINISH_ABORT(
                    f"token {len(req.output_ids)} of this request could not be drawn: {ROW_ERRORS[code]}",
                    HTTPStatus.BAD_REQUEST,
                    "BadRequestError",
                )
                if get_parallel().tp_rank == 0:
                    metrics.observe_rejected("row")


class TrbOutputStreamer(SchedulerOutputStreamer):
    """Sends each finished request's trace with its last output, as SGLang's customized metadata ``trb``."""

    has_additional_customized_info: ClassVar[bool] = True

    def build_additional_customized_info(self, reqs: list[Req]) -> dict[str, list[FinishedTrace | None]]:
        """The traces of the requests, as SGLang's customized metadata."""
        return {"trb": [getattr(req, "trb_finished_trace", None) for req in reqs]}


@on_blending_servers
def accept(original: Callable, accumulator: Any, *, req: Req) -> None:
    """One request's part of a message to the detokenizer, with its trace; a failed one leaves no mark in it.

    `TrbScheduler` answers a request that failed here.
    """
    if req.finished_output:
        return
    count = len(accumulator.output_reqs)
    try:
        if req.finished():
            req.trb_finished_trace = _finished_trace(req)
        original(accumulator, req=req)
    except Exception as error:
        for field in dataclasses.fields(accumulator):
            if isinstance(values := getattr(accumulator, field.name), list):
                del values[count:]
        for values in accumulator.customized_info.values():
            del values[count:]
        fail(req, error)
        req.finished_output = req.trb_unanswered = True


def _finished_trace(req: Req) -> FinishedTrace | None:
    """The statistics of the tokens that the answer brings; an answer that is an error brings none."""
    trace, reason = trace_of(req), req.finished_reason
    if trace.params.returned is Return.NONE or (isinstance(reason, FINISH_ABORT) and reason.status_code is not None):
        return None
    num_tokens = req.finished_len if req.finished_len is not None else len(req.output_ids)
    return trace.finish(num_tokens, get_serving().weight_version)

"""What the scheduler does with a step's statistics: end requests whose row failed, send traces with the answers."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, ClassVar

from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.managers.scheduler_components.batch_result_processor import SchedulerBatchResultProcessor
from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer
from sglang.srt.runtime_context import get_parallel, get_serving

from sglang_trb.engine import metrics
from sglang_trb.engine.batch import trace_of
from sglang_trb.engine.sampler import HostStatistics
from sglang_trb.params import Return
from sglang_trb.trace import FinishedTrace

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
    """Aborts the requests whose row could not be drawn, alone, and keeps their prefix out of the radix cache."""

    def process_batch_result_prefill(self, batch: ScheduleBatch, result: GenerationBatchResult) -> None:
        self._end_failed_rows(batch, result)
        super().process_batch_result_prefill(batch, result)

    def process_batch_result_decode(self, batch: ScheduleBatch, result: GenerationBatchResult) -> None:
        self._end_failed_rows(batch, result)
        super().process_batch_result_decode(batch, result)

    def _end_failed_rows(self, batch: ScheduleBatch, result: GenerationBatchResult) -> None:
        statistics = getattr(result, "auxiliary_host_output", None)
        if not isinstance(statistics, HostStatistics):
            return
        if result.copy_done is not None:
            result.copy_done.synchronize()
        for req, code in zip(batch.reqs, statistics.error_B.tolist(), strict=True):
            if code and not req.finished() and not req.is_retracted:
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
        return {"trb": [self._finished_trace(req) for req in reqs]}

    @staticmethod
    def _finished_trace(req: Req) -> FinishedTrace | None:
        trace = trace_of(req)
        if not req.finished() or trace.params.returned is Return.NONE or isinstance(req.finished_reason, FINISH_ABORT):
            return None
        num_tokens = req.finished_len if req.finished_len is not None else len(req.output_ids)
        return trace.finish(num_tokens, get_serving().weight_version)

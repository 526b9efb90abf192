"""Weight updates of the student alone, on SGLang's disk, tensor and distributed routes (scheduler side).

The main process (`tokenizer_manager.TrbTokenizerManager`) decides when an update may start and what follows a failure;
here each rank checks, before a byte is written, that nothing is in flight and that the tensors are the student's, and
flushes the cache whatever was asked.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from sglang.srt.managers import io_struct
from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager

from sglang_trb.engine.pair import PairedWorker
from sglang_trb.engine.update_guard import BUSY, UNTOUCHED
from sglang_trb.errors import InvalidParameter
from sglang_trb.weight_files import check_checkpoint, check_tensors

logger = logging.getLogger(__name__)

_NO_SESSION = f"{UNTOUCHED}the update must run between begin_weight_update() and end_weight_update()"


class TrbWeightUpdater(SchedulerWeightUpdaterManager):
    """Updates the student; the teacher is never among the runners that a route can write to."""

    _reads_teacher = False

    @property
    def _pairs(self) -> bool:
        return isinstance(self.tp_worker, PairedWorker)

    def _refusal(self, selector: str = "all") -> str | None:
        if selector == "draft":
            return f"{UNTOUCHED}selector 'draft' names the teacher, whose weights never change"
        return None if self.is_fully_idle() else BUSY

    def flush_cache_after_weight_update(self, recv_req: Any) -> None:
        if self._pairs:
            recv_req.flush_cache = True
        super().flush_cache_after_weight_update(recv_req)

    def update_weights_from_disk(self, recv_req: io_struct.UpdateWeightFromDiskReqInput):
        if self._pairs:
            refusal = self._refusal()
            if refusal is None and (problem := check_checkpoint(recv_req.model_path, self.tp_worker.pair.student)):
                refusal = UNTOUCHED + problem
            if refusal is not None:
                return io_struct.UpdateWeightFromDiskReqOutput(success=False, message=refusal, num_paused_requests=0)
        return super().update_weights_from_disk(recv_req)

    def begin_weight_update(self, recv_req: io_struct.BeginWeightUpdateReqInput):
        refusal = self._refusal(recv_req.selector) if self._pairs else None
        if refusal is not None:
            return io_struct.BeginWeightUpdateReqOutput(success=False, message=refusal)
        return super().begin_weight_update(recv_req)

    def update_weights_from_tensor(self, recv_req: io_struct.UpdateWeightsFromTensorReqInput):
        if not self._pairs:
            return super().update_weights_from_tensor(recv_req)
        if self._session is None:
            return io_struct.UpdateWeightsFromTensorReqOutput(success=False, message=_NO_SESSION)
        try:
            return super().update_weights_from_tensor(recv_req)
        except Exception as error:  # whatever a malformed payload raises must not end the server
            logger.exception("update_weights_from_tensor failed")
            torch.distributed.barrier(group=self.tp_cpu_group)  # other ranks wait there
            message = f"{UNTOUCHED if isinstance(error, InvalidParameter) else ''}{type(error).__name__}: {error}"
            return io_struct.UpdateWeightsFromTensorReqOutput(success=False, message=message)

    def update_weights_from_distributed(self, recv_req: io_struct.UpdateWeightsFromDistributedReqInput):
        if self._pairs:
            if self._session is None:
                return io_struct.UpdateWeightsFromDistributedReqOutput(success=False, message=_NO_SESSION)
            described = zip(recv_req.names, recv_req.shapes, strict=True)
            if problem := check_tensors(described, self.tp_worker.pair.student):
                self._discard_broadcast(recv_req)
                return io_struct.UpdateWeightsFromDistributedReqOutput(success=False, message=UNTOUCHED + problem)
        return super().update_weights_from_distributed(recv_req)

    def _discard_broadcast(self, recv_req: io_struct.UpdateWeightsFromDistributedReqInput) -> None:
        """Take part in the collective, so that the sender is not left waiting, and drop what came."""
        self.tp_worker.model_runner.weight_updater.receive_weights_from_distributed(
            names=recv_req.names,
            dtypes=recv_req.dtypes,
            shapes=recv_req.shapes,
            group_name=recv_req.group_name,
            load_format=recv_req.load_format,
        )

    def check_weights(self, recv_req: io_struct.CheckWeightsReqInput):
        """As SGLang's, where the selectors ``draft`` and ``all`` read the teacher too; only reading reaches it."""
        self._reads_teacher = self._pairs
        try:
            return super().check_weights(recv_req)
        finally:
            self._reads_teacher = False

    def _select_runners(self, selector: str = "all") -> list[tuple[str, Any]]:
        runners = super()._select_runners(selector)
        if self._reads_teacher and selector in ("draft", "all"):
            runners.append(("draft", self.tp_worker.teacher.model_runner))
        return runners

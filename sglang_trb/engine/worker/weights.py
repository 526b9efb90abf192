"""Weight updates of the student alone, on SGLang's disk, tensor and distributed routes (scheduler side).

The main process (`tokenizer_manager.TrbTokenizerManager`) decides when an update may start and what follows a failure;
here the ranks check, before a byte is written, that nothing is in flight and that the tensors are the student's.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from sglang.srt.managers import io_struct
from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager
from sglang.srt.utils import init_custom_process_group

from sglang_trb.checkpoints.folder import checkpoint_folder
from sglang_trb.checkpoints.model_tensors import check_checkpoint, check_tensors
from sglang_trb.engine.joining import BROADCAST_SECONDS, connected_store, join_seconds
from sglang_trb.engine.update_guard import BUSY, TEACHER_CHANGED, UNTOUCHED
from sglang_trb.engine.worker.paired_worker import PairedWorker
from sglang_trb.errors import InvalidParameter

logger = logging.getLogger(__name__)

_NO_SESSION = "the update must run between begin_weight_update() and end_weight_update()"
_DISK_FORMATS = ("auto", "safetensors")
_TENSOR_FORMATS = (None, "direct", "flattened_bucket")

WATCH = "watch"
"""Action of `check_weights` for our own main process: compares some pieces of the teacher, others each time."""

_WATCHED_BYTES = {"cpu": 2**25}
"""What that takes: some 50 ms of a CPU for 32 MiB; a GPU compares `_WATCHED_BYTES_ELSEWHERE` in less."""
_WATCHED_BYTES_ELSEWHERE = 2**29


class TrbWeightUpdater(SchedulerWeightUpdaterManager):
    """Updates the student; the teacher is never among the runners that a route can write to.

    Every write goes in two steps. Each rank finds out whether it could write, and all write if all could; then they
    agree on whether all have written. So no rank serves on other weights than the rest, and the answer, which only
    one of them sends, speaks for all.
    """

    _reads_teacher = False

    @property
    def _pairs(self) -> bool:
        return isinstance(self.tp_worker, PairedWorker)

    @property
    def _student(self) -> str:
        return self.tp_worker.pair.student

    @property
    def _runner(self) -> Any:
        """What writes the student's weights on this rank."""
        return self.tp_worker.model_runner.weight_updater

    def update_weights_from_disk(self, recv_req: io_struct.UpdateWeightFromDiskReqInput):
        if not self._pairs:
            return super().update_weights_from_disk(recv_req)

        folder = Path()

        def check() -> str | None:
            nonlocal folder
            if recv_req.load_format not in _DISK_FORMATS:
                return f"load_format: got {recv_req.load_format!r}; allowed: {', '.join(_DISK_FORMATS)}"
            folder = checkpoint_folder(recv_req.model_path, download=False)  # an id from this machine's cache
            return check_checkpoint(folder, self._student)

        def write() -> tuple[bool, str]:
            recapture = recv_req.recapture_cuda_graph
            return self._runner.update_weights_from_disk(
                str(folder), recv_req.load_format, recapture_cuda_graph=recapture
            )

        problem = self._agreed(self._busy()) or self._checked(check) or self._written("disk", write, recv_req)
        return io_struct.UpdateWeightFromDiskReqOutput(**_result(problem), num_paused_requests=0)

    def init_weights_update_group(self, recv_req: io_struct.InitWeightsUpdateGroupReqInput):
        """As SGLang's, which waits for its peers for as long as torch does by default: half an hour."""
        if not self._pairs:
            return super().init_weights_update_group(recv_req)

        def join() -> None:
            limit = datetime.timedelta(seconds=join_seconds())
            rank = recv_req.rank_offset + self._runner.tp_rank
            if rank < 1:
                raise InvalidParameter("rank_offset", recv_req.rank_offset, "at least 1: rank 0 sends the weights")
            store = connected_store(recv_req.master_address, recv_req.master_port, recv_req.world_size, limit)
            group = init_custom_process_group(
                backend=recv_req.backend,
                store=torch.distributed.PrefixStore(recv_req.group_name, store),
                timeout=limit,
                world_size=recv_req.world_size,
                rank=rank,
                group_name=recv_req.group_name,
            )
            torch.distributed.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=BROADCAST_SECONDS), group)
            self._runner._model_update_group[recv_req.group_name] = group

        problem = self._checked(join)
        return io_struct.InitWeightsUpdateGroupReqOutput(**_result(problem, "Joined the process group."))

    def begin_weight_update(self, recv_req: io_struct.BeginWeightUpdateReqInput):
        if self._pairs:
            problem = self._agreed(self._busy()) or self._checked(lambda: _teacher_refusal(recv_req))
            if problem is not None:
                return io_struct.BeginWeightUpdateReqOutput(success=False, message=problem)
        return super().begin_weight_update(recv_req)

    def end_weight_update(self, recv_req: io_struct.EndWeightUpdateReqInput):
        result = super().end_weight_update(recv_req)
        if self._pairs and (problem := self._agreed(self._teacher_problem())):
            return io_struct.EndWeightUpdateReqOutput(success=False, message=problem)
        return result

    def update_weights_from_tensor(self, recv_req: io_struct.UpdateWeightsFromTensorReqInput):
        if not self._pairs:
            return super().update_weights_from_tensor(recv_req)
        payload = None

        def check() -> str | None:
            nonlocal payload
            if self._session is None:
                return _NO_SESSION
            if recv_req.load_format not in _TENSOR_FORMATS:
                return f"load_format: got {recv_req.load_format!r}; allowed: null, direct, flattened_bucket"
            if problem := _teacher_refusal(recv_req):
                return problem
            payload = self.tp_worker.deserialize_own_rank(recv_req.serialized_named_tensors)
            if isinstance(payload, dict) != (recv_req.load_format == "flattened_bucket"):
                return f"load_format: got {recv_req.load_format!r}; allowed: flattened_bucket for a bucket alone"
            return None

        def write() -> tuple[bool, str]:
            return self._runner.update_weights_from_tensor(named_tensors=payload, load_format=recv_req.load_format)

        problem = self._checked(check) or self._written("tensor", write, recv_req)
        return io_struct.UpdateWeightsFromTensorReqOutput(**_result(problem))

    def update_weights_from_distributed(self, recv_req: io_struct.UpdateWeightsFromDistributedReqInput):
        if not self._pairs:
            return super().update_weights_from_distributed(recv_req)
        received = None

        def check() -> str | None:
            if self._session is None:
                return _NO_SESSION
            counts = {len(recv_req.names), len(recv_req.dtypes), len(recv_req.shapes)}
            if len(counts) > 1:
                return f"names, dtypes, shapes: got lists of {sorted(counts)}; allowed: lists of one length"
            described = zip(recv_req.names, recv_req.shapes, strict=True)
            return _teacher_refusal(recv_req) or check_tensors(described, self._student)

        def receive() -> None:
            nonlocal received
            received = self._runner.receive_weights_from_distributed(
                names=recv_req.names,
                dtypes=recv_req.dtypes,
                shapes=recv_req.shapes,
                group_name=recv_req.group_name,
                load_format=recv_req.load_format,
            )

        def write() -> tuple[bool, str]:
            return self._runner.load_weights_from_distributed(received)

        problem = self._checked(check)
        if problem is not None and self._session is not None:
            self._checked(receive)  # the sender waits in the collective; what comes is dropped
        problem = problem or self._checked(receive) or self._written("distributed", write, recv_req)
        return io_struct.UpdateWeightsFromDistributedReqOutput(**_result(problem))

    def _busy(self) -> str | None:
        return None if self.is_fully_idle() else BUSY

    def _checked(self, check: Callable[[], str | None]) -> str | None:
        """Why no rank may write: what ``check`` returned or raised on one of them."""
        try:
            problem = check()
        except InvalidParameter as error:
            problem = str(error)
        except Exception as error:  # whatever a malformed request raises must not end the server
            logger.exception("weight update: refused")
            problem = f"{type(error).__name__}: {error}"
        return self._agreed(problem and UNTOUCHED + problem)

    def _written(self, source: str, write: Callable[[], tuple[bool, str]], recv_req: Any) -> str | None:
        """Write on every rank; why it failed on one of them. Flushes the cache, whatever was asked."""
        with self._observe_weight_load(source):
            try:
                success, message = write()
            except Exception as error:
                logger.exception("weight update: failed")
                success, message = False, f"{type(error).__name__}: {error}"
            problem = self._agreed(None if success else message)
            if self._session is None:  # the end of a session looks at the teacher too
                problem = self._agreed(self._teacher_problem()) or problem
            if problem is None:
                if self._session is not None:
                    self._session = msgspec.structs.replace(self._session, loaded_weights=True)
                recv_req.flush_cache = True
                self.flush_cache_after_weight_update(recv_req)
                self.record_weight_version_after_update(recv_req.weight_version)
            return problem

    def _agreed(self, problem: str | None) -> str | None:
        """The first rank's problem that has one; on every rank, so a barrier too."""
        problems: list[str | None] = [None] * torch.distributed.get_world_size(self.tp_cpu_group)
        torch.distributed.all_gather_object(problems, problem, group=self.tp_cpu_group)
        return next((problem for problem in problems if problem is not None), None)

    def check_weights(self, recv_req: io_struct.CheckWeightsReqInput):
        """SGLang's checksums, where the selectors ``draft`` and ``all`` read the teacher too, and our own `WATCH`.

        SGLang's other actions copy all weights, or overwrite them, the teacher's too.
        """
        if not self._pairs:
            return super().check_weights(recv_req)
        if recv_req.action == WATCH:
            limit = _WATCHED_BYTES.get(self._runner.device, _WATCHED_BYTES_ELSEWHERE)
            problem = self._agreed(self._teacher_problem(limit))
            return io_struct.CheckWeightsReqOutput(success=problem is None, message=problem or "unchanged")
        if recv_req.action != "checksum":
            problem = str(InvalidParameter("action", recv_req.action, "checksum"))
            return io_struct.CheckWeightsReqOutput(success=False, message=problem)
        self._reads_teacher = True
        try:
            return super().check_weights(recv_req)
        finally:
            self._reads_teacher = False

    def teacher_hash(self) -> str:
        """Of the teacher's weights as they were loaded, on all ranks."""
        hashes: list[str] = [""] * torch.distributed.get_world_size(self.tp_cpu_group)
        torch.distributed.all_gather_object(hashes, self.tp_worker.teacher_seal.hash, group=self.tp_cpu_group)
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    def _teacher_problem(self, limit: int | None = None) -> str | None:
        changed = self.tp_worker.teacher_seal.broken(limit)
        return changed and f"{TEACHER_CHANGED} ({changed} is not what was loaded)"

    def _select_runners(self, selector: str = "all") -> list[tuple[str, Any]]:
        runners = super()._select_runners(selector)
        if self._reads_teacher and selector in ("draft", "all"):
            runners.append(("draft", self.tp_worker.teacher.model_runner))
        return runners


def _teacher_refusal(recv_req: Any) -> str | None:
    if recv_req.selector == "draft":
        return "selector 'draft' names the teacher, whose weights never change"
    return None


def _result(problem: str | None, done: str = "Succeeded to update model weights.") -> dict[str, Any]:
    return {"success": problem is None, "message": problem or done}

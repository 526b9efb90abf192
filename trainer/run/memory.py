"""A server's account of its memory, and what was to be expected (App. C, Eq. 4 to 6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sglang_trb.checkpoints.memory import model_memory
from sglang_trb.errors import InvalidParameter
from trainer.config.run import Models
from trainer.records import PairMemory, ServerMemory

_DTYPES = {2: "bfloat16", 4: "float32"}


def server_memory(models: Models, info: Mapping[str, Any]) -> ServerMemory | None:
    """What a server's ``/trb/info`` says of its memory, beside the prediction for weights of the same element size.

    Args:
        models: of the run.
        info: as the server sent it.

    Returns:
        None where the server says nothing of its memory, or nothing that can be read.
    """
    try:
        said, ranks = info["memory"], info["tp_size"]
        allocated = PairMemory(
            student_weights=said["student_weight_bytes"],
            teacher_weights=said["teacher_weight_bytes"],
            student_kv=said["student_kv_bytes_per_token"],
            teacher_kv=said["teacher_kv_bytes_per_token"],
        )
        predicted = _predicted(models, said, ranks)
        return ServerMemory(predicted=predicted, allocated=allocated, pool_tokens=said["max_total_tokens"], ranks=ranks)
    except (KeyError, TypeError, ValueError):
        return None


def _predicted(models: Models, said: Mapping[str, Any], ranks: int) -> PairMemory | None:
    dtypes = {name: _DTYPES.get(said.get(f"{name}_element_bytes", 0), "auto") for name in ("student", "teacher")}
    try:
        student = model_memory(models.student, dtype=dtypes["student"], tensor_parallel=ranks)
        teacher = model_memory(models.teacher, dtype=dtypes["teacher"], tensor_parallel=ranks)
    except InvalidParameter:
        return None
    return PairMemory(
        student_weights=student.weight_bytes,
        teacher_weights=teacher.weight_bytes,
        student_kv=student.kv_bytes_per_token,
        teacher_kv=teacher.kv_bytes_per_token,
    )

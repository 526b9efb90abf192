"""Our HTTP routes on SGLang's server, and the keys that its update routes need."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from sglang.srt.entrypoints import http_server
from sglang.srt.runtime_context import get_exec
from sglang.srt.utils.auth import AuthLevel, auth_level

import sglang_trb
from sglang_trb.engine import plugin


def add_routes(*args: Any, **kwargs: Any) -> None:
    """Hook before ``_setup_and_run_http_server``: runs once the configuration is published, before the app starts."""
    if get_exec().kernel.sampling_backend != plugin.BACKEND:
        return
    plugin.require_in_force()
    # Not through an APIRouter: SGLang's check of keys does not see through one.
    http_server.app.add_api_route("/trb/info", info)
    http_server.app.add_api_route("/trb/abandon_weight_update", abandon_weight_update, methods=["POST"])
    # It unpickles tensors. Without an admin key, SGLang answers 403 on this level.
    http_server.update_weights_from_tensor._auth_level = AuthLevel.ADMIN_FORCE


async def info() -> dict[str, Any]:
    """What is served: models, versions, stop ids, default rule, memory plan, and whether requests are accepted."""
    state = http_server.get_global_state()
    manager = state.tokenizer_manager
    pair = manager.pair
    return {
        "student": pair.student,
        "teacher": pair.teacher,
        "student_weight_version": manager.config_value("weight_version"),
        "versions": {"sglang_trb": sglang_trb.__version__, "sglang": plugin.CHECKED_SGLANG},
        "tp_size": manager.config_value("tp_size"),
        "vocab_size": pair.vocab_size,
        "stop_ids": {
            "student": list(pair.alignment.student_ids),
            "teacher": list(pair.alignment.teacher_ids),
            "canonical": pair.alignment.canonical_id,
            "masked": list(pair.alignment.masked_ids),
        },
        "default": manager.blend_default.to_wire(),
        "memory": state.scheduler_info["trb_memory"],
        "refusing": manager.update_guard.refusal,
    }


@auth_level(AuthLevel.ADMIN_OPTIONAL)
async def abandon_weight_update() -> JSONResponse:
    """Close an update session whose writer is gone, so that another can begin; 400 when there is none."""
    success, message = await http_server.get_global_state().tokenizer_manager.abandon_weight_update()
    status = HTTPStatus.OK if success else HTTPStatus.BAD_REQUEST
    return JSONResponse({"success": success, "message": message}, status)

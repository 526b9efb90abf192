"""Our HTTP routes on SGLang's server, and what becomes of SGLang's own (`routes`)."""

from __future__ import annotations

import dataclasses
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from sglang.srt.entrypoints import http_server
from sglang.srt.entrypoints.warmup import warmup
from sglang.srt.runtime_context import get_spec

import sglang_trb
from sglang_trb.checkpoints.digest import digest_of
from sglang_trb.engine import hooks
from sglang_trb.engine.backend import blends
from sglang_trb.engine.http import request_routes, routes
from sglang_trb.engine.manager import teacher_probe
from sglang_trb.engine.touch_points.checked import CHECKED_SGLANG


def add_routes(server_args: Any, tokenizer_manager: Any, *args: Any, **kwargs: Any) -> None:
    """Hook before ``_setup_and_run_http_server``: runs once the configuration is published, before the app starts."""
    if not blends():
        return
    hooks.require_in_force()
    tokenizer_manager.owns_process = True
    digest_of(get_spec().speculative_draft_model_path)  # now, of the files that were loaded
    http_server.app.add_api_route("/trb/info", info)
    http_server.app.add_api_route("/trb/abandon_weight_update", abandon_weight_update, methods=["POST"])
    request_routes.guard(http_server.app)
    routes.enforce(http_server.app)  # after it: what bounds a body comes first
    warmup(teacher_probe.WARMUP)(teacher_probe.probe_teacher)


async def info() -> dict[str, Any]:
    """What is served: models, versions, stop ids, default rule, limits, memory, whether requests are accepted."""
    state = http_server.get_global_state()
    manager = state.tokenizer_manager
    pair = manager.pair
    return {
        "student": pair.student,
        "teacher": pair.teacher,
        "teacher_hash": state.scheduler_info["trb_teacher_hash"],
        "teacher_digest": digest_of(pair.teacher).to_wire(),
        "student_weight_version": manager.config_value("weight_version"),
        "versions": {"sglang_trb": sglang_trb.__version__, "sglang": CHECKED_SGLANG},
        "tp_size": manager.config_value("tp_size"),
        "vocab_size": pair.vocab_size,
        "stop_ids": {
            "student": list(pair.alignment.student_ids),
            "teacher": list(pair.alignment.teacher_ids),
            "canonical": pair.alignment.canonical_id,
            "masked": list(pair.alignment.masked_ids),
        },
        "default": manager.blend_default.to_wire(),
        "teacher_health": manager.teacher_health and dataclasses.asdict(manager.teacher_health),
        "limits": _limits(state.scheduler_info["max_req_input_len"]),
        "memory": state.scheduler_info["trb_memory"],
        "refusing": manager.update_guard.refusal,
    }


def _limits(max_input: int) -> dict[str, int]:
    """The longest prompt, and the longest prompt with its response, in tokens.

    SGLang's ``max_req_input_len`` is a bound that prompts stay below, 5 below ``max_req_len``: of the context or the KV
    pool, whichever is shorter. A response that would reach ``max_req_len`` is cut off without a word.
    """
    return {"prompt_tokens": max_input - 1, "total_tokens": max_input + 4}


async def abandon_weight_update() -> JSONResponse:
    """Close an update session whose writer is gone, so that another can begin; 400 when there is none."""
    success, message = await http_server.get_global_state().tokenizer_manager.abandon_weight_update()
    status = HTTPStatus.OK if success else HTTPStatus.BAD_REQUEST
    return JSONResponse({"success": success, "message": message}, status)

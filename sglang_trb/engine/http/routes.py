"""Every HTTP route of SGLang: what it can reach, who may call it, and what a blending server does with it.

The table is enforced as it stands (`enforce`), and docs/routes.md is written from it:
``python -m sglang_trb.engine.http.routes > docs/routes.md``. A route that is not in it is refused, so that a changed
SGLang opens none.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import FastAPI
from sglang.srt.utils.auth import AuthLevel, auth_level

from sglang_trb.engine.http import request_routes
from sglang_trb.engine.http.request_routes import BoundedBody, Refusal
from sglang_trb.engine.touch_points.checked import CHECKED_SGLANG

ANY, ADMIN, FORCED = AuthLevel.NORMAL, AuthLevel.ADMIN_OPTIONAL, AuthLevel.ADMIN_FORCE
"""Who may call a route: whoever has the API key, where one is set; the holder of the admin key, where one is set (else
as before); the holder of the admin key alone, so nobody on a server without one."""

AS_SGLANG = "as in SGLang"
CHECKED = "each request is checked first"
WEIGHTS = "the student alone; nothing is written unless every rank can write all of it"

NO_LORA = "adapters are not supported"
NO_HICACHE = "the hierarchical cache would bring back the student's KV alone"
NO_SPECULATION = "there is no speculative algorithm on a blending server"
NO_EXPERTS = "the recorder is off, and asking for it would end the scheduler"
NO_REMOTE = "weights leave a blending server through no route"
NO_SAVER = "the memory saver is off: the teacher's weights would not survive a release"
NO_SESSIONS = "the radix cache shares prefixes; send each prompt whole"
NO_SCALING = "expert parallelism does not scale at run time here"


@dataclasses.dataclass(frozen=True)
class Route:
    """One endpoint of SGLang.

    Attributes:
        endpoint: name of SGLang's function.
        paths: where it is, separated by spaces; environment variables can move some.
        level: who may call it.
        reach: what it can read, write or block in SGLang.
        here: what a blending server does with it, or why it refuses it.
        refused: it answers 501 with that reason, whatever is asked.
    """

    endpoint: str
    paths: str
    level: AuthLevel
    reach: str
    here: str = AS_SGLANG
    refused: bool = False


def _refused(endpoint: str, paths: str, reach: str, reason: str, level: AuthLevel = ADMIN) -> Route:
    return Route(endpoint, paths, level, reach, reason, refused=True)


def _no_request(endpoint: str, path: str, reach: str) -> Route:
    return _refused(endpoint, path, reach, request_routes.REFUSED[path], ANY)


ROUTES = (
    # Requests for tokens
    Route("generate_request", "/generate", ANY, "generates", CHECKED),
    Route("openai_v1_completions", "/v1/completions", ANY, "generates", CHECKED),
    Route("openai_v1_chat_completions", "/v1/chat/completions", ANY, "generates", CHECKED),
    Route("sagemaker_chat_completions", "/invocations", ANY, "generates", CHECKED),
    _no_request("v1_responses_request", "/v1/responses", "generates"),
    _no_request("v1_retrieve_responses", "/v1/responses/{response_id}", "reads a stored answer"),
    _no_request("v1_cancel_responses", "/v1/responses/{response_id}/cancel", "ends a request in the background"),
    Route("anthropic_v1_messages", "/v1/messages", ANY, "generates", CHECKED),
    _no_request("ollama_chat", "/api/chat", "generates"),
    _no_request("ollama_generate", "/api/generate", "generates"),
    Route("vertex_generate", "/vertex_generate", ANY, "generates", CHECKED),
    _no_request("v1_score_request", "/v1/score", "computes log-probabilities"),
    _no_request("v1_decisions_request", "/v1/decisions", "computes log-probabilities"),
    _no_request("systemone_decisions", "/v1/systemone", "computes log-probabilities"),
    _no_request("encode_request", "/encode", "computes embeddings"),
    _no_request("classify_request", "/classify", "classifies"),
    _no_request("openai_v1_embeddings", "/v1/embeddings", "computes embeddings"),
    _no_request("openai_v1_classify", "/v1/classify", "classifies"),
    _no_request("v1_rerank_request", "/v1/rerank", "ranks documents"),
    _no_request("openai_v1_audio_transcriptions", "/v1/audio/transcriptions", "reads audio"),
    _no_request("openai_v1_realtime_transcription", "/v1/realtime", "reads audio, without any key"),
    # Text and tokens
    Route("openai_v1_tokenize", "/v1/tokenize /tokenize", ANY, "tokenizes", CHECKED),
    Route("openai_v1_detokenize", "/v1/detokenize /detokenize", ANY, "detokenizes", CHECKED),
    Route("anthropic_v1_count_tokens", "/v1/messages/count_tokens", ANY, "tokenizes", CHECKED),
    Route("parse_function_call_request", "/parse_function_call", ADMIN, "parses a text; a long one stalls the server"),
    Route("separate_reasoning_request", "/separate_reasoning", ADMIN, "parses a text; a long one stalls the server"),
    # What is served, and how it is
    Route("sglang_root", "/", ANY, "nothing"),
    Route("ollama_root", "/", ANY, "nothing; instead of SGLang's when a variable asks for it"),
    Route("sagemaker_health", "/ping", ANY, "nothing"),
    Route("ready", "/ready", ANY, "reads whether requests are accepted; asks for no key"),
    Route("health_generate", "/health /health_generate", ANY, "generates a token; asks for no key"),
    Route("get_model_info", "/get_model_info", ANY, "reads paths and versions"),
    Route("model_info", "/model_info", ANY, "reads paths and versions"),
    Route("get_server_info", "/get_server_info", ANY, "reads all options, keys included", "keys are hidden"),
    Route("server_info", "/server_info", ANY, "reads all options, keys included", "keys are hidden"),
    Route("get_loads", "/v1/loads", ANY, "reads load figures"),
    Route("available_models", "/v1/models", ANY, "reads names"),
    Route("retrieve_model", "/v1/models/{model:path}", ANY, "reads names"),
    Route("ollama_tags", "/api/tags", ANY, "reads names"),
    Route("ollama_show", "/api/show", ANY, "reads names"),
    Route("openapi", "/openapi.json", ANY, "reads the description of all routes"),
    Route("swagger_ui_html", "/docs", ANY, "shows it"),
    Route("swagger_ui_redirect", "/docs/oauth2-redirect", ANY, "shows it"),
    Route("redoc_html", "/redoc", ANY, "shows it"),
    Route("info", "/trb/info", ANY, "sglang-trb's own: reads what is served"),
    # Requests in flight
    Route("abort_request", "/abort_request", ADMIN, "ends requests, all of them if asked"),
    Route("pause_generation", "/pause_generation", ADMIN, "holds all requests back"),
    Route("continue_generation", "/continue_generation", ADMIN, "lets them go on"),
    Route("flush_cache", "/flush_cache", ADMIN, "drops the cache; waits as long as asked", "waits a minute at most"),
    _refused("open_session", "/open_session", "keeps requests in memory, without end", NO_SESSIONS),
    _refused("close_session", "/close_session", "drops them", NO_SESSIONS),
    # Weights
    Route("update_weights_from_disk", "/update_weights_from_disk", ADMIN, "reads a path; writes weights", WEIGHTS),
    Route("begin_weight_update", "/begin_weight_update", ADMIN, "opens a session", "refuses generation until its end"),
    Route("end_weight_update", "/end_weight_update", ADMIN, "closes it; works on the weights", WEIGHTS),
    Route("update_weights_from_tensor", "/update_weights_from_tensor", FORCED, "unpickles; writes weights", WEIGHTS),
    Route(
        "update_weights_from_distributed", "/update_weights_from_distributed", ADMIN,
        "blocks the scheduler until its peer sends; writes weights", f"{WEIGHTS}; waits five minutes at most",
    ),
    Route(
        "init_weights_update_group", "/init_weights_update_group", ADMIN,
        "connects to an address; blocks the scheduler until its peers answer", "waits TRB_JOIN_SECONDS (15) at most",
    ),
    Route("abandon_weight_update", "/trb/abandon_weight_update", ADMIN, "sglang-trb's own: closes a session"),
    Route("destroy_weights_update_group", "/destroy_weights_update_group", ADMIN, "leaves its peers"),
    Route("get_weights_by_name", "/get_weights_by_name", ADMIN, "reads some of the student's weights"),
    Route(
        "check_weights", "/weights_checker", ADMIN, "reads, copies or overwrites all weights, the teacher's too",
        "action `checksum` alone",
    ),
    _refused(
        "update_weight_version", "/update_weight_version", "renames the weights",
        "a version changes with its weights: give weight_version to an update",
    ),
    _refused("update_weights_from_ipc", "/update_weights_from_ipc", "unpickles; writes weights", "use another route"),
    _refused("release_memory_occupation", "/release_memory_occupation", "ends the scheduler when it is busy", NO_SAVER),
    _refused("resume_memory_occupation", "/resume_memory_occupation", "ends the scheduler", NO_SAVER),
    _refused(
        "init_weights_send_group_for_remote_instance", "/init_weights_send_group_for_remote_instance",
        "connects to an address; blocks the scheduler until its peers answer", NO_REMOTE,
    ),
    _refused(
        "send_weights_to_remote_instance", "/send_weights_to_remote_instance",
        "sends weights; blocks the scheduler", NO_REMOTE,
    ),
    _refused(
        "get_remote_instance_transfer_engine_info", "/get_remote_instance_transfer_engine_info",
        "blocks the server for up to 5 s", NO_REMOTE,
    ),
    _refused(
        "remote_instance_transfer_engine_info", "/remote_instance_transfer_engine_info",
        "blocks the server for up to 5 s", NO_REMOTE,
    ),
    _refused("load_lora_adapter", "/load_lora_adapter", "reads a path; changes the student's distribution", NO_LORA),
    _refused("load_lora_adapter_from_tensors", "/load_lora_adapter_from_tensors", "unpickles", NO_LORA),
    _refused("unload_lora_adapter", "/unload_lora_adapter", "waits for requests", NO_LORA),
    # Operation
    Route("freeze_gc_async", "/freeze_gc", ADMIN, "keeps all objects from garbage collection"),
    Route("set_trace_level", "/set_trace_level", ADMIN, "sets how much is traced"),
    Route("start_profile_async", "/start_profile", FORCED, "writes to a path; slows every step"),
    Route("stop_profile_async", "/stop_profile", FORCED, "writes to a path; blocks the scheduler meanwhile"),
    _refused(
        "configure_logging", "/configure_logging", "writes requests and all options, keys included, to a path",
        "logging is configured when the server starts",
    ),
    _refused(
        "set_internal_state", "/set_internal_state", "sets options; a wrong type ends the scheduler",
        "options are fixed when the server starts",
    ),
    _refused("slow_down", "/slow_down", "makes every step sleep", "it is for SGLang's own tests"),
    _refused("_dumper_control_handler", "/dumper/{method}", "writes tensors to a path", "it is for SGLang's own tests"),
    _refused("start_expert_distribution_record_async", "/start_expert_distribution_record", "counts", NO_EXPERTS),
    _refused("stop_expert_distribution_record_async", "/stop_expert_distribution_record", "counts", NO_EXPERTS),
    _refused("dump_expert_distribution_record_async", "/dump_expert_distribution_record", "writes a file", NO_EXPERTS),
    _refused("pd_role_switch", "/pd_role_switch", "changes the server's part", "disaggregation is not supported"),
    _refused("scale_elastic_ep", "/scale_elastic_ep", "adds processes, without the admin key", NO_SCALING),
    _refused("is_scaling_elastic_ep", "/is_scaling_elastic_ep", "reads whether it does", NO_SCALING),
    _refused("add_external_corpus", "/add_external_corpus", "reads a path", NO_SPECULATION),
    _refused("remove_external_corpus", "/remove_external_corpus", "drops what was read", NO_SPECULATION),
    _refused("list_external_corpora", "/list_external_corpora", "lists what was read", NO_SPECULATION),
    _refused("clear_hicache_storage_backend", "/hicache/storage-backend/clear", "drops a cache", NO_HICACHE),
    _refused("attach_hicache_storage_backend", "/hicache/storage-backend", "reads and writes paths", NO_HICACHE),
    _refused("detach_hicache_storage_backend", "/hicache/storage-backend", "drops a cache", NO_HICACHE),
    _refused("hicache_storage_backend_status", "/hicache/storage-backend", "reads paths", NO_HICACHE),
)  # fmt: skip

_OF_ENDPOINT = {route.endpoint: route for route in ROUTES}


def enforce(app: FastAPI) -> None:
    """Give each route of SGLang's application the level of the table, and refuse what the table refuses.

    Routers that are included become plain routes: SGLang's check of keys does not see into them.
    """
    app.router.routes[:] = served = plain_routes(app)
    for served_route in served:
        name = served_route.endpoint.__name__
        route = _OF_ENDPOINT.get(name) or _refused(name, served_route.path, "", "sglang-trb does not know this route")
        auth_level(route.level)(served_route.endpoint)
        if route.refused:
            served_route.app = Refusal(f"{served_route.path} is not served by a blending server: {route.here}")
        elif route.level != FORCED:  # weights may be sent whole
            served_route.app = BoundedBody(served_route.app)


def plain_routes(app: FastAPI) -> list[Any]:
    """The application's routes, those of included routers too."""
    parts = [getattr(route, "original_router", None) or [route] for route in app.router.routes]
    return [route for part in parts for route in getattr(part, "routes", part)]


_LEVELS = {ANY: "API key", ADMIN: "admin key", FORCED: "admin key, needed"}

_PAGE = f"""# HTTP routes

Every route of SGLang {CHECKED_SGLANG}, and sglang-trb's two. A blending server enforces this table, written from
`sglang_trb/engine/http/routes.py`: `python -m sglang_trb.engine.http.routes > docs/routes.md`. A test fails when SGLang
has a route that is not in it; a server refuses such a route.

| who may call | without an API key | without an admin key |
|---|---|---|
| API key | anybody | the same |
| admin key | anybody, unless there is an admin key | whoever has the API key |
| admin key, needed | the holder of the admin key | nobody: 403 |

A wrong or missing key is answered 401, a refused route 501 with the reason. `/health`, `/ready` and `/metrics` ask for
no key. Keys are hidden in what routes answer, in the log and in the process list.

| route | who may call | in SGLang | on a blending server |
|---|---|---|---|
"""


def page() -> str:
    """docs/routes.md."""
    rows = []
    for route in ROUTES:
        paths = ", ".join(f"`{path}`" for path in route.paths.split())
        here = f"refused: {route.here}" if route.refused else route.here
        rows.append(f"| {paths} | {_LEVELS[route.level]} | {route.reach} | {here} |\n")
    return _PAGE + "".join(rows)


if __name__ == "__main__":
    print(page(), end="")

"""The table of routes is SGLang's, the page is the table, and what is not in it is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from fastapi import APIRouter, FastAPI, Request
from sglang.srt.entrypoints import http_server
from sglang.srt.utils.auth import AuthLevel

from sglang_trb.engine.http import request_routes, routes

PAGE = Path(__file__).parents[2] / "docs" / "routes.md"

NOT_HERE = {"ollama_root", "_dumper_control_handler", "info", "abandon_weight_update"}
"""Rows without a route in the application as it is imported: two depend on the environment, two are ours."""


def test_the_table_has_every_route_of_sglang() -> None:
    table = {(route.endpoint, path) for route in routes.ROUTES for path in route.paths.split()}
    served = {(route.endpoint.__name__, route.path) for route in routes.plain_routes(http_server.app)}
    assert served <= table, "routes that sglang-trb does not know"
    assert {endpoint for endpoint, _ in table - served} == NOT_HERE


def test_the_page_is_the_table() -> None:
    assert PAGE.read_text() == routes.page(), "python -m sglang_trb.engine.http.routes > docs/routes.md"


def test_levels_and_refusals_reach_every_route() -> None:
    app, router = FastAPI(), APIRouter()

    @app.post("/update_weights_from_tensor")
    async def update_weights_from_tensor() -> str:
        return "done"

    @app.get("/new")
    async def of_a_later_version() -> str:
        return "done"

    @app.websocket("/v1/realtime")
    async def openai_v1_realtime_transcription() -> None:
        raise AssertionError("nobody was asked for a key")

    @router.post("/scale_elastic_ep")
    async def scale_elastic_ep() -> str:
        return "done"

    app.include_router(router)
    routes.enforce(app)
    levels = {route.path: getattr(route.endpoint, "_auth_level", None) for route in app.router.routes}
    assert levels["/update_weights_from_tensor"] == AuthLevel.ADMIN_FORCE
    assert levels["/scale_elastic_ep"] == levels["/new"] == AuthLevel.ADMIN_OPTIONAL, "included routers too"
    assert _call(app, "POST", "/update_weights_from_tensor") == (200, b'"done"')
    assert _call(app, "POST", "/scale_elastic_ep")[0] == 501
    status, body = _call(app, "GET", "/new")
    assert (status, b"does not know this route" in body) == (501, True)
    (closed,) = _send(app, {"type": "websocket", "path": "/v1/realtime", "headers": []})
    assert (closed["type"], closed["code"]) == ("websocket.close", 1011)


def test_a_body_is_refused_once_it_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is checked, where SGLang reads it, and where it is no JSON; weights may be sent whole."""
    app, read = FastAPI(), []

    @app.post("/generate")
    async def generate_request(request: Request) -> None:
        raise AssertionError("reached")

    @app.post("/abort_request")
    async def abort_request(request: Request) -> None:
        raise AssertionError(await request.body())

    @app.post("/update_weights_from_tensor")
    async def update_weights_from_tensor(request: Request) -> None:
        read.append(len(await request.body()))

    monkeypatch.setattr(request_routes, "MAX_BODY", 100)
    monkeypatch.setattr(request_routes.metrics, "observe_rejected", lambda reason: None)
    monkeypatch.setattr(http_server, "get_global_state", Mock())
    request_routes.guard(app)
    routes.enforce(app)
    for path in ("/generate", "/abort_request"):
        status, body = _call(app, "POST", path, b"x" * 101)
        assert (status, b"at most 100 bytes" in body) == (413, True), path
    assert _call(app, "POST", "/update_weights_from_tensor", b"x" * 101)[0] == 200
    assert read == [101]
    status, body = _call(app, "POST", "/generate", b'{"text": NaN}')
    assert (status, b"an object in JSON" in body, b"File" in body) == (400, True, False), body


def _call(app: FastAPI, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": []}
    start, *rest = _send(app, scope, body)
    return start["status"], b"".join(message.get("body", b"") for message in rest)


def _send(app: FastAPI, scope: dict[str, Any], body: bytes = b"") -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app({"root_path": ""} | scope, receive, send))
    return sent

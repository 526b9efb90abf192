"""What becomes of each HTTP route that brings a request to the model: its body is checked, or it is refused.

SGLang's routes turn bodies into its own models, which coerce values and drop what they do not know. So a body is
checked as it came, before SGLang reads it.
"""

from __future__ import annotations

import dataclasses
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import ORJSONResponse
from sglang.srt.entrypoints import http_server
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sglang_trb.engine import metrics
from sglang_trb.errors import InvalidParameter
from sglang_trb.requests.anthropic import CountTokensFields, MessagesFields
from sglang_trb.requests.fields import Fields
from sglang_trb.requests.generate import GenerateFields, VertexFields
from sglang_trb.requests.openai import ChatFields, CompletionFields, DetokenizeFields, TokenizeFields

CHECKED: dict[str, type[Fields]] = {
    "/generate": GenerateFields,
    "/v1/completions": CompletionFields,
    "/v1/chat/completions": ChatFields,
    "/invocations": ChatFields,
    "/v1/messages": MessagesFields,
    "/v1/messages/count_tokens": CountTokensFields,
    "/vertex_generate": VertexFields,
    "/v1/tokenize": TokenizeFields,
    "/tokenize": TokenizeFields,
    "/v1/detokenize": DetokenizeFields,
    "/detokenize": DetokenizeFields,
}
"""Path → the description of its body."""

MAX_BODY = 64 * 2**20
"""Bytes of a body; a longer one is refused before it fills the memory."""

_NO_BLEND = "it has no place for trb_* keys or statistics: use /v1/chat/completions or /generate"
_NO_TOKENS = "a blending server generates tokens; start the model by itself for this"
_TEXT_ONLY = "the pair is text-only"

REFUSED: dict[str, str] = {
    "/v1/responses": _NO_BLEND,
    "/v1/responses/{response_id}": _NO_BLEND,
    "/v1/responses/{response_id}/cancel": _NO_BLEND,
    "/api/chat": _NO_BLEND,
    "/api/generate": _NO_BLEND,
    "/encode": _NO_TOKENS,
    "/classify": _NO_TOKENS,
    "/v1/embeddings": _NO_TOKENS,
    "/v1/classify": _NO_TOKENS,
    "/v1/score": _NO_TOKENS,
    "/v1/rerank": _NO_TOKENS,
    "/v1/decisions": _NO_TOKENS,
    "/v1/systemone": _NO_TOKENS,
    "/v1/audio/transcriptions": _TEXT_ONLY,
    "/v1/realtime": _TEXT_ONLY,
}
"""Path → why it is answered 501; `routes` refuses them, and others."""


def guard(app: FastAPI) -> None:
    """Put the checks before SGLang's routes; called once, before the app starts."""
    for route in app.routes:
        path = getattr(route, "path", "")
        if path in CHECKED:
            route.app = CheckedBody(route.app, CHECKED[path])  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Answers 501 with the reason; a websocket is closed with it."""

    reason: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1011, "reason": self.reason})
        else:
            await _error(HTTPStatus.NOT_IMPLEMENTED, self.reason)(scope, receive, send)


@dataclasses.dataclass(frozen=True)
class CheckedBody:
    """Checks a JSON body against its description, then hands it on as it came; a wrong one is answered 400."""

    app: ASGIApp
    fields: type[Fields]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await Request(scope, receive).body()
            self.fields.check(_parsed(body), http_server.get_global_state().tokenizer_manager.facts)
        except ClientDisconnect:
            return
        except InvalidParameter as refusal:
            metrics.observe_rejected("invalid")
            await _error(HTTPStatus.BAD_REQUEST, str(refusal))(scope, receive, send)
            return
        await self.app(scope, _again(body, receive), send)


@dataclasses.dataclass(frozen=True)
class BoundedBody:
    """Answers 413 to a body of more than `MAX_BODY` bytes, without reading the rest of it."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        came = 0

        async def bounded() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > MAX_BODY:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body: allowed: at most {MAX_BODY} bytes")
            return message

        await self.app(scope, bounded, send)


def _parsed(body: bytes) -> Any:
    """As SGLang's routes parse it."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        start = body[:100].decode(errors="replace")
        raise InvalidParameter("body", start, f"an object in JSON, in UTF-8 ({error})") from None


def _again(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body once more, then waits for what the client does next."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _error(status: HTTPStatus, message: str) -> ORJSONResponse:
    """An error that clients of SGLang's own routes and of OpenAI's read alike."""
    detail: dict[str, Any] = {"object": "error", "message": message, "type": status.phrase, "param": None}
    detail["code"] = status.value
    return ORJSONResponse(detail | {"error": detail}, status)

"""``choices[i].trb`` in the OpenAI routes: SGLang builds the answers, we add one field to each finished choice."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import orjson
from fastapi import Response
from pydantic import BaseModel
from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat
from sglang.srt.entrypoints.openai.serving_completions import OpenAIServingCompletion

_EVENT = "data: "


class TrbServingCompletion(OpenAIServingCompletion):
    """``/v1/completions`` with ``choices[i].trb``."""

    def _build_completion_response(self, request: Any, ret: list[dict], created: int) -> Any:
        return _with_trb(super()._build_completion_response(request, ret, created), ret)

    async def _generate_completion_stream(self, adapted_request, request, raw_request) -> AsyncGenerator[str, None]:
        events = super()._generate_completion_stream(adapted_request, request, raw_request)
        async for event in _events_with_trb(events, adapted_request):
            yield event


class TrbServingChat(OpenAIServingChat):
    """``/v1/chat/completions`` with ``choices[i].trb``."""

    def _build_chat_response(self, request: Any, ret: list[dict], created: int) -> Any:
        return _with_trb(super()._build_chat_response(request, ret, created), ret)

    async def _generate_chat_stream(self, adapted_request, request, raw_request) -> AsyncGenerator[str, None]:
        events = super()._generate_chat_stream(adapted_request, request, raw_request)
        async for event in _events_with_trb(events, adapted_request):
            yield event


def _with_trb(response: Any, ret: list[dict]) -> Any:
    """Add each choice's statistics; a response that carries none, or an error, passes unchanged."""
    results = [item["meta_info"].get("trb") for item in ret]
    if not isinstance(response, BaseModel) or all(result is None for result in results):
        return response
    body = response.model_dump()
    for choice, result in zip(body["choices"], results, strict=True):
        if result is not None:
            choice["trb"] = result
    return Response(orjson.dumps(body), media_type="application/json")


async def _events_with_trb(events: AsyncIterator[str], adapted_request: Any) -> AsyncGenerator[str, None]:
    """Add each choice's statistics to the event that carries its finish reason, the choice's last."""
    sent: set[int] = set()
    async for event in events:
        results = getattr(adapted_request, "trb_results", {})
        yield _event_with_trb(event, results, sent) if len(results) > len(sent) else event


def _event_with_trb(event: str, results: dict[int, dict], sent: set[int]) -> str:
    payload = event.removeprefix(_EVENT).strip()
    if not event.startswith(_EVENT) or not payload.startswith("{"):
        return event
    body = json.loads(payload)
    changed = False
    for choice in body.get("choices") or ():
        if choice.get("finish_reason") is not None and choice["index"] in results.keys() - sent:
            choice["trb"] = results[choice["index"]]
            sent.add(choice["index"])
            changed = True
    return f"{_EVENT}{json.dumps(body, ensure_ascii=False)}\n\n" if changed else event

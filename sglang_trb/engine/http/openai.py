"""``choices[i].trb`` in the OpenAI routes: SGLang builds the answers, we add one field to each finished choice.

The answers stay what SGLang's own handlers return, with a field more: other adapters (``anthropic.py``) build on them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import HTTPException
from pydantic import model_serializer
from sglang.srt.entrypoints.openai.protocol import (
    ChatCompletionResponse,
    ChatCompletionResponseChoice,
    CompletionResponse,
    CompletionResponseChoice,
)
from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat
from sglang.srt.entrypoints.openai.serving_completions import OpenAIServingCompletion

_EVENT = "data: "


class TrbCompletionChoice(CompletionResponseChoice):
    """A choice with its statistics; without any, it is written as SGLang's own."""

    trb: dict[str, Any] | None = None

    @model_serializer(mode="wrap")
    def _serialize(self, handler: Any) -> dict[str, Any]:
        return _without_absent_trb(super()._serialize(handler))


class TrbCompletionResponse(CompletionResponse):
    """Keeps ``trb`` in its choices."""

    choices: list[TrbCompletionChoice]


class TrbChatChoice(ChatCompletionResponseChoice):
    """A choice with its statistics; without any, it is written as SGLang's own."""

    trb: dict[str, Any] | None = None

    @model_serializer(mode="wrap")
    def _serialize(self, handler: Any) -> dict[str, Any]:
        return _without_absent_trb(super()._serialize(handler))


class TrbChatResponse(ChatCompletionResponse):
    """Keeps ``trb`` in its choices."""

    choices: list[TrbChatChoice]


def _without_absent_trb(choice: dict[str, Any]) -> dict[str, Any]:
    if choice["trb"] is None:
        del choice["trb"]
    return choice


class TrbServingCompletion(OpenAIServingCompletion):
    """``/v1/completions`` with ``choices[i].trb``."""

    def _build_completion_response(self, request: Any, ret: list[dict], created: int) -> Any:
        response = super()._build_completion_response(request, ret, created)
        return _with_trb(response, ret, CompletionResponse, TrbCompletionResponse, TrbCompletionChoice)

    async def _generate_completion_stream(self, adapted_request, request, raw_request) -> AsyncGenerator[str, None]:
        events = super()._generate_completion_stream(adapted_request, request, raw_request)
        async for event in _events_with_trb(events, adapted_request):
            yield event


class TrbServingChat(OpenAIServingChat):
    """``/v1/chat/completions`` with ``choices[i].trb``."""

    def _build_chat_response(self, request: Any, ret: list[dict], created: int) -> Any:
        response = super()._build_chat_response(request, ret, created)
        return _with_trb(response, ret, ChatCompletionResponse, TrbChatResponse, TrbChatChoice)

    async def _handle_non_streaming_request(self, adapted_request, request, raw_request) -> Any:
        try:
            return await super()._handle_non_streaming_request(adapted_request, request, raw_request)
        except HTTPException as error:  # 503 while weights are updated; SGLang's Anthropic route would make it a 500
            return self.create_error_response(error.detail, str(error.status_code), error.status_code)

    async def _generate_chat_stream(self, adapted_request, request, raw_request) -> AsyncGenerator[str, None]:
        events = super()._generate_chat_stream(adapted_request, request, raw_request)
        async for event in _events_with_trb(events, adapted_request):
            yield event


def _with_trb(response: Any, ret: list[dict], plain: Any, with_trb: Any, choice: Any) -> Any:
    """Add each choice's statistics; a response that carries none, or an error, passes unchanged."""
    results = [item["meta_info"].get("trb") for item in ret]
    if not isinstance(response, plain) or all(result is None for result in results):
        return response
    choices = [
        choice.model_construct(**dict(own), trb=result) for own, result in zip(response.choices, results, strict=True)
    ]
    return with_trb.model_construct(**dict(response) | {"choices": choices})


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

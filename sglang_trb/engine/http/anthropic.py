"""``/v1/messages``: SGLang's adapter over the chat route, with ``custom_params`` in and ``trb`` out.

The request takes ``custom_params`` at its top level, as the OpenAI routes do; the answer carries ``trb`` at its top
level, a stream in its ``message_delta`` event. The Anthropic clients send and keep such extra fields.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from sglang.srt.entrypoints.anthropic.protocol import AnthropicMessagesRequest, AnthropicMessagesResponse
from sglang.srt.entrypoints.anthropic.serving import AnthropicServing

_MESSAGE_DELTA = "event: message_delta\ndata: "


class TrbMessagesRequest(AnthropicMessagesRequest):
    """Anthropic's request with ``custom_params``."""

    custom_params: Any = None  # checked with the generation request that is made of it


class TrbMessagesResponse(AnthropicMessagesResponse):
    """Anthropic's message with the ``trb`` object."""

    trb: dict[str, Any] | None = None  # absent fields are not written


class TrbAnthropicServing(AnthropicServing):
    """Passes both through."""

    async def handle_messages(self, request: Any, raw_request: Any) -> Any:
        body = await raw_request.json()  # read before; SGLang's model drops what it does not know
        request = TrbMessagesRequest.model_construct(**dict(request), custom_params=body.get("custom_params"))
        return await super().handle_messages(request, raw_request)

    def _convert_to_chat_completion_request(self, anthropic_request: Any) -> Any:
        chat_request = super()._convert_to_chat_completion_request(anthropic_request)
        given = getattr(anthropic_request, "custom_params", None)
        if given is not None:
            chat_request.custom_params = given
        return chat_request

    def _convert_response(self, response: Any) -> Any:
        message = super()._convert_response(response)
        trb = getattr(response.choices[0], "trb", None) if response.choices else None
        return TrbMessagesResponse.model_construct(**dict(message), trb=trb)

    async def _generate_anthropic_stream(self, adapted_request: Any, *args: Any) -> AsyncGenerator[str, None]:
        async for event in super()._generate_anthropic_stream(adapted_request, *args):
            results = getattr(adapted_request, "trb_results", {})
            if results and event.startswith(_MESSAGE_DELTA):
                body = json.loads(event.removeprefix(_MESSAGE_DELTA))
                event = f"{_MESSAGE_DELTA}{json.dumps(body | {'trb': results[0]}, ensure_ascii=False)}\n\n"
            yield event

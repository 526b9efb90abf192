"""Every field of the Anthropic bodies that SGLang reads: ``/v1/messages`` and its ``count_tokens``.

What the messages themselves hold is checked by SGLang's models of them, which are strict there.
"""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import MinLen

from sglang_trb.requests.field_types import CustomParams, Flag, Room, Stops, Temperature, TopK, TopP
from sglang_trb.requests.fields import Allowed, Fields
from sglang_trb.requests.openai import AtLeastOne, Ignored, Model

Object = Annotated[dict[str, Any], Allowed("an object")]


class CountTokensFields(Fields):
    """``/v1/messages/count_tokens``: SGLang's ``AnthropicCountTokensRequest``."""

    model: Model
    messages: Annotated[list[dict[str, Any]], MinLen(1), Room, Allowed("a list of messages, at least one")]
    system: Annotated[str | list[dict[str, Any]], Room, Allowed("a text or a list of text blocks")] | None = None
    thinking: Object | None = None
    tool_choice: Object | None = None
    tools: Annotated[list[dict[str, Any]], Room, Allowed("a list of tools")] | None = None
    output_config: Object | None = None
    betas: Ignored = None


class MessagesFields(CountTokensFields):
    """``/v1/messages``: SGLang's ``AnthropicMessagesRequest``, and ``custom_params``."""

    max_tokens: AtLeastOne
    stream: Flag | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    stop_sequences: Stops | None = None
    custom_params: CustomParams | None = None

    metadata: Ignored = None
    cache_control: Ignored = None
    container: Ignored = None
    context_management: Ignored = None
    inference_geo: Ignored = None
    mcp_servers: Ignored = None
    service_tier: Ignored = None

"""The objects inside OpenAI bodies: messages, tools, response formats; see `sglang_trb.requests.openai`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Interval, MaxLen
from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo

from sglang_trb.errors import InvalidParameter
from sglang_trb.requests.field_types import Flag, Room, facts, refuse
from sglang_trb.requests.fields import Allowed, Fields, Many

Ignored = Annotated[Any, Allowed("anything: it is ignored")]
Model = Annotated[str, MaxLen(1024), Allowed("a model's name")]
AtLeastOne = Annotated[int, Interval(ge=1, le=2**31 - 1), Allowed("an integer from 1 to 2147483647")]
Effort = Annotated[
    Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | Annotated[float, Interval(ge=0, le=0.99)],
    Allowed("none, minimal, low, medium, high, xhigh, max, or a number from 0 to 0.99"),
]

_TEMPLATE_ARGUMENTS = frozenset(
    "conversation tools documents chat_template add_generation_prompt continue_final_message tokenize padding "
    "truncation max_length return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs messages".split()
)


def _template_variables(values: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    if taken := sorted(_TEMPLATE_ARGUMENTS & values.keys()):
        raise refuse(info, taken, "variables of the chat template, not arguments of the tokenizer")
    return values


TemplateVariables = Annotated[
    dict[str, Any], AfterValidator(_template_variables), Room, Allowed("an object of template variables")
]


def _constraint(value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    if value.get("type") != "text" and not facts(info).has_grammar:
        raise refuse(info, value, f"type text: the server runs with --grammar-backend {facts(info).grammar_backend}")
    ResponseFormat.check(value, facts(info))
    return value


Constraint = Annotated[dict[str, Any], AfterValidator(_constraint), Allowed("an object with a type")]


class _Open(Fields):
    """An object whose known fields are typed; others pass, for clients send answers back as they came."""

    model_config = ConfigDict(extra="allow")


class _Schema(_Open):
    title: str = ""
    properties: dict[str, dict[str, Any]] = Field(default_factory=dict)


class _NamedSchema(_Open):
    name: str
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class ResponseFormat(_Open):
    """``response_format``."""

    type: Annotated[Literal["text", "json_object", "json_schema", "structural_tag"], Allowed("a type of format")]
    json_schema: _NamedSchema | None = None
    schema_: Annotated[_Schema | None, Field(alias="schema")] = None


class StreamOptions(Fields):
    """``stream_options``."""

    include_usage: Flag | None = None
    continuous_usage_stats: Flag | None = None
    include_obfuscation: Ignored = None


class _Function(_Open):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Open):
    """An entry of ``tools``."""

    type: str = "function"
    function: _Function


class _CalledFunction(_Open):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class ToolCall(_Open):
    """An entry of a message's ``tool_calls``."""

    id: str | None = None
    index: int | None = None
    type: Literal["function"] = "function"
    function: _CalledFunction


class _ChosenName(_Open):
    name: str


class ToolChoice(_Open):
    """``tool_choice``, where it is an object."""

    type: Literal["function"] = "function"
    function: _ChosenName


Choice = Annotated[Literal["auto", "required", "none"] | ToolChoice, Allowed("auto, required, none, or a function")]


def _text_part(kind: str) -> str:
    if kind not in ("text", "thinking", "reasoning", "tool_reference"):
        raise InvalidParameter("messages", kind, "text, thinking and reasoning parts: the pair is text-only")
    return kind


class Part(_Open):
    """A part of a message's content."""

    type: Annotated[str, AfterValidator(_text_part)]
    text: str | None = None
    thinking: str | None = None


class Message(_Open):
    """An entry of ``messages``."""

    role: str
    content: str | Many[Part] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    tool_calls: Many[ToolCall] | None = None
    tools: Many[Tool] | None = None

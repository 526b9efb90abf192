"""Every field of the OpenAI bodies that SGLang reads: ``/v1/completions`` and ``/v1/chat/completions``.

SGLang's own models of these bodies coerce ("0.5", true) and ignore what they do not know. These come before them.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import MinLen
from pydantic import ConfigDict, ValidationInfo, model_validator

from sglang_trb.errors import InvalidParameter
from sglang_trb.requests.field_types import (
    Adapter,
    Capture,
    CustomParams,
    Disaggregation,
    Few,
    Flag,
    Grammar,
    HiddenStates,
    Ids,
    LogitBias,
    Logprobs,
    Mask,
    Media,
    MinP,
    Name,
    NoMedia,
    Patterns,
    Penalty,
    Priority,
    PromptIds,
    RepetitionPenalty,
    RequestId,
    Room,
    Samples,
    Seed,
    Session,
    StopIds,
    Stops,
    Temperature,
    Text,
    Tokens,
    TopK,
    TopP,
    Unpickled,
    facts,
)
from sglang_trb.requests.fields import Allowed, Fields, Many, PerPrompt
from sglang_trb.requests.generate import check_length, check_samples
from sglang_trb.requests.openai_objects import (
    AtLeastOne,
    Choice,
    Constraint,
    Effort,
    Ignored,
    Message,
    Model,
    StreamOptions,
    TemplateVariables,
    Tool,
)

_PROMPT = Allowed("a text, ids of the vocabulary, or a list of texts or of such lists; not empty")


class _OpenAIFields(Fields):
    """What both bodies have in common."""

    HOMES: ClassVar[dict[str, str]] = {"continuous_usage_stats": "stream_options", "include_usage": "stream_options"}

    model: Model = ""
    n: Samples = 1
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    custom_params: CustomParams | None = None

    min_tokens: Tokens = 0
    stop: Stops | None = None
    stop_token_ids: StopIds | None = None
    stop_regex: Patterns | None = None
    ignore_eos: Flag = False
    no_stop_trim: Flag = False
    skip_special_tokens: Flag = True
    response_format: Constraint | None = None
    regex: Grammar | None = None
    ebnf: Grammar | None = None

    stream: Flag = False
    stream_options: Annotated[StreamOptions, Allowed("an object: include_usage, continuous_usage_stats")] | None = None
    return_hidden_states: HiddenStates = False
    return_cached_tokens_details: Flag = False
    return_spec_tokens_details: Flag = False
    return_token_ids: Flag = False

    rid: PerPrompt[RequestId] = None
    extra_key: PerPrompt[Name] = None
    cache_salt: PerPrompt[Name] = None
    priority: Priority | None = None
    session_id: Name | None = None
    routed_dp_rank: Tokens | None = None
    data_parallel_rank: Tokens | None = None

    lora_path: Adapter = None
    custom_logit_processor: Unpickled = None
    session_params: Session = None
    images_config: Media = None
    return_routed_experts: Capture = None
    routed_experts_start_len: Annotated[Literal[0], Allowed("0: a blending server does not record them")] = 0
    bootstrap_host: Disaggregation = None
    bootstrap_port: Disaggregation = None
    bootstrap_room: Disaggregation = None
    disagg_prefill_dp_rank: Disaggregation = None

    user: Annotated[str, Allowed("a text")] | None = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    verbosity: Ignored = None


class CompletionFields(_OpenAIFields):
    """``/v1/completions``: SGLang's ``CompletionRequest``."""

    prompt: Annotated[Text | Many[Text] | PromptIds | Many[PromptIds], MinLen(1), _PROMPT]
    max_tokens: AtLeastOne = 16
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    top_k: TopK = -1
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    logprobs: Logprobs | None = None
    echo: Flag = False
    suffix: Text | None = None
    best_of: Annotated[Literal[1], Allowed("1: n answers are drawn and all come back")] | None = None
    json_schema: Grammar | None = None
    custom_labels: Ignored = None

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        batch = isinstance(self.prompt, list) and not isinstance(self.prompt[0] if self.prompt else 0, int)
        check_shapes(self, len(self.prompt) if batch else None)
        _check_tokens(self.min_tokens, self.max_tokens)
        return self


class ChatFields(_OpenAIFields):
    """``/v1/chat/completions``: SGLang's ``ChatCompletionRequest``."""

    messages: Annotated[Many[Message], MinLen(1), Room, Allowed("a list of messages, at least one")]
    max_tokens: AtLeastOne | None = None
    max_completion_tokens: AtLeastOne | None = None
    logprobs: Flag = False
    top_logprobs: Logprobs | None = None
    input_ids: PromptIds | None = None

    tools: Annotated[Many[Tool], Room, Allowed("a list of tools, each with a function")] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: Flag = True
    reasoning_effort: Effort | None = None
    reasoning: Annotated[dict[str, bool | str | float | None], Few, Allowed("an object: effort, enabled")] | None = None
    chat_template_kwargs: TemplateVariables | None = None
    continue_final_message: Flag = False
    separate_reasoning: Flag = True
    stream_reasoning: Flag = True
    task: (
        Annotated[Literal["action", "query", "authority", "domain", "title", "read_url"], Allowed("a DeepSeek-V4 task")]
        | None
    ) = None
    return_prompt_token_ids: Flag = False
    return_meta_info: Flag = False
    return_input_ids_in_sglext: Flag = False
    return_output_ids_in_sglext: Flag = False

    return_sampling_mask: Mask = None
    sampling_logprobs_mode: Mask = None
    max_dynamic_patch: Media = None
    min_dynamic_patch: Media = None
    use_audio_in_video: NoMedia = None
    video_config: Media = None

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        check_shapes(self, None)
        _check_tokens(self.min_tokens, self.max_completion_tokens or self.max_tokens)
        return self


class TokenizeFields(Fields):
    """``/v1/tokenize``: a text, or messages and what goes with them as in `ChatFields`."""

    model_config = ConfigDict(extra="allow")

    prompt: Annotated[Text | Many[Text], MinLen(1), Allowed("a text or a list of texts, not empty")] | None = None
    messages: Any = None
    add_special_tokens: Flag = True

    @model_validator(mode="after")
    def _one(self, info: ValidationInfo) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidParameter("prompt, messages", "both" if self.prompt else None, "exactly one of them")
        others = {"messages": self.messages} | (self.model_extra or {})
        if self.messages is not None:
            ChatFields.check(others, facts(info))
        elif unknown := [name for name in self.model_extra or () if name not in ChatFields.model_fields]:
            raise InvalidParameter(unknown[0], others[unknown[0]], "known fields only")
        return self


class DetokenizeFields(Fields):
    """``/v1/detokenize``."""

    model: Model = ""
    tokens: Annotated[Ids | Many[Ids], Allowed("a list of ids of the vocabulary, or a list of such lists")]
    skip_special_tokens: Flag = True


def check_shapes(fields: _OpenAIFields, prompts: int | None) -> None:
    """Raise unless lists fit the number of prompts (None: one, not a batch) and n is within bounds."""
    for name in ("rid", "extra_key", "cache_salt"):
        check_length(name, getattr(fields, name), prompts)
    check_samples({fields.n}, prompts)


def _check_tokens(least: int, most: int | None) -> None:
    if most is not None and least > most:
        raise InvalidParameter("min_tokens", least, f"at most max_tokens, {most}")

"""Every field of SGLang's generation requests: its type, its range, and what a blending server refuses.

`GenerateFields` describes ``GenerateReqInput`` (the body of ``/generate``, and what every other route turns into),
`SamplingFields` its ``sampling_params``. `sglang_trb.requests.openai` describes the OpenAI bodies with the same types.
A test compares them with SGLang's classes, so that a new field is known here or refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, ValidationInfo, model_validator

from sglang_trb.errors import InvalidParameter
from sglang_trb.requests.field_types import (
    Adapter,
    Beams,
    Capture,
    CustomParams,
    Disaggregation,
    Embeddings,
    Flag,
    Grammar,
    Headers,
    HiddenStates,
    Internal,
    InternalFlag,
    Labels,
    LogitBias,
    LogprobIds,
    Logprobs,
    LogprobStart,
    Mask,
    Media,
    MinP,
    Name,
    NoMedia,
    NoModalities,
    Patterns,
    Penalty,
    Priority,
    PromptIds,
    RepetitionPenalty,
    RequestId,
    Samples,
    Seconds,
    Seed,
    Session,
    StopIds,
    Stops,
    StreamInterval,
    Temperature,
    Text,
    Tokens,
    TopK,
    TopP,
    Unpickled,
    facts,
    refuse,
)
from sglang_trb.requests.fields import Allowed, Fields, Many, PerPrompt

MAX_SEQUENCES = 16_384
"""Most sequences of one request: prompts times n."""


class SamplingFields(Fields):
    """``sampling_params``: SGLang's ``SamplingParams``."""

    max_new_tokens: Tokens | None = None
    min_new_tokens: Tokens | None = None
    n: Samples = 1
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: LogitBias | None = None
    sampling_seed: Seed | None = None

    stop: Stops | None = None
    stop_token_ids: StopIds | None = None
    stop_regex: Patterns | None = None
    ignore_eos: Flag | None = None
    no_stop_trim: Flag | None = None
    skip_special_tokens: Flag | None = None
    spaces_between_special_tokens: Flag | None = None
    stream_interval: StreamInterval | None = None

    json_schema: Grammar | None = None
    regex: Grammar | None = None
    ebnf: Grammar | None = None
    ebnf_full_assistant: Flag | None = None
    structural_tag: Grammar | None = None

    custom_params: CustomParams | None = None

    beam_width: Beams = None
    stop_strs: Internal = None
    stop_regex_strs: Internal = None
    stop_str_max_len: Internal = None
    stop_regex_max_len: Internal = None
    is_normalized: InternalFlag = None

    @model_validator(mode="after")
    def _enough_tokens(self) -> Self:
        most, least = self.max_new_tokens, self.min_new_tokens or 0
        if most is not None and least > most:
            raise InvalidParameter("min_new_tokens", least, f"at most max_new_tokens, {most}")
        return self


def _each_checked(value: Any, info: ValidationInfo) -> Any:
    for one in _listed(value):
        if not isinstance(one, dict):
            raise refuse(info, one, "an object, or a list with one for each prompt")
        SamplingFields.check(one, facts(info))
    return value


class GenerateFields(Fields):
    """The body of ``/generate``: SGLang's ``GenerateReqInput``."""

    BLEND_HOME: ClassVar[str] = "sampling_params.custom_params"
    HOMES: ClassVar[dict[str, str]] = dict.fromkeys(SamplingFields.model_fields, "sampling_params")

    text: PerPrompt[Text] = None
    input_ids: PerPrompt[PromptIds] = None
    sampling_params: Annotated[Any, AfterValidator(_each_checked)] = None
    rid: PerPrompt[RequestId] = None
    stream: Flag = False
    priority: Priority | None = None
    extra_key: PerPrompt[Name] = None
    cache_salt: PerPrompt[Name] = None

    return_logprob: PerPrompt[Flag] = None
    logprob_start_len: PerPrompt[LogprobStart] = None
    top_logprobs_num: PerPrompt[Logprobs] = None
    token_ids_logprob: PerPrompt[LogprobIds] = None
    return_text_in_logprobs: Flag = False
    return_flat_raw_top_logprobs: Flag = False
    return_flat_raw_top_logprobs_b64: Flag = False
    return_prompt_token_ids: Flag = False
    return_hidden_states: PerPrompt[HiddenStates] = False
    return_entropy: Flag = False

    require_reasoning: Flag = False
    max_thinking_tokens: Tokens | None = None
    background: Flag = False
    log_metrics: Flag = True
    no_logs: Flag = False
    custom_labels: Labels | None = None
    routing_key: Name | None = None
    conversation_id: Name | None = None
    session_id: Name | None = None
    routed_dp_rank: Tokens | None = None
    data_parallel_rank: Tokens | None = None
    external_trace_header: Headers | None = None
    received_time: Seconds | None = None

    input_embeds: Embeddings = None
    positional_embed_overrides: Embeddings = None
    image_data: Media = None
    video_data: Media = None
    audio_data: Media = None
    mm_hashes: Media = None
    mm_content_hashes: Media = None
    use_audio_in_video: NoMedia = None
    video_config: Media = None
    modalities: NoModalities = None
    need_wait_for_mm_inputs: Media = None
    num_items_assigned: Media = None
    encoder_urls: Media = None
    max_dynamic_patch: Media = None
    min_dynamic_patch: Media = None
    image_max_dynamic_patch: Media = None
    video_max_dynamic_patch: Media = None
    images_config: Media = None
    lora_path: Adapter = None
    lora_id: Adapter = None
    custom_logit_processor: Unpickled = None
    return_sampling_mask: Mask = None
    sampling_logprobs_mode: Mask = None
    session_params: Session = None
    return_routed_experts: Capture = None
    routed_experts_start_len: Annotated[Literal[0], Allowed("0: a blending server does not record them")] = 0
    return_indexer_topk: Capture = None
    bootstrap_host: Disaggregation = None
    bootstrap_port: Disaggregation = None
    bootstrap_room: Disaggregation = None
    bootstrap_pair_key: Disaggregation = None
    decode_tp_size: Disaggregation = None
    disagg_prefill_dp_rank: Disaggregation = None
    kv_hints: Disaggregation = None
    http_worker_ipc: Internal = None
    return_bytes: InternalFlag = None
    multi_item_delimiter_indices: Internal = None
    token_indices_to_pool: Internal = None

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        if (self.text is None) == (self.input_ids is None):
            both = "both" if self.text is not None else None
            raise InvalidParameter("text, input_ids", both, "exactly one of them")
        many = self._prompts()
        for name in PER_PROMPT:
            check_length(name, getattr(self, name), many)
        check_samples(self._samples(), many)
        if self.return_flat_raw_top_logprobs_b64 and not self.return_flat_raw_top_logprobs:
            raise InvalidParameter("return_flat_raw_top_logprobs_b64", True, "only with return_flat_raw_top_logprobs")
        return self

    def _prompts(self) -> int | None:
        """How many prompts a batch has; None for a request of one."""
        if isinstance(self.text, list):
            return len(self.text)
        return len(self.input_ids) if self.input_ids and isinstance(self.input_ids[0], list) else None

    def _samples(self) -> set[int]:
        return {params.get("n", 1) for params in _listed(self.sampling_params)} or {1}

    def request_ids(self) -> list[str]:
        """The ids that the request brings for its sequences; SGLang numbers those of a batch."""
        if not isinstance(self.rid, str):
            return self.rid or []
        prompts, (samples,) = self._prompts(), self._samples()
        if prompts is None and samples == 1:
            return [self.rid]
        return [f"{self.rid}_{i}" for i in range((prompts or 1) * samples)]


PER_PROMPT = (
    *("text", "input_ids", "sampling_params", "rid", "extra_key", "cache_salt", "return_logprob"),
    *("logprob_start_len", "top_logprobs_num", "token_ids_logprob", "return_hidden_states"),
)
"""The fields that may be a list with one value for each prompt."""


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def check_length(name: str, value: Any, prompts: int | None) -> None:
    """Raise unless a list has as many items as there are prompts; ids are lists themselves."""
    nested = name in ("input_ids", "token_ids_logprob")
    if not isinstance(value, list) or (nested and not (value and isinstance(value[0], list))):
        return
    if prompts is None:
        raise InvalidParameter(name, value, "no list: the request has one prompt")
    if not value or len(value) != prompts:
        raise InvalidParameter(name, value, f"one for each prompt: a list of {max(prompts, 1)}")


def check_samples(counts: set[int], prompts: int | None) -> None:
    """Raise unless all prompts have one n, within `MAX_SEQUENCES`."""
    if len(counts) > 1:
        raise InvalidParameter("n", sorted(counts), "the same for all prompts")
    most = MAX_SEQUENCES // (prompts or 1)
    if max(counts) > most:
        raise InvalidParameter("n", max(counts), f"at most {MAX_SEQUENCES} sequences of one request")


def _each_generated(instances: list[dict[str, Any]], info: ValidationInfo) -> list[dict[str, Any]]:
    kinds = {name for instance in instances for name in instance}
    if len(kinds) > 1 or not kinds <= {"text", "input_ids"}:
        raise refuse(info, sorted(kinds), "objects that all have text, or all have input_ids")
    return instances


class VertexFields(Fields):
    """``/vertex_generate``: prompts apart from the fields that they share."""

    BLEND_HOME: ClassVar[str] = "parameters.sampling_params.custom_params"
    HOMES: ClassVar[dict[str, str]] = dict.fromkeys(GenerateFields.model_fields, "parameters") | GenerateFields.HOMES

    instances: Annotated[Many[dict[str, Any]], AfterValidator(_each_generated), Allowed("a list of objects with text")]
    parameters: Annotated[dict[str, Any], Allowed("an object")] | None = None

    @model_validator(mode="after")
    def _as_generate(self, info: ValidationInfo) -> Self:
        for name in ("text", "input_ids", "input_embeds", "image_data"):
            if name in (self.parameters or {}):
                raise InvalidParameter(name, "a value", "inside instances only")
        if self.instances:
            (name,) = self.instances[0] or {"text": None}
            prompts = {name: [instance.get(name) for instance in self.instances]}
            GenerateFields.check((self.parameters or {}) | prompts, facts(info))
        return self

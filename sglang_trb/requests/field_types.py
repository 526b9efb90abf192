"""The types that the fields of requests have: strict, with their ranges, and in words what is allowed."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from annotated_types import Interval, Len, MaxLen, MinLen
from pydantic import AfterValidator, AllowInfNan, BeforeValidator, ValidationInfo

from sglang_trb.errors import InvalidParameter
from sglang_trb.requests import stop_patterns
from sglang_trb.requests.fields import Allowed, FirstError, ServerFacts
from sglang_trb.wire.params import MAX_TEMPERATURE, MIN_TEMPERATURE, BlendParams

MAX_SAMPLES = 1024
"""Largest n of one request."""

MAX_LOGPROBS = 128
"""Most log-probabilities at one position: all positions of a prompt may have that many."""

MAX_STOPS = 32
MAX_STOP_IDS = 1024
MAX_NAME = 1024
MAX_GRAMMAR = 1 << 16
INT32_MAX = 2**31 - 1

GREEDY_BELOW = 1e-6
"""SGLang takes a temperature below this for 0."""

MAX_BIAS = 1e30
"""Largest bias; one of -MAX_BIAS or less is minus infinity, which JSON cannot say."""

CHARACTERS_PER_TOKEN = 256
"""A text of more characters than this for each token of the context is refused before it is tokenized."""

HEALTH_CHECK = "HEALTH_CHECK"
"""How SGLang's own probes' request ids begin; it drops the answers to them."""


def facts(info: ValidationInfo) -> ServerFacts:
    """What the check knows of the server."""
    assert isinstance(info.context, ServerFacts)
    return info.context


def refuse(info: ValidationInfo, value: object, allowed: str) -> InvalidParameter:
    """The error of a field: its name, what came, what is allowed."""
    assert info.field_name is not None
    return InvalidParameter(info.field_name, value, allowed)


# Numbers

_TEMPERATURE = f"0 (or below {GREEDY_BELOW}: greedy), or a number from {MIN_TEMPERATURE} to {MAX_TEMPERATURE}"
_TOP_K = "-1 (all), or an integer from 1 to 2147483647"


def _temperature(value: float, info: ValidationInfo) -> float:
    if 0 <= value < GREEDY_BELOW or MIN_TEMPERATURE <= value <= MAX_TEMPERATURE:
        return value
    raise refuse(info, value, _TEMPERATURE)


def _top_k(value: int, info: ValidationInfo) -> int:
    if value == 0:
        raise refuse(info, value, _TOP_K)
    return value


Flag = Annotated[bool, Allowed("true or false")]
Temperature = Annotated[float, AfterValidator(_temperature), Allowed(_TEMPERATURE)]
TopP = Annotated[float, Interval(ge=1e-6, le=1), Allowed("a number from 0.000001 to 1")]
TopK = Annotated[
    int,
    Interval(ge=-1, le=INT32_MAX),
    AfterValidator(lambda k, info: _top_k(k, info)),
    Allowed("-1 (all), or an integer from 1 to 2147483647"),
]
MinP = Annotated[float, Interval(ge=0, le=1), Allowed("a number from 0 to 1")]
Penalty = Annotated[float, Interval(ge=-2, le=2), Allowed("a number from -2 to 2")]
RepetitionPenalty = Annotated[float, Interval(ge=0.01, le=2), Allowed("a number from 0.01 to 2 (1: none)")]
Tokens = Annotated[int, Interval(ge=0, le=INT32_MAX), Allowed("an integer from 0 to 2147483647")]
Samples = Annotated[int, Interval(ge=1, le=MAX_SAMPLES), Allowed(f"an integer from 1 to {MAX_SAMPLES}")]
Seed = Annotated[int, Interval(ge=-(2**63), le=2**63 - 1), Allowed("an integer from -2^63 to 2^63 - 1")]
StreamInterval = Annotated[int, Interval(ge=1, le=INT32_MAX), Allowed("an integer from 1 to 2147483647")]
Priority = Annotated[int, Interval(ge=-INT32_MAX, le=INT32_MAX), Allowed("an integer of at most 31 bits")]
Logprobs = Annotated[int, Interval(ge=0, le=MAX_LOGPROBS), Allowed(f"an integer from 0 to {MAX_LOGPROBS}")]
LogprobStart = Annotated[int, Interval(ge=-1, le=INT32_MAX), Allowed("-1 (nothing of the prompt), or a position in it")]
Seconds = Annotated[float, Interval(ge=0), Allowed("a finite number of seconds >= 0")]


# Ids of the vocabulary


def _in_vocabulary(ids: Any, info: ValidationInfo) -> Any:
    size = facts(info).vocab_size
    outside = next((i for i in (min(ids), max(ids)) if not 0 <= i < size), None) if ids else None
    if outside is not None:
        raise refuse(info, outside, f"ids of the vocabulary, 0 to {size - 1}")
    return ids


def _can_be_drawn(ids: Any, info: ValidationInfo) -> Any:
    masked = facts(info).masked_ids
    if hidden := sorted(masked & set(ids)):
        allowed = f"ids that can be drawn: alignment maps {sorted(masked)} to {facts(info).canonical_id}"
        raise refuse(info, hidden, allowed)
    return ids


_IDS = Allowed("a list of ids of the vocabulary")
Ids = Annotated[list[int], FirstError(), AfterValidator(_in_vocabulary), _IDS]
PromptIds = Annotated[Ids, MinLen(1), Allowed("a list of ids of the vocabulary, at least one")]
LogprobIds = Annotated[Ids, MaxLen(MAX_LOGPROBS), Allowed(f"a list of at most {MAX_LOGPROBS} ids of the vocabulary")]
StopIds = Annotated[
    Annotated[list[int], FirstError()] | set[int],
    MaxLen(MAX_STOP_IDS),
    AfterValidator(_in_vocabulary),
    AfterValidator(_can_be_drawn),
    Allowed(f"a list of at most {MAX_STOP_IDS} ids of the vocabulary"),
]


def _bias(bias: dict[str, float], info: ValidationInfo) -> dict[str, float]:
    size = facts(info).vocab_size
    for key, value in bias.items():
        if not re.fullmatch(r"0|[1-9][0-9]{0,9}", key) or int(key) >= size:
            raise refuse(info, key, f"ids of the vocabulary as keys, '0' to '{size - 1}'")
        if math.isnan(value) or value > MAX_BIAS:
            raise refuse(info, value, f"numbers up to {MAX_BIAS}; one of {-MAX_BIAS} or less is minus infinity")
    return bias


def _at_most_all(bias: object, info: ValidationInfo) -> object:
    if isinstance(bias, dict) and len(bias) > (most := facts(info).vocab_size):
        raise refuse(info, bias, f"at most {most} ids")
    return bias


LogitBias = Annotated[
    dict[str, Annotated[float, AllowInfNan(True)]],
    BeforeValidator(_at_most_all),
    AfterValidator(_bias),
    Allowed("an object of numbers, its keys ids of the vocabulary as text"),
]

# Texts


def _prompt(text: str, info: ValidationInfo) -> str:
    most = CHARACTERS_PER_TOKEN * facts(info).context_length
    if len(text) > most:
        raise refuse(info, text, f"a text of at most {most} characters: longer ones cannot fit the context")
    return text


def _room(value: Any, info: ValidationInfo) -> Any:
    """What becomes one prompt: its texts, keys too, are no more than a prompt's; raises at the first too many."""
    room = most = CHARACTERS_PER_TOKEN * facts(info).context_length
    inside = [value]
    while inside:
        item = inside.pop()
        if isinstance(item, str):
            room -= len(item)
        elif isinstance(item, dict):
            inside += [*item, *item.values()]
        elif isinstance(item, list):
            inside += item
        if room < 0:
            raise refuse(info, value, f"at most {most} characters in all: more cannot fit the context")
    return value


Room = BeforeValidator(_room)
"""For messages and what goes with them: any JSON."""


def _not_a_probe(name: str, info: ValidationInfo) -> str:
    if name.startswith(HEALTH_CHECK):
        raise refuse(info, name, f"names that do not begin with {HEALTH_CHECK}: answers to those are dropped")
    return name


def _bounded(pattern: str, info: ValidationInfo) -> str:
    assert info.field_name is not None
    stop_patterns.check(info.field_name, pattern)
    return pattern


def _grammar(text: str, info: ValidationInfo) -> str:
    if text and not facts(info).has_grammar:
        raise refuse(info, text, f"nothing: the server runs with --grammar-backend {facts(info).grammar_backend}")
    return text


_STOP = Allowed(f"a text of 1 to {MAX_NAME} characters, or a list of at most {MAX_STOPS}")
Text = Annotated[str, MinLen(1), AfterValidator(_prompt), Allowed("a text, not empty")]
Name = Annotated[str, MaxLen(MAX_NAME), Allowed(f"a text of at most {MAX_NAME} characters")]
RequestId = Annotated[
    str,
    Len(1, MAX_NAME),
    AfterValidator(_not_a_probe),
    Allowed(f"a text of 1 to {MAX_NAME} characters"),
]
StopText = Annotated[str, Len(1, MAX_NAME)]
Stops = Annotated[StopText | Annotated[list[StopText], FirstError(), MaxLen(MAX_STOPS)], _STOP]
Pattern = Annotated[str, AfterValidator(_bounded)]
Patterns = Annotated[
    Pattern | Annotated[list[Pattern], FirstError(), MaxLen(MAX_STOPS)],
    Allowed(f"one or a list of {stop_patterns.ALLOWED}"),
]
Grammar = Annotated[
    str,
    MaxLen(MAX_GRAMMAR),
    AfterValidator(_grammar),
    Allowed(f"a text of at most {MAX_GRAMMAR} characters"),
]
HiddenStates = Annotated[Flag | Literal["last"], Allowed('true, false or "last"')]

# Objects

MAX_NAMES = 64


def _few(names: object, info: ValidationInfo) -> object:
    if isinstance(names, dict) and len(names) > MAX_NAMES:
        raise refuse(info, names, f"at most {MAX_NAMES} names")
    return names


Few = BeforeValidator(_few)


def _custom(params: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    BlendParams.from_wire(params, facts(info).blend_default)
    for key, value in params.items():
        inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
        keys = list(value) if isinstance(value, dict) else []
        if not all(isinstance(name, str) for name in keys) or not all(map(_fits, inner)):
            allowed = "null, true, false, a text, a number of at most 64 bits, or a flat list or object of them"
            raise InvalidParameter(f"custom_params.{key}", value, allowed)
    return params


def _fits(value: object) -> bool:
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, float | str)


CustomParams = Annotated[dict[str, Any], AfterValidator(_custom), Allowed("an object with flat keys")]


def _known_labels(labels: dict[str, str], info: ValidationInfo) -> dict[str, str]:
    known = facts(info).metric_labels
    if unknown := sorted(labels.keys() - known):
        raise refuse(info, unknown, f"labels of --tokenizer-metrics-allowed-custom-labels: {sorted(known)}")
    return labels


Labels = Annotated[dict[str, Name], Few, AfterValidator(_known_labels), Allowed("an object of texts")]
Headers = Annotated[dict[str, str], Few, Allowed("an object of texts")]


# What a blending server refuses: nothing but null may come, or false where SGLang's own default is false

Embeddings = Annotated[
    None, Allowed("nothing: embeddings are the student's, the teacher has its own; send text or input_ids")
]
Media = Annotated[None, Allowed("nothing: the pair is text-only")]
NoMedia = Annotated[Literal[False] | None, Allowed("false: the pair is text-only")]
NoModalities = Annotated[Annotated[list[str], MaxLen(0)] | None, Allowed("nothing: the pair is text-only")]
Adapter = Annotated[None, Allowed("nothing: adapters are not supported on a blending server")]
Disaggregation = Annotated[None, Allowed("nothing: the teacher's KV is not transferred between servers")]
Session = Annotated[
    None, Allowed("nothing: sessions are not checked with two models; send the whole prompt, its prefix is cached")
]
Unpickled = Annotated[
    None, Allowed("nothing: it would change the distribution after the budget was checked, and it unpickles code")
]
Mask = Annotated[Literal[False] | None, Allowed("false: use custom_params.trb_return")]
Beams = Annotated[None, Allowed("nothing: beams are not drawn from mu")]
Capture = Annotated[Literal[False] | None, Allowed("false: a blending server does not record them")]
Internal = Annotated[None, Allowed("nothing: SGLang sets it, no request does")]
InternalFlag = Annotated[Literal[False] | None, Allowed("false: SGLang sets it, no request does")]

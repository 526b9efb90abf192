"""A finished rollout with the statistics that the loss needs, and the checks that make it fit to train on.

Legend: _T generated tokens, _K the 16 ids of a support.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sglang_trb.errors import InvalidParameter
from sglang_trb.wire.packing import unpack
from sglang_trb.wire.params import BlendParams, Return, Rule
from sglang_trb.wire.record import SUPPORT_SIZE, Support, TokenStatistics
from sglang_trb.wire.seeds import sample_seed
from trainer.errors import TrainerError

FINISHED = ("stop", "length")
"""SGLang's finish reasons of a whole response; anything else (abort) is not one."""

UNFILTERED: dict[str, Any] = {
    "top_p": 1.0, "top_k": -1, "min_p": 0.0, "min_new_tokens": 0, "n": 1, "ignore_eos": False,
    "frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0, "logit_bias": None,
    "stop": None, "stop_token_ids": None, "stop_regex": None, "beam_width": None,
    "json_schema": None, "regex": None, "ebnf": None, "structural_tag": None,
}  # fmt: skip
"""Every sampling parameter that could change the policy: what is left out is the server's to choose
(``--preferred-sampling-params``), and nobody would be told."""

POLICY_TOLERANCE = 1e-4
"""Nats. Both are float32 of one float64 value where nothing was filtered; the mildest filter of use moves it more."""


class UntrustedRollout(TrainerError, ValueError):
    """A response that must not be trained on: malformed, incomplete, or not what was asked for."""


class OtherPolicy(TrainerError, RuntimeError):
    """The server draws from another policy than it was asked for."""


@dataclasses.dataclass(frozen=True, order=True)
class RolloutKey:
    """Which rollout of a run: every one is drawn, and trained on, once.

    Attributes:
        step: k, the update it belongs to.
        prompt: position in the run's order of prompts.
        sample: 0 <= sample < samples_per_prompt.
    """

    step: int
    prompt: int
    sample: int

    def seed(self, run_seed: int) -> int:
        """The key of its draws: the same whenever and wherever it is drawn; in 0 .. 2**31 - 1."""
        return sample_seed(sample_seed(run_seed, self.prompt), self.sample) & 0x7FFF_FFFF


@dataclasses.dataclass(frozen=True)
class RolloutRequest:
    """One rollout to draw."""

    key: RolloutKey
    prompt_ids: tuple[int, ...]
    blend: BlendParams
    temperature: float
    max_new_tokens: int
    seed: int
    weight_version: str

    def body(self) -> dict[str, Any]:
        """The JSON body for ``/generate``."""
        return {
            "input_ids": list(self.prompt_ids),
            "sampling_params": UNFILTERED
            | {
                "max_new_tokens": self.max_new_tokens,
                "temperature": self.temperature,
                "sampling_seed": self.seed,
                "custom_params": self.blend.to_wire(),
            },
        }


@dataclasses.dataclass(frozen=True)
class Rollout:
    """A response and its statistics, as the server measured them while it was drawn (docs/wire.md, "Response").

    Attributes:
        key: which one.
        weight_version: of the student that drew it.
        finish: ``stop`` or ``length``.
        prompt_ids, token_ids_T: int32.
        tokens: float32 [T] each; None where no more than the summary was asked for.
        support: [T, K] each, of the student's top-16; likewise.
        teacher_support: the same for the teacher's top-16, where asked for, else None.
    """

    key: RolloutKey
    weight_version: str
    finish: str
    prompt_ids: np.ndarray
    token_ids_T: np.ndarray
    tokens: TokenStatistics[np.ndarray] | None
    support: Support[np.ndarray] | None
    teacher_support: Support[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.token_ids_T)


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A rollout that cannot be had, left out of its step and counted.

    Attributes:
        reason: the server's for refusing it (a row of NaN for example), or how it failed again and again.
    """

    key: RolloutKey
    reason: str


def refusals_told(refused: Sequence[Refusal], wanted: int) -> str:
    """For people: how many of the wanted responses are missing, and why one of them is."""
    first = refused[0]
    return f"{len(refused)} of {wanted} responses could not be had and are left out; {first.key}: {first.reason}"


def parse_rollout(request: RolloutRequest, answer: Any) -> Rollout:
    """Read and check a server's answer.

    Raises:
        UntrustedRollout: a field is missing, malformed, not finite, of another length than the response, or says that
            another rule, weight version or request was answered.
        OtherPolicy: rule ``student`` at temperature 1 was drawn from something else than the student's distribution.
    """
    try:
        return _parse(request, answer)
    except (KeyError, TypeError, AttributeError, InvalidParameter) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UntrustedRollout(f"malformed answer: {what}") from None


def _parse(request: RolloutRequest, answer: Any) -> Rollout:
    meta = answer["meta_info"]
    returned = request.blend.returned
    trb = {} if returned is Return.NONE else meta["trb"]
    finish = meta["finish_reason"]["type"]
    _require("finish_reason", finish, finish in FINISHED, " or ".join(FINISHED))
    _require("prompt_tokens", meta["prompt_tokens"], meta["prompt_tokens"] == len(request.prompt_ids), "the prompt's")
    _require(
        "weight_version", meta["weight_version"], meta["weight_version"] == request.weight_version,
        repr(request.weight_version),
    )  # fmt: skip
    if trb:
        _check_asked(request, trb)
    ids = answer["output_ids"]
    valid = isinstance(ids, list) and all(type(i) is int and 0 <= i < 1 << 31 for i in ids)
    _require("output_ids", "no list of token ids", valid and len(ids) > 0, "at least one token id")
    _require(
        "output_ids", f"{len(ids)} tokens", len(ids) <= request.max_new_tokens, f"at most {request.max_new_tokens}"
    )
    if finish == "length":
        _require(
            "output_ids", f"{len(ids)} tokens, cut off", len(ids) == request.max_new_tokens, str(request.max_new_tokens)
        )
    return Rollout(
        key=request.key,
        weight_version=request.weight_version,
        finish=finish,
        prompt_ids=np.asarray(request.prompt_ids, np.int32),
        token_ids_T=np.asarray(ids, np.int32),
        tokens=_tokens(request, trb, len(ids)) if returned.includes(Return.TOKENS) else None,
        support=_support(trb, "support", len(ids)) if returned.includes(Return.SUPPORT) else None,
        teacher_support=_support(trb, "teacher_support", len(ids)) if returned.includes(Return.SUPPORT_BOTH) else None,
    )


def _check_asked(request: RolloutRequest, trb: Mapping[str, Any]) -> None:
    asked = {
        "student_weight_version": request.weight_version,
        "rule": request.blend.rule.value,
        "epsilon": request.blend.epsilon,
    }
    for name, value in asked.items():
        _require(name, trb[name], trb[name] == value, repr(value))


def _tokens(request: RolloutRequest, trb: Mapping[str, Any], length: int) -> TokenStatistics[np.ndarray]:
    tokens = TokenStatistics.of(_array(trb, name, (length,)) for name in TokenStatistics.names())
    _require("beta", "a value outside", bool(((tokens.beta >= 0) & (tokens.beta <= 1)).all()), "[0, 1]")
    if request.blend.rule is Rule.TRUST_REGION:
        largest, epsilon = float(tokens.kl.max()), request.blend.epsilon
        _require("kl", largest, largest <= epsilon * (1 + 1e-3), f"at most epsilon {epsilon}")
    _check_policy(request, tokens)
    return tokens


def _check_policy(request: RolloutRequest, tokens: TokenStatistics[np.ndarray]) -> None:
    """Where the behaviour policy must be the student, log mu is log p."""
    if request.blend.rule is not Rule.STUDENT or request.temperature != 1.0:
        return
    behavior_T, student_T = tokens.behavior_logprob, tokens.student_logprob
    apart_T = np.where(behavior_T == student_T, 0.0, np.abs(behavior_T - student_T))  # inf - inf is NaN
    if not apart_T.max() <= POLICY_TOLERANCE:
        raise OtherPolicy(
            f"filtered sampling: rule student at temperature 1 has log mu up to {apart_T.max():.2g} nats from log p "
            f"({request.key}); allowed: {POLICY_TOLERANCE:g}. Does the server change the logits, or filter them?"
        )


def _support(trb: Mapping[str, Any], name: str, length: int) -> Support[np.ndarray]:
    packed = trb[name]
    support = Support.of(_array(packed, field, (length, SUPPORT_SIZE), f"{name}.{field}") for field in Support.names())
    _require(f"{name}.ids", "a negative id", bool((support.ids >= 0).all()), "token ids")
    return support


def _array(packed: Mapping[str, Any], field: str, shape: tuple[int, ...], name: str | None = None) -> np.ndarray:
    name = name or field
    array = unpack(packed[field], name)
    _require(name, list(array.shape), array.shape == shape, f"shape {list(shape)}")
    if array.dtype.kind == "f":
        # Log-probabilities may be -inf, a divergence +inf; NaN is nothing.
        _require(name, "NaN", not np.isnan(array).any(), "numbers")
    return array


def _require(field: str, received: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise UntrustedRollout(f"{field}: got {received!r}; allowed: {allowed}")

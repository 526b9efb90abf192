"""Orders and a server's answers to them, made up without a server.

Legend: _T generated tokens, _K the 16 ids of a support.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_trb.wire.packing import pack
from sglang_trb.wire.params import BlendParams, Return, Rule
from sglang_trb.wire.record import SUPPORT_SIZE, Support, TokenStatistics
from trainer.rollouts.rollout import Rollout, RolloutKey, RolloutRequest, parse_rollout

VERSION = "run/step-0"


def make_request(
    key: RolloutKey, *, epsilon: float = 0.1, teacher_support: bool = False, version: str = VERSION
) -> RolloutRequest:
    returned = Return.SUPPORT_BOTH if teacher_support else Return.SUPPORT
    blend = BlendParams(Rule.TRUST_REGION, epsilon, returned=returned)
    return RolloutRequest(key, (5, 6, 7), blend, 1.0, 64, key.seed(0), version)


def make_answer(request: RolloutRequest, length: int = 4) -> dict[str, Any]:
    """What a blended server says; the numbers are a function of the request's seed."""
    rng = np.random.default_rng(request.seed)

    def array(*shape: int) -> np.ndarray:
        return -rng.random(shape, np.float32)

    tokens = {name: array(length) for name in TokenStatistics.names()}
    for name in ("beta", "student_entropy", "teacher_entropy"):
        tokens[name] = -tokens[name]
    if request.blend.rule is Rule.STUDENT:
        tokens["behavior_logprob"] = tokens["student_logprob"]
    tokens["kl"] = -tokens["kl"] * np.float32(request.blend.epsilon)
    trb: dict[str, Any] = {name: pack(a) for name, a in tokens.items()}
    trb |= {"rule": request.blend.rule.value, "epsilon": request.blend.epsilon, "completion_tokens": length}
    trb["student_weight_version"] = request.weight_version
    supports = ["support", "teacher_support"] if request.blend.returned is Return.SUPPORT_BOTH else ["support"]
    for support in supports:
        ids = rng.integers(0, 100, (length, SUPPORT_SIZE), dtype=np.int32)
        arrays = (ids, array(length, SUPPORT_SIZE), array(length, SUPPORT_SIZE))
        trb[support] = {name: pack(a) for name, a in zip(Support.names(), arrays, strict=True)}
    meta = {"finish_reason": {"type": "stop"}, "prompt_tokens": len(request.prompt_ids), "trb": trb}
    meta["weight_version"] = request.weight_version
    return {"output_ids": rng.integers(0, 100, length).tolist(), "meta_info": meta}


def make_rollout(key: RolloutKey, length: int, *, teacher_support: bool = False) -> Rollout:
    request = make_request(key, teacher_support=teacher_support)
    return parse_rollout(request, make_answer(request, length))

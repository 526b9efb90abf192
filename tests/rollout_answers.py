"""Orders and a server's answers to them, made up without a server.

Legend: _T generated tokens, _K the 16 ids of a support.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_trb.wire.packing import pack
from sglang_trb.wire.params import BlendParams, Return, Rule
from sglang_trb.wire.trace import SUPPORT_FIELDS, SUPPORT_SIZE, TOKEN_FIELDS
from trainer.rollouts.rollout import Order, Rollout, RolloutKey, parse_rollout

VERSION = "run/step-0"


def make_order(
    key: RolloutKey, *, epsilon: float = 0.1, teacher_support: bool = False, version: str = VERSION
) -> Order:
    returned = Return.SUPPORT_BOTH if teacher_support else Return.SUPPORT
    blend = BlendParams(Rule.TRUST_REGION, epsilon, returned=returned)
    return Order(key, (5, 6, 7), blend, 1.0, 64, key.seed(0), version)


def make_answer(order: Order, length: int = 4) -> dict[str, Any]:
    """What a blended server says; the numbers are a function of the order's seed."""
    rng = np.random.default_rng(order.seed)

    def array(*shape: int) -> np.ndarray:
        return -rng.random(shape, np.float32)

    tokens = {name: array(length) for name in TOKEN_FIELDS}
    for name in ("beta", "student_entropy", "teacher_entropy"):
        tokens[name] = -tokens[name]
    if order.blend.rule is Rule.STUDENT:
        tokens["behavior_logprob"] = tokens["student_logprob"]
    tokens["kl"] = -tokens["kl"] * np.float32(order.blend.epsilon)
    trb: dict[str, Any] = {name: pack(a) for name, a in tokens.items()}
    trb |= {"rule": order.blend.rule.value, "epsilon": order.blend.epsilon, "completion_tokens": length}
    trb["student_weight_version"] = order.weight_version
    supports = ["support", "teacher_support"] if order.blend.returned is Return.SUPPORT_BOTH else ["support"]
    for support in supports:
        ids = rng.integers(0, 100, (length, SUPPORT_SIZE), dtype=np.int32)
        arrays = (ids, array(length, SUPPORT_SIZE), array(length, SUPPORT_SIZE))
        trb[support] = {name: pack(a) for name, a in zip(SUPPORT_FIELDS, arrays, strict=True)}
    meta = {"finish_reason": {"type": "stop"}, "prompt_tokens": len(order.prompt_ids), "trb": trb}
    return {"output_ids": rng.integers(0, 100, length).tolist(), "meta_info": meta}


def make_rollout(key: RolloutKey, length: int, *, teacher_support: bool = False) -> Rollout:
    order = make_order(key, teacher_support=teacher_support)
    return parse_rollout(order, make_answer(order, length))

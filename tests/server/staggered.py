"""A batch as a server meets it: prompts and answers of many lengths, so that rows leave in the middle and others move.

The same requests and checks serve every device. Where logits are exact to 1e-5 the oracle's comparison is exact;
in half precision it is rough: bf16 rounding moves a log-probability by .02 on average and by .2 at most (measured
between transformers' own bf16 and float32), keys and values of other tokens by .5 on average.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_trb.wire.packing import unpack
from sglang_trb.wire.record import TokenStatistics
from tests.server.checks import TOLERANCE, Request, mixed_requests, prompts
from tests.server.harness import Server
from tests.server.oracle import Oracle, entropy

ROUGH_MEAN, ROUGH_MAX = 0.06, 0.6
"""Of a log-probability above LIKELY in half precision: mean over an answer, and at one token."""

LIKELY = -8.0


def staggered_requests(count: int, longest: int = 64) -> list[Request]:
    """``count`` requests of 5 to 60 prompt tokens and 2 to ``longest`` new ones, each with a rule and a seed.

    Every twelfth has the same rule and sampling options (`mixed_requests`); no two have the same prompt.
    """
    rng = np.random.default_rng(17)
    requests = []
    for i in range(count):
        new_tokens = int(rng.integers(2, longest + 1))
        ids, blend, sampling = mixed_requests(length=12, new_tokens=new_tokens)[i % 12]
        (ids,) = prompts(1, int(rng.integers(5, 61)), seed=100 + i)
        requests.append((ids, blend, sampling | {"sampling_seed": 1000 + i}))
    return requests


def run_together(server: Server, requests: list[Request]) -> list[dict[str, Any]]:
    """As one HTTP request, so that none has ended before the last has come."""
    body = {
        "input_ids": [ids for ids, _, _ in requests],
        "sampling_params": [sampling | {"custom_params": blend} for _, blend, sampling in requests],
        "return_logprob": True,
    }
    response = server.post("/generate", body, timeout=300)
    assert response.status_code == 200, response.text
    return response.json()


def check_roughly(oracle: Oracle, request: Request, answer: dict[str, Any]) -> None:
    """Both models' numbers of every token agree with float32 up to the rounding of bf16; the budget holds exactly."""
    ids, blend, sampling = request
    output, trb = answer["output_ids"], answer["meta_info"]["trb"]
    arrays = {name: unpack(trb[name], name) for name in TokenStatistics.names()}
    positions = oracle.positions(ids, output, blend | sampling)
    at = f"{blend} {sampling}"
    for role in ("student", "teacher"):
        laws = [getattr(position, role) for position in positions]
        expected = np.array([law[token] for law, token in zip(laws, output, strict=True)])
        found = np.where(expected > LIKELY, arrays[f"{role}_logprob"], expected)
        error = np.abs(np.concatenate([found - expected, arrays[f"{role}_entropy"] - [entropy(law) for law in laws]]))
        assert error.mean() <= ROUGH_MEAN and error.max() <= ROUGH_MAX, (role, at, error.mean(), error.max())
    if "trb_epsilon" in blend:
        assert (arrays["kl"] <= blend["trb_epsilon"] * (1 + TOLERANCE)).all(), at
        assert ((arrays["beta"] >= 0) & (arrays["beta"] <= 1)).all(), at
        binding = (arrays["beta"] > 0) & (arrays["beta"] < 1)
        assert (np.abs(arrays["kl"][binding] / blend["trb_epsilon"] - 1) <= 1e-3).all(), f"{at}: the budget is spent"


def equal_answers(left: list[dict[str, Any]], right: list[dict[str, Any]], requests: list[Request]) -> float:
    """The share of requests that drew the same tokens twice; penalties, which see them late under overlap, left out."""
    compared = [
        one["output_ids"] == other["output_ids"]
        for one, other, (_, _, sampling) in zip(left, right, requests, strict=True)
        if "repetition_penalty" not in sampling
    ]
    return sum(compared) / len(compared)

"""Compares what a server answered with the oracle, token by token."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from sglang_trb.wire.packing import unpack
from sglang_trb.wire.record import SUPPORT_SIZE, TokenStatistics
from tests.server.harness import Server
from tests.server.oracle import Oracle, Position, entropy

TOLERANCE = 1e-4
"""Of log-probabilities, entropies, beta, and of KL relative to the budget: fp32 forwards of two implementations differ
by some 1e-5 in a logit, and beta amplifies that where the log-ratio is nearly constant."""

Request = tuple[list[int], dict[str, Any], dict[str, Any]]
"""Prompt ids, blend parameters, sampling parameters."""


def prompts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Prompts of ordinary tokens, the first half of each in common."""
    rng = np.random.default_rng(seed)
    common = rng.integers(10, 1900, length // 2).tolist()
    return [common + rng.integers(10, 1900, length - length // 2).tolist() for _ in range(count)]


def mixed_requests(length: int = 24, new_tokens: int = 12) -> list[Request]:
    """Every rule and every sampling option, each in a request of its own; 12 requests."""
    blends: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"trb_epsilon": 0.05}, {}),
        ({"trb_epsilon": 0.001}, {"temperature": 0.7}),
        ({"trb_epsilon": 0.0}, {}),
        ({"trb_rule": "student"}, {"temperature": 1.3}),
        ({"trb_rule": "teacher"}, {"top_p": 0.9}),
        ({"trb_rule": "skd", "trb_skd_top_k": 15, "trb_skd_temperature": 0.6}, {}),
        ({"trb_epsilon": 1.0}, {"frequency_penalty": 0.5, "presence_penalty": 0.3, "repetition_penalty": 1.2}),
        ({"trb_epsilon": 0.1}, {"temperature": 0.0, "top_p": 0.9}),
        ({"trb_epsilon": 0.2}, {"top_k": 40, "top_p": 0.95, "min_p": 0.01}),
        ({"trb_epsilon": 0.5}, {"logit_bias": {"17": 4.0, "23": -100.0, "99": 2.5}}),
        ({"trb_epsilon": 0.3}, {"min_new_tokens": new_tokens - 1}),
        ({"trb_epsilon": 1000.0}, {}),
    ]
    common = {"max_new_tokens": new_tokens, "ignore_eos": True}
    asked = zip(prompts(len(blends), length), blends, strict=True)
    return [(ids, blend | {"trb_return": "support_both"}, common | sampling) for ids, (blend, sampling) in asked]


def run_concurrently(server: Server, requests: list[Request]) -> list[dict[str, Any]]:
    """All at once, so that they share the server's batches."""
    with ThreadPoolExecutor(len(requests)) as pool:
        futures = [pool.submit(server.generate, ids, blend, logprobs=True, **s) for ids, blend, s in requests]
        return [future.result() for future in futures]


def check_the_student_alone(server: Server, oracle: Oracle, others: list[Request]) -> None:
    """Requests in which the teacher has no part draw what they draw beside it; the others among them stay right."""
    asked = [
        (ids, {"trb_rule": "student", "trb_return": "tokens"}, sampling | {"sampling_seed": i})
        for i, (ids, _, sampling) in enumerate(others)
        if sampling.keys() == {"max_new_tokens", "ignore_eos"}
    ]
    expected = [answer["output_ids"] for answer in run_concurrently(server, asked)]
    alone = [(ids, blend | {"trb_return": "none"}, sampling) for ids, blend, sampling in asked]
    answers = run_concurrently(server, [*alone, *others])
    assert [answer["output_ids"] for answer in answers[: len(alone)]] == expected
    for request, answer in zip(others, answers[len(alone) :], strict=True):
        check_against_oracle(oracle, request, answer, exact_penalties=False)


def check_against_oracle(oracle: Oracle, request: Request, answer: dict[str, Any], exact_penalties: bool) -> None:
    """Every reported number of every token agrees with the oracle to TOLERANCE.

    SGLang's penalties are not a function of the sequence: under overlap scheduling they see it up to a token late,
    depending on timing (``exact_penalties`` says that they do not), and a retracted request's start anew. The law of
    such a request is left out, all else is compared.
    """
    ids, blend, sampling = request
    retracted = answer["meta_info"]["num_retractions"] > 0
    late = "repetition_penalty" in sampling and not exact_penalties
    restarted = retracted and bool(sampling.keys() & {"repetition_penalty", "min_new_tokens"})
    law_is_known = not (late or restarted)
    output, trb = answer["output_ids"], answer["meta_info"]["trb"]
    positions = oracle.positions(ids, output, blend | sampling)
    arrays = {name: unpack(trb[name], name) for name in TokenStatistics.names()}
    support = {name: unpack(trb["support"][name], name) for name in trb["support"]}
    teacher_support = {name: unpack(trb["teacher_support"][name], name) for name in trb["teacher_support"]}
    returned = [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]
    assert trb["completion_tokens"] == len(output)
    for t, (token, position) in enumerate(zip(output, positions, strict=True)):
        at = f"{blend} {sampling} token {t}"
        close(arrays["student_logprob"][t], position.student[token], at)
        close(arrays["teacher_logprob"][t], position.teacher[token], at)
        close(arrays["student_entropy"][t], entropy(position.student), at)
        close(arrays["teacher_entropy"][t], entropy(position.teacher), at)
        close(returned[t], arrays["behavior_logprob"][t], at)
        if law_is_known:
            close(arrays["behavior_logprob"][t], law_at(position, blend, float(arrays["beta"][t]))[token], at)
            check_beta(position, blend, arrays["beta"][t], arrays["kl"][t], at)
        check_support(support, t, position.student, position, at)
        check_support(teacher_support, t, position.teacher, position, at)
        if sampling.get("temperature") == 0.0:
            assert position.mu[token] >= position.mu.max() - TOLERANCE, at


def law_at(position: Position, blend: dict[str, Any], beta: float) -> np.ndarray:
    """log mu; of the trust region that at the answer's own beta, which `check_beta` compares."""
    return position.mu if "trb_epsilon" not in blend else position.mu_at(beta)


def check_beta(position: Position, blend: dict[str, Any], beta: float, kl: float, at: str) -> None:
    """beta, or the KL that it stands for, agrees; the budget holds."""
    epsilon = blend.get("trb_epsilon")
    if blend.get("trb_rule") == "skd":
        assert beta in (0.0, 1.0), at
        close(kl, position.kl, at)
        return
    if epsilon is None:
        assert beta == position.beta, at
        close(kl, position.kl, at)
        return
    assert kl <= epsilon * (1 + TOLERANCE), at
    difference = abs(position.kl_at(beta) - position.kl)
    assert abs(beta - position.beta) <= TOLERANCE or difference <= TOLERANCE * epsilon, (at, beta, position.beta)
    assert abs(kl - position.kl_at(beta)) <= max(TOLERANCE * epsilon, 1e-7) or abs(kl - position.kl) <= TOLERANCE, at


def check_support(support: dict[str, np.ndarray], t: int, own: np.ndarray, position: Position, at: str) -> None:
    """The 16 ids are the model's most likely ones (up to ties), with both models' log-probabilities."""
    ids = support["ids"][t]
    assert len(set(ids.tolist())) == SUPPORT_SIZE, at
    close(np.sort(own[ids]), np.sort(own)[-SUPPORT_SIZE:], at)
    close(support["student_logprob"][t], position.student[ids], at)
    close(support["teacher_logprob"][t], position.teacher[ids], at)


def close(found: Any, expected: Any, at: str) -> None:
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    same_infinity = np.isinf(found) & np.isinf(expected) & (np.sign(found) == np.sign(expected))
    with np.errstate(invalid="ignore"):
        difference = np.where(same_infinity, 0.0, np.abs(found - expected))
    assert np.all(difference <= TOLERANCE), (at, found, expected)

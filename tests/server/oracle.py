"""What a server should have answered, computed without it: both models through transformers, the blend by bisection.

Written apart from `sglang_trb.blend` on purpose: numpy float64, one position at a time, as
docs/methods.md, "Rollout rules", says.

Legend: _V vocabulary.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

NEG = -np.inf
TOP = 16


@dataclasses.dataclass
class Position:
    """The oracle's account of one generated token (log-probabilities and KL in nats)."""

    student: np.ndarray  # [V] aligned log-probabilities at temperature 1, unadjusted
    teacher: np.ndarray
    p: np.ndarray  # [V] the student's law that is blended (temperature, penalties, filters)
    q: np.ndarray
    mu: np.ndarray  # [V] law of the token, log-probabilities
    beta: float
    kl: float

    def mu_at(self, beta: float) -> np.ndarray:
        return blend_at(self.p, self.q, beta) if beta else self.p

    def kl_at(self, beta: float) -> float:
        return kl(self.mu_at(beta), self.p)


class Oracle:
    """Both models of a pair, with the stop ids and the vocabulary size that the server should use."""

    def __init__(self, student: Path, teacher: Path, vocab_size: int, stops: dict[str, Any]) -> None:
        self.models = [
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in (student, teacher)
        ]
        self.vocab_size, self.stops = vocab_size, stops

    @torch.inference_mode()
    def positions(self, prompt: list[int], output: list[int], sampling: dict[str, Any]) -> list[Position]:
        """The law of every generated token, given the tokens before it."""
        ids = torch.tensor([prompt + output[:-1]])
        student, teacher = (
            model(ids).logits[0, len(prompt) - 1 :, : self.vocab_size].double().numpy() for model in self.models
        )
        return [self._position(student[t], teacher[t], output[:t], sampling) for t in range(len(output))]

    @torch.inference_mode()
    def raw_student(self, ids: list[int]) -> np.ndarray:
        """The student's own log-probabilities after each token: full vocabulary, neither masked nor aligned."""
        return torch.log_softmax(self.models[0](torch.tensor([ids])).logits[0].double(), -1).numpy()

    def _position(self, student, teacher, history: list[int], sampling: dict[str, Any]) -> Position:
        raw = [self.align(log_softmax(student), "student"), self.align(log_softmax(teacher), "teacher")]
        temperature = sampling.get("temperature", 1.0)
        greedy = temperature == 0.0 or sampling.get("top_k") == 1
        temperature = 1.0 if temperature == 0.0 else temperature
        adjusted, forbidden = adjust(student, history, sampling)
        if sampling.get("min_new_tokens", 0) > len(history):
            forbidden[[*self.stops["student"], *self.stops["teacher"]]] = True
        adjusted, masked_teacher = np.where(forbidden, NEG, adjusted), np.where(forbidden, NEG, teacher)
        p = self.align(log_softmax(adjusted / temperature), "student")
        q = self.align(log_softmax(masked_teacher / temperature), "teacher")
        unfiltered_q = q
        rule = sampling.get("trb_rule", "trust_region")
        filters = {k: v for k, v in sampling.items() if not (greedy and k == "top_k")}
        if rule == "teacher":
            q = filtered(q, filters)
        else:
            p = filtered(p, filters)
        mu, beta = law(p, q if rule == "teacher" else unfiltered_q, rule, sampling)
        return Position(*raw, p, q, mu, beta, kl(mu, p))

    def align(self, log_probs: np.ndarray, side: str) -> np.ndarray:
        canonical, own = self.stops["canonical"], list(self.stops[side])
        merged = log_probs.copy()
        stop = logsumexp(log_probs[own])
        merged[list({*self.stops["student"], *self.stops["teacher"]})] = NEG
        merged[canonical] = stop
        return log_softmax(merged)


def law(p: np.ndarray, q: np.ndarray, rule: str, sampling: dict[str, Any]) -> tuple[np.ndarray, float]:
    """log mu and beta of one row."""
    if rule == "student":
        return p, 0.0
    if rule == "teacher":
        return q, 1.0
    if rule == "skd":
        return skd(p, q, sampling["trb_skd_top_k"], sampling["trb_skd_temperature"]), np.nan
    if rule == "mixture":
        alpha = sampling["trb_mixture_alpha"]
        with np.errstate(divide="ignore"):
            return np.log((1 - alpha) * np.exp(p) + alpha * np.exp(q)), alpha
    epsilon = sampling.get("trb_epsilon", 0.0)
    support = np.isfinite(p) & np.isfinite(q)
    if epsilon == 0.0 or not support.any():
        return p, 0.0
    if epsilon + logsumexp(p[support]) < 0.0:
        return p, 0.0
    if kl(blend_at(p, q, 1.0), p) <= epsilon:
        return blend_at(p, q, 1.0), 1.0
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if kl(blend_at(p, q, middle), p) <= epsilon else (low, middle)
    return blend_at(p, q, low), low


def skd(p: np.ndarray, q: np.ndarray, top_k: int, temperature: float) -> np.ndarray:
    """The law of the token that remains: student's draw where the teacher's top-K holds it, else the teacher's draw."""
    keep = np.zeros(len(q), bool)
    keep[np.argsort(-q, kind="stable")[:top_k]] = True
    kept = np.where(keep, np.exp(p), 0.0)
    replacement = np.exp(log_softmax(q / temperature))
    with np.errstate(divide="ignore"):
        return np.log(kept + (1.0 - kept.sum()) * replacement)


def blend_at(p: np.ndarray, q: np.ndarray, beta: float) -> np.ndarray:
    support = np.isfinite(p) & np.isfinite(q)
    logits = np.full(len(p), NEG)
    logits[support] = (1.0 - beta) * p[support] + beta * q[support]
    return log_softmax(logits)


def adjust(logits: np.ndarray, history: list[int], sampling: dict[str, Any]):
    """OpenAI's frequency and presence penalties, the repetition penalty, and the logit bias."""
    adjusted, forbidden = logits.copy(), np.zeros(len(logits), bool)
    counts = np.bincount(history, minlength=len(logits)) if history else np.zeros(len(logits))
    adjusted -= sampling.get("frequency_penalty", 0.0) * counts
    adjusted -= sampling.get("presence_penalty", 0.0) * (counts > 0)
    repetition = sampling.get("repetition_penalty", 1.0)
    if repetition != 1.0:
        seen = np.zeros(len(logits), bool)
        seen[history] = True  # SGLang counts the generated tokens only
        adjusted = np.where(seen, np.where(adjusted > 0, adjusted / repetition, adjusted * repetition), adjusted)
    for token, bias in (sampling.get("logit_bias") or {}).items():
        adjusted[int(token)] += bias
    return adjusted, forbidden | np.isneginf(adjusted)


def filtered(log_probs: np.ndarray, sampling: dict[str, Any]) -> np.ndarray:
    """SGLang's top-k, top-p and min-p on the sorted probabilities, renormalised."""
    order = np.argsort(-log_probs, kind="stable")
    probs = np.exp(log_probs[order])
    before = np.cumsum(probs) - probs
    top_k = sampling.get("top_k", -1)
    keep = np.arange(len(probs)) < (len(probs) if top_k in (-1, None) else top_k)
    if sampling.get("top_p", 1.0) < 1.0:
        keep &= before <= sampling["top_p"]
    keep &= probs >= probs[0] * sampling.get("min_p", 0.0)
    result = np.full(len(log_probs), NEG)
    result[order[keep]] = log_probs[order[keep]]
    return log_softmax(result)


def kl(mu: np.ndarray, p: np.ndarray) -> float:
    on = np.isfinite(mu)
    return float(np.sum(np.exp(mu[on]) * (mu[on] - p[on])))


def entropy(log_probs: np.ndarray) -> float:
    on = np.isfinite(log_probs)
    return float(-np.sum(np.exp(log_probs[on]) * log_probs[on]))


def logsumexp(values: np.ndarray) -> float:
    top = values.max()
    return float(top) if not np.isfinite(top) else float(top + np.log(np.sum(np.exp(values - top))))


def log_softmax(values: np.ndarray) -> np.ndarray:
    return values - logsumexp(values)

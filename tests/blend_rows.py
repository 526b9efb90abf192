"""Rows for the tests of the blend, and what `reference` says of a whole sampler step.

Legend: _B rows, _V vocabulary.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import torch

from sglang_trb.blend import RowControls, StopAlignment, reference
from sglang_trb.blend.rules import BLENDED_RULES
from sglang_trb.blend.solver import SMALL
from sglang_trb.blend.types import COLUMN_DTYPES, TOP_K_OFF
from sglang_trb.wire.rules import PARAMETERS, Rule

INF = float("inf")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ONE_STOP = StopAlignment((0,), (0,), 0)
"""The alignment that changes nothing."""

TWO_STOPS = StopAlignment((3, 4), (5, 3), 4)
FILTERS = [
    {"top_k": 5},
    {"top_k": 1},
    {"top_p": 0.7},
    {"min_p": 0.1},
    {"top_k": 7, "top_p": 0.8},
    {"top_k": 7, "min_p": 0.05},
    {"top_p": 0.9, "min_p": 0.05},
    {"top_k": 9, "top_p": 0.9, "min_p": 0.02},
]
RULES = [
    {"rule": Rule.TRUST_REGION, "epsilon": 0.02},
    {"rule": Rule.TRUST_REGION, "epsilon": INF},
    {"rule": Rule.STUDENT},
    {"rule": Rule.TEACHER},
    {"rule": Rule.SKD, "skd_top_k": 3, "skd_temperature": 0.6},
    {"rule": Rule.MIXTURE, "mixture_alpha": 0.3},
]

FLOAT32_ULP = 2.0**-23

LOG_TOLERANCE = 2 * FLOAT32_ULP
"""A float64 result rounded to float32, relative."""

FALSE_FAILURE = 1e-6
"""Probability that a correct implementation fails one test of sampled frequencies (the seeds are fixed)."""


def llm_like(rows: int, vocab: int, seed: int = 0, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Zipf-like student logits float32 [rows, vocab] and the teacher's: the same plus independent noise."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.stack([torch.randperm(vocab, generator=generator) for _ in range(rows)])
    student = -1.5 * (ranks + 1.0).log() + 0.5 * torch.randn(rows, vocab, generator=generator)
    return student, student + noise * torch.randn(rows, vocab, generator=generator)


def forbid_some(logits: torch.Tensor, seed: int, share: float = 0.3) -> torch.Tensor:
    """-inf at a share of each row's tokens, never at all of them."""
    forbidden = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed)) < share
    forbidden[:, seed % logits.shape[1]] = False
    return logits.masked_fill(forbidden, -INF)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row's controls, with the defaults of a request that asks for nothing."""

    rule: Rule = Rule.TRUST_REGION
    epsilon: float = 0.0
    skd_top_k: int = 15
    skd_temperature: float = 0.6
    mixture_alpha: float = 0.5
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = TOP_K_OFF
    min_p: float = 0.0
    greedy: bool = False
    seed: int = 0
    position: int = 0

    @property
    def unfused(self) -> bool:
        """Whether a fused step leaves it to torch."""
        filters = self.top_p < 1.0 or self.min_p > 0.0 or (self.top_k < TOP_K_OFF and not self.greedy)
        tiny = self.rule is Rule.TRUST_REGION and 0.0 < self.epsilon < SMALL
        return filters or tiny or self.rule in (Rule.SKD, Rule.MIXTURE)


def mixed_rows(**every):
    """One row of each rule with each filter, none and greedy."""
    greedy = [{"greedy": True}, {"greedy": True, "top_k": 1}, {"greedy": True, "top_k": 1, "top_p": 0.7, "min_p": 0.05}]
    options = [{}, *greedy, *FILTERS]
    return [
        Row(**rule, **option, **every, seed=i, position=7 * i)
        for i, (rule, option) in enumerate(itertools.product(RULES, options))
    ]


def controls(rows: list[Row], **flags: Any) -> RowControls:
    """The rows as tensors."""

    def column(name: str, dtype: torch.dtype, other: float = 0.0) -> torch.Tensor:
        return torch.tensor([getattr(row, name, other) for row in rows], dtype=dtype)

    return RowControls(
        rule_B=torch.tensor([row.rule.code for row in rows], dtype=torch.int8),
        settings={name: column(name, COLUMN_DTYPES[p.type], p.neutral) for name, p in PARAMETERS.items()},
        temperature_B=column("temperature", torch.float32),
        top_p_B=column("top_p", torch.float32),
        top_k_B=column("top_k", torch.int32),
        min_p_B=column("min_p", torch.float32),
        greedy_B=column("greedy", torch.bool),
        seed_B=column("seed", torch.int64),
        position_B=column("position", torch.int64),
        **{"unfused": tuple(i for i, row in enumerate(rows) if row.unfused)} | flags,
    )


@dataclasses.dataclass(frozen=True)
class Expected:
    """What the definition says of one row; log-probabilities float64 [V], KL in nats."""

    student: np.ndarray  # aligned, temperature 1, before masks and filters
    teacher: np.ndarray
    p: np.ndarray  # the student's law that is blended
    q: np.ndarray
    law: np.ndarray
    beta: float
    kl: float


def expected(
    student_V: torch.Tensor,
    teacher_V: torch.Tensor,
    row: Row,
    alignment: StopAlignment = ONE_STOP,
    adjusted_V: torch.Tensor | None = None,
    mask_V: torch.Tensor | None = None,
) -> Expected:
    """docs/methods.md, "Order of operations", by `reference`."""
    mask = np.zeros(len(student_V), bool) if mask_V is None else mask_V.numpy()

    def aligned(logits: np.ndarray, own_ids: tuple[int, ...], temperature: float = 1.0) -> np.ndarray:
        remaining = logits.astype(float)
        strangers = {*alignment.masked_ids, alignment.canonical_id} - {*own_ids}
        remaining[sorted(strangers)] = -np.inf
        remaining -= max(remaining.max(), np.finfo(float).min)
        return reference.log_softmax(reference.align(remaining / temperature, own_ids, alignment))

    def masked(logits_V: torch.Tensor) -> np.ndarray:
        return np.where(mask, -np.inf, logits_V.double().numpy())

    temperature = float(np.float32(row.temperature))
    student = aligned(student_V.double().numpy(), alignment.student_ids)
    teacher = aligned(teacher_V.double().numpy(), alignment.teacher_ids)
    p = aligned(masked(student_V if adjusted_V is None else adjusted_V), alignment.student_ids, temperature)
    q = aligned(masked(teacher_V), alignment.teacher_ids, temperature)

    def filtered(log_p: np.ndarray) -> np.ndarray:
        top_k = TOP_K_OFF if row.greedy else row.top_k
        return reference.filtered(log_p, top_k, float(np.float32(row.top_p)), float(np.float32(row.min_p)))

    if row.rule in BLENDED_RULES and BLENDED_RULES[row.rule].filters_teacher:
        used_p, used_q = p, filtered(q)
    else:
        used_p, used_q = p, q = filtered(p), q
    settings = {parameter.name: getattr(row, parameter.name) for parameter in row.rule.parameters}
    return Expected(student, teacher, p, q, *reference.RULES[row.rule](used_p, used_q, settings))

"""Rows that are hard on a solver: few tokens, log-ratios of hundreds, kinks, near-equal models, gaps in the support."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from tests.blend_rows import INF, Row

HUGE = torch.finfo(torch.bfloat16).max
LOGITS = st.one_of(
    st.floats(-5.0, 5.0, width=32),
    st.floats(-9000.0, 9000.0, width=32),
    st.floats(-HUGE, HUGE, width=32),
    st.sampled_from([0.0, -INF, 1e-20, 3e38, -3e38, 9000.0, -9000.0]),
)


def hostile_rows(count: int, vocab: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, list[Row]]:
    """Student and teacher logits, float32 [count, vocab], and rows with budgets from 1e-6 to 100 nats."""
    chance = np.random.default_rng(seed)
    kinds = [_independent, _near, _two_tokens, _steps, _one_token, _gaps, _vast, _shifted]
    pairs = [kinds[i % len(kinds)](chance, vocab) for i in range(count)]
    student, teacher = (torch.tensor(np.array(side), dtype=torch.float32) for side in zip(*pairs, strict=True))
    rows = [
        Row(
            epsilon=float(10 ** chance.uniform(-6, 2)),
            temperature=1.0 if i % 3 else float(np.float32(10 ** chance.uniform(-1, 1))),
            seed=i,
        )
        for i in range(count)
    ]
    return student, teacher, rows


def _normal(chance: np.random.Generator, vocab: int, low: float, high: float) -> np.ndarray:
    return chance.normal(size=vocab) * 10 ** chance.uniform(low, high)


def _independent(chance, vocab):
    return _normal(chance, vocab, -2, 1.5), _normal(chance, vocab, -2, 2.5)


def _near(chance, vocab):
    student = _normal(chance, vocab, -2, 1.5)
    return student, student + _normal(chance, vocab, -4, 0)


def _two_tokens(chance, vocab):
    student = _normal(chance, vocab, -2, 1.5)
    student[2:] = -np.inf
    return student, student + _normal(chance, vocab, -2, 2.5)


def _steps(chance, vocab):
    student = _normal(chance, vocab, -2, 1.5)
    return student, student + np.where(chance.random(vocab) < 0.3, -chance.uniform(0, 500), 0.0)


def _one_token(chance, vocab):
    student = _normal(chance, vocab, -2, 1.5)
    teacher = student.copy()
    teacher[0] += chance.uniform(-200, 200)
    student[1] -= chance.uniform(0, 300)
    return student, teacher


def _gaps(chance, vocab):
    student, teacher = chance.normal(size=vocab), 3.0 * chance.normal(size=vocab)
    teacher[chance.random(vocab) < 0.3] = student[chance.random(vocab) < 0.3] = -np.inf
    student[0] = teacher[0] = 0.0
    return student, teacher


def _vast(chance, vocab):
    return _normal(chance, vocab, 0, 4), _normal(chance, vocab, 0, 4)


def _shifted(chance, vocab):
    student = _normal(chance, vocab, -2, 1.5)
    return student, student + chance.integers(0, 2, size=vocab) * chance.uniform(0, 50)


@st.composite
def pairs(draw):
    """Student and teacher logits [1, V] of one dtype, each with something finite; often close to each other."""
    vocab = draw(st.integers(2, 6))
    student = draw(st.lists(LOGITS, min_size=vocab, max_size=vocab))
    kind = draw(st.sampled_from(["own", "near", "same"]))
    teacher = draw(st.lists(LOGITS, min_size=vocab, max_size=vocab))
    if kind != "own":
        size = 10.0 ** draw(st.floats(-20, 2)) if kind == "near" else 0.0
        teacher = [s + size * max(min(t, 5.0), -5.0) for s, t in zip(student, teacher, strict=True)]
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    rows = [torch.tensor([row], dtype=torch.float64).clamp(max=HUGE).to(dtype) for row in (student, teacher)]
    rows = [row.masked_fill(row.abs() == INF, -INF) for row in rows]
    for row in rows:
        if row.isneginf().all():
            row[0, 0] = 0.0
    return rows

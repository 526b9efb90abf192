"""One self-contained HTML page that shows rollouts side by side, each token shaded by beta.

A pure function of its records; no sglang, no network, no external asset. What models write is untrusted: every string
is escaped, and the page's policy lets nothing run but its own script, named by hash. The markup is in ``templates/``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment

from sglang_trb.display.completions import Totals, TracedCompletion, by_label, number, totals
from sglang_trb.display.templating import environment, script

BETA_LEVELS = 20
SHORT = 24
"""Prompts whose completions all have at most this many tokens share one table instead of a card each."""
SURPRISING = -5.0
"""Teacher log-probability (nats) below which a drawn token is underlined: under 0.7%."""
SPARK_POINTS = 300
SPARK_HEIGHT = 100

GLANCE = ("Rollouts", "Mean β", "ΣKL a rollout", "Mean teacher log-prob")
JUDGED = "Answered right"


@cache
def _templates() -> Environment:
    return environment("sglang_trb.display")


def page(completions: Sequence[TracedCompletion], title: str = "Rollouts inside a trust region", note: str = "") -> str:
    """Render completions as one HTML document.

    Args:
        completions: any number; those with equal ``prompt`` stand side by side, in the order given, and those with
            equal ``label`` are added up in the table on top.
        title: the page's heading (plain text).
        note: a line under the introduction, such as the models' names (plain text).

    Returns:
        The document; write it as UTF-8.
    """
    prompts: dict[str, list[TracedCompletion]] = {}
    for completion in completions:
        prompts.setdefault(completion.prompt, []).append(completion)
    short = {prompt: group for prompt, group in prompts.items() if all(len(c.pieces) <= SHORT for c in group)}
    labels = list(by_label(completion for group in short.values() for completion in group))
    rows = {label: totals(group) for label, group in by_label(completions).items()}
    judged = any(row.judged for row in rows.values())
    text, policy = script(_templates(), "page.js")
    return (
        _templates()
        .get_template("page.html.j2")
        .render(
            title=title,
            note=note,
            levels=BETA_LEVELS,
            surprising=SURPRISING,
            heads=("Policy", *GLANCE, *(JUDGED,) * judged),
            glance=list(_glance(rows, judged)),
            cards=[
                {"prompt": prompt, "completions": [shown(completion) for completion in group]}
                for prompt, group in prompts.items()
                if prompt not in short
            ],
            short_labels=labels,
            short=[
                {"prompt": prompt, "cells": [[shown(c) for c in by_label(group).get(label, [])] for label in labels]}
                for prompt, group in short.items()
            ],
            script=text,
            script_policy=policy,
        )
    )


def _glance(rows: dict[str, Totals], judged: bool) -> Iterator[dict[str, Any]]:
    """A row for each policy: its cells are a name, a text, and the share of a bar or None."""
    worst = min((row.mean_teacher_logprob for row in rows.values() if row.mean_teacher_logprob is not None), default=0)
    for label, row in rows.items():
        teacher = row.mean_teacher_logprob
        pull = 1 if not worst else None if teacher is None else 1 - 0.9 * teacher / worst
        cells = [
            (f"{row.completions}", None),
            (number(row.mean_beta), _percent(row.mean_beta)),
            (number(row.sum_kl), None),
            (number(teacher), _percent(pull)),
        ]
        if judged:
            right = (
                (f"{row.correct} of {row.judged}", _percent(row.correct / row.judged)) if row.judged else ("–", None)
            )
            cells.append(right)
        named = zip((*GLANCE, JUDGED), cells, strict=False)
        yield {"label": label, "cells": [(name, text, share) for name, (text, share) in named]}


def _percent(share: float | None) -> float:
    return 100 * min(max(share or 0, 0), 1)


def shown(completion: TracedCompletion) -> dict[str, Any]:
    """What the template's macro ``completion`` shows of one, in `BETA_LEVELS` steps of shade."""
    total = totals([completion])
    return {
        "label": completion.label,
        "correct": completion.summary.get("correct"),
        "chips": [
            ("mean β", number(total.mean_beta)),
            ("ΣKL", number(total.sum_kl)),
            ("teacher log p", number(total.mean_teacher_logprob)),
            ("at β = 1", "–" if total.saturated is None else f"{total.saturated:.0%}"),
        ],
        "spark": _sparkline(completion),
        "tokens": list(_tokens(completion)),
    }


def _tokens(completion: TracedCompletion) -> Iterator[dict[str, str]]:
    its = completion.tokens
    columns = its.beta, its.kl, its.student_logprob, its.teacher_logprob, its.behavior_logprob
    for piece, beta, kl, student, teacher, mu in zip(completion.pieces, *columns, strict=True):
        level = round(min(max(beta, 0), 1) * BETA_LEVELS) if math.isfinite(beta) else 0
        classes = ["t", f"b{level}"] + ["odd"] * (teacher < SURPRISING) + ["part"] * (not piece)
        classes += ["mark"] * bool(re.fullmatch(r"<\W?\w+\W?>", piece))
        values = (f"{beta:.3f}", f"{kl:.4g}", f"{student:.2f}", f"{teacher:.2f}", f"{mu:.2f}")
        yield {"classes": " ".join(classes), "numbers": " ".join(values), "text": piece}


def _sparkline(completion: TracedCompletion) -> dict[str, Any]:
    """KL at each token (the highest of a stretch, where there are more tokens than points) under the budget line."""
    stride = math.ceil(len(completion.tokens.kl) / SPARK_POINTS) or 1
    finite = [value if math.isfinite(value) else 0.0 for value in completion.tokens.kl]
    points = [max(finite[i : i + stride]) for i in range(0, len(finite), stride)]
    budget, peak = completion.budget, max(finite, default=0.0)
    scale = SPARK_HEIGHT * 0.9 / (max(peak, budget or 0.0) or 1.0)
    return {
        "width": max(len(points), 1),
        "height": SPARK_HEIGHT,
        "points": len(points),
        "steps": " ".join(f"V{SPARK_HEIGHT - value * scale:.1f}H{i + 1}" for i, value in enumerate(points)),
        "budget": f"{SPARK_HEIGHT - budget * scale:.1f}" if budget else None,
        "peak": number(peak),
        "limit": "no budget" if budget is None else f"budget {budget:g}",
    }

"""One self-contained HTML page that shows rollouts side by side, each token shaded by beta.

A pure function of its records; no sglang, no network, no external asset. What models write is untrusted: every string
is escaped, and the page's policy lets nothing run but its own script, named by hash.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from html import escape

from sglang_trb.display.assets import BETA_LEVELS, SCRIPT, STYLE
from sglang_trb.display.completions import Totals, TracedCompletion, by_label, number, totals, visible

SHORT = 24
"""Prompts whose completions all have at most this many tokens share one table instead of a card each."""
SURPRISING = -5.0
"""Teacher log-probability (nats) below which a drawn token is underlined: under 0.7%."""
SPARK_POINTS = 300
SPARK_HEIGHT = 100

GLANCE = ("Rollouts", "Mean β", "ΣKL a rollout", "Mean teacher log-prob")
JUDGED = "Answered right"
LEAD = """Each token is shaded by <b>β</b>, how far its law was moved from the student’s to the teacher’s. The blend goes
as far as the budget <b>ε</b> lets it: KL(μ ∥ student) ≤ ε at every token. Point at a token to see its numbers."""

FOOTER = """<p>μ ∝ p<sup>1−β</sup> q<sup>β</sup>, with p the student, q the teacher, and β the largest value in [0, 1] that keeps
KL(μ ∥ p) ≤ ε. ε = 0 is the student, bit for bit. β = 1 (“at β = 1”) means that the teacher itself fits the budget.
Log-probabilities are of the drawn token, in nats, at temperature 1.</p>
<p>Keyboard: <kbd>Tab</kbd> to a text, <kbd>←</kbd> <kbd>→</kbd> from token to token, <kbd>Esc</kbd> to close.</p>"""


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
    cards = "".join(_prompt_cards(prompt, group) for prompt, group in prompts.items() if prompt not in short)
    script_hash = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'; base-uri 'none'"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{_text(title)}</title><style>{STYLE}</style></head><body>
<header><h1>{_text(title)}</h1><p class="lead">{LEAD}</p>{f'<p class="lead">{_text(note)}</p>' if note else ""}
{_legend()}{_glance(completions)}</header>
<main>{cards}{_short_table(short)}</main>
<footer>{FOOTER}</footer><div id="tip" role="status" aria-live="polite" hidden></div>
<script>{SCRIPT}</script></body></html>
"""


def _legend() -> str:
    ramp = "".join(f'<i class="t b{level}"></i>' for level in range(0, BETA_LEVELS + 1, 2))
    return f"""<ul class="legend"><li>β = 0, the student <span class="ramp" aria-hidden="true">{ramp}</span>
1, the teacher</li><li><span class="odd">underlined</span> surprises the teacher: log q &lt; {number(SURPRISING, 0)}</li></ul>"""


def _glance(completions: Sequence[TracedCompletion]) -> str:
    rows = {label: totals(group) for label, group in by_label(completions).items()}
    judged = any(row.judged for row in rows.values())
    worst = min((row.mean_teacher_logprob for row in rows.values() if row.mean_teacher_logprob is not None), default=0)
    body = "".join(_glance_row(label, row, worst, judged) for label, row in rows.items())
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Law", *GLANCE, *(JUDGED,) * judged))
    return f'<div class="glance card"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _glance_row(label: str, row: Totals, worst: float, judged: bool) -> str:
    teacher = row.mean_teacher_logprob
    cells = [
        f"{row.completions}",
        f"{number(row.mean_beta)}{_bar(row.mean_beta)}",
        number(row.sum_kl),
        f"{number(teacher)}{_bar(1 if not worst else None if teacher is None else 1 - 0.9 * teacher / worst)}",
    ]
    if judged:
        cells.append(f"{row.correct} of {row.judged}{_bar(row.correct / row.judged)}" if row.judged else "–")
    named = zip((*GLANCE, JUDGED), cells, strict=False)
    data = "".join(f'<td data-name="{name}">{cell}</td>' for name, cell in named)
    return f'<tr><th scope="row">{_text(label)}</th>{data}</tr>'


def _bar(share: float | None) -> str:
    width = 100 * min(max(share or 0, 0), 1)
    return f'<svg class="bar" aria-hidden="true"><rect width="{width:.1f}%" height="5"/></svg>'


def _prompt_cards(prompt: str, group: list[TracedCompletion]) -> str:
    columns = "".join(_card(completion) for completion in group)
    return f'<article><h2 class="prompt" dir="auto">{_text(prompt)}</h2><div class="columns">{columns}</div></article>'


def _card(completion: TracedCompletion) -> str:
    total = totals([completion])
    chips = {
        "mean β": number(total.mean_beta),
        "ΣKL": number(total.sum_kl),
        "teacher log p": number(total.mean_teacher_logprob),
        "at β = 1": "–" if total.saturated is None else f"{total.saturated:.0%}",
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in chips.items())
    return f"""<section class="completion card"><h3>{_text(completion.label)}{_verdict(completion)}
<small>{len(completion.pieces)} tokens</small></h3><dl class="chips">{items}</dl>{_sparkline(completion)}
{_tokens(completion)}</section>"""


def _short_table(prompts: dict[str, list[TracedCompletion]]) -> str:
    """Rows are prompts, columns are laws; several samples of one law share a cell."""
    if not prompts:
        return ""
    labels = list(by_label(completion for group in prompts.values() for completion in group))
    head = "".join(f'<th scope="col">{_text(label)}</th>' for label in labels)
    rows = []
    for prompt, group in prompts.items():
        drawn = by_label(group)
        cells = ["<br>".join(_tokens(c) + _verdict(c) for c in drawn.get(label, [])) for label in labels]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row" dir="auto">{_text(prompt)}</th>{row}</tr>')
    return f"""<article class="short card"><table><thead><tr><th scope="col">Short answers</th>{head}</tr></thead>
<tbody>{"".join(rows)}</tbody></table></article>"""


def _verdict(completion: TracedCompletion) -> str:
    correct = completion.summary.get("correct")
    if correct is None:
        return ""
    return ' <span class="good" title="right">✓</span>' if correct else ' <span class="bad" title="wrong">✗</span>'


def _tokens(completion: TracedCompletion) -> str:
    rows = zip(
        completion.pieces,
        completion.tokens.beta,
        completion.tokens.kl,
        completion.tokens.student_logprob,
        completion.tokens.teacher_logprob,
        completion.tokens.behavior_logprob,
        strict=True,
    )
    spans = "".join(_token(*row) for row in rows)
    return f'<p class="text" dir="auto" tabindex="0" role="group" aria-label="{_text(completion.label)}">{spans}</p>'


def _token(piece: str, beta: float, kl: float, student: float, teacher: float, mu: float) -> str:
    level = round(min(max(beta, 0), 1) * BETA_LEVELS) if math.isfinite(beta) else 0
    classes = ["t", f"b{level}"] + ["odd"] * (teacher < SURPRISING) + ["part"] * (not piece)
    classes += ["mark"] * bool(re.fullmatch(r"<\W?\w+\W?>", piece))
    values = (f"{beta:.3f}", f"{kl:.4g}", f"{student:.2f}", f"{teacher:.2f}", f"{mu:.2f}")
    text = _text(piece).replace("\n", '<i class="break">↵</i>\n').replace("\t", '<i class="break">⇥</i>\t')
    return f'<span class="{" ".join(classes)}" data-v="{" ".join(values)}">{text}</span>'


def _sparkline(completion: TracedCompletion) -> str:
    """KL at each token (the highest of a stretch, where there are more tokens than points) under the budget line."""
    stride = math.ceil(len(completion.tokens.kl) / SPARK_POINTS) or 1
    finite = [value if math.isfinite(value) else 0.0 for value in completion.tokens.kl]
    points = [max(finite[i : i + stride]) for i in range(0, len(finite), stride)]
    budget, peak = completion.budget, max(finite, default=0.0)
    scale = SPARK_HEIGHT * 0.9 / (max(peak, budget or 0.0) or 1.0)
    steps = " ".join(f"V{SPARK_HEIGHT - value * scale:.1f}H{i + 1}" for i, value in enumerate(points))
    line = ""
    if budget:
        level = f"{SPARK_HEIGHT - budget * scale:.1f}"
        line = f'<path class="budget" d="M0 {level}H{len(points)}"/>'
    limit = "no budget" if budget is None else f"budget {budget:g}"
    return f"""<figure><svg class="spark" viewBox="0 0 {max(len(points), 1)} {SPARK_HEIGHT}" preserveAspectRatio="none"
role="img" aria-label="KL per token, at most {number(peak)} nats, {limit}"><path class="base" d="M0 {SPARK_HEIGHT}H{len(points)}"/>
<path class="area" d="M0 {SPARK_HEIGHT}{steps}V{SPARK_HEIGHT}Z"/><path class="line" d="M0 {SPARK_HEIGHT}{steps}"/>{line}</svg>
<figcaption><span>KL per token, max {number(peak)}</span><span>{limit}</span></figcaption></figure>"""


def _text(text: str) -> str:
    return escape(visible(text))

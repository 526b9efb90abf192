"""Completions in a terminal: text shaded by beta, a table per prompt, a table of totals."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from sglang_trb.display.completions import TracedCompletion, by_label, number, totals, visible

TEAL = (13, 148, 136)
"""Background at beta = 1; 0 has none, values between are mixed with black."""
PLAIN_BELOW = 0.05


def shaded(completion: TracedCompletion) -> Text:
    """The text, each token on a background as strong as its beta; special tokens dimmed."""
    text = Text()
    for piece, beta in zip(completion.pieces, completion.tokens.beta, strict=True):
        if not beta >= PLAIN_BELOW:
            style = ""
        else:
            red, green, blue = (round(channel * (0.15 + 0.85 * min(beta, 1.0))) for channel in TEAL)
            style = f"white on rgb({red},{green},{blue})"
        text.append(visible(piece), style="dim" if piece.startswith("<|") else style)
    return text


def prompt_table(prompt: str, completions: Sequence[TracedCompletion]) -> Table:
    """One prompt's completions, a row each."""
    table = Table(title=Text(visible(prompt)), title_justify="left", show_lines=True, expand=True)
    table.add_column("policy", no_wrap=True)
    table.add_column("text", ratio=1)
    for head in ("mean β", "ΣKL", "teacher log p"):
        table.add_column(head, justify="right", no_wrap=True)
    for completion in completions:
        total = totals([completion])
        numbers = (total.mean_beta, total.sum_kl, total.mean_teacher_logprob)
        table.add_row(completion.label, shaded(completion), *map(number, numbers))
    return table


def totals_table(title: str, completions: Sequence[TracedCompletion]) -> Table:
    """One row per behaviour policy; a column of right answers where some were judged."""
    rows = {label: totals(group) for label, group in by_label(completions).items()}
    judged = any(row.judged for row in rows.values())
    table = Table(title=title, title_justify="left")
    table.add_column("policy", no_wrap=True)
    for head in ("n", "mean β", "β = 1", "ΣKL/rollout", "teacher log p", *("right",) * judged):
        table.add_column(head, justify="right")
    for label, row in rows.items():
        cells = [str(row.completions), number(row.mean_beta)]
        cells += ["–" if row.saturated is None else f"{row.saturated:.0%}"]
        cells += [number(row.sum_kl), number(row.mean_teacher_logprob)]
        cells += [f"{row.correct}/{row.judged}" if row.judged else "–"] * judged
        table.add_row(label, *cells)
    return table

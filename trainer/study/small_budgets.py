"""App. F as the page shows it: a picture of what budgets buy, and a row for each budget."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from sglang_trb.display.completions import number
from trainer.report.charts import Chart
from trainer.report.draw import FONT, number_values
from trainer.report.style import LINE, SOFT
from trainer.study.drawing import PLOT_HEIGHT, Picture, colour, finish, panels_in
from trainer.study.theory import Band, Estimate, Theory

TITLE = "What a small budget buys"
_HEADS = (
    "epsilon", "tokens", "used", "share_at_beta_1", "largest_kl_over_epsilon_minus_1",
    "beta_ratio", "beta_ratio_low", "beta_ratio_high", "gain", "gain_low", "gain_high",
    "first_order_gain", "first_order_gain_low", "first_order_gain_high",
    "gain_ratio", "gain_ratio_low", "gain_ratio_high",
)  # fmt: skip


def small_budgets(found: Theory) -> Picture:
    """Gain, its first order and the cost against the budget (nats, logarithmic), over the ratios to first order."""
    rows = [_row(band) for band in found.bands]
    used = [band for band in found.bands if band.used]
    budgets = [band.epsilon for band in used]

    def draw() -> Figure:
        names = ["gain", "first order, √(2εσ²)", "β / √(2ε/σ²)"]
        figure, (above, below) = panels_in(1.5 * PLOT_HEIGHT, 2, TITLE, names)
        above.set_xscale("log")
        above.set_yscale("log")
        above.set_xlim(budgets[0] / 1.3, budgets[-1] * 1.3)  # of one budget too
        above.plot(budgets, budgets, color=SOFT, linewidth=1, linestyle=":")
        corner = {"xytext": (-4, -12), "textcoords": "offset points", "ha": "right", "size": FONT - 2, "color": SOFT}
        above.annotate("the cost, ε", (budgets[-1], budgets[-1]), **corner)
        above.plot(budgets, [band.predicted.mean for band in used], color=colour(1))
        _points(above, budgets, [band.gain for band in used], 0)
        _points(below, budgets, [band.gain_ratio for band in used], 0)
        _points(below, budgets, [band.beta_ratio for band in used], 2)
        below.axhline(1, color=SOFT, linewidth=0.8, linestyle=":")
        for axis, name in ((above, "nats a token"), (below, "to first order")):
            axis.set_ylabel(name, size=FONT - 1)
            axis.grid(color=LINE)
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
        above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        above.yaxis.set_minor_formatter(NullFormatter())
        number_values(below)
        figure.align_ylabels([above, below])
        return finish(figure, below, "budget ε, nats a token", grid="both")

    caption = (
        "Over tokens with 0 < β < 1. Above: how much nearer the blend is to the teacher than the student is, "
        "KL(p‖q) − KL(μ‖q), its first order, and what it costs, KL(μ‖p) = ε. Below: gain and β over their first order. "
        "95% intervals over rollouts (App. F)."
    )
    return Picture(Chart("small_budgets", TITLE, caption), _HEADS, rows if used else [], draw)


def budget_rows(found: Theory) -> Iterator[dict[str, Any]]:
    """The picture's numbers as text."""
    for band in found.bands:
        yield {
            "epsilon": f"{band.epsilon:.3g}",
            "tokens": f"{band.tokens:,}",
            "used": f"{band.used:,} used",
            "at_one": f"{band.at_one:.0%}",
            "constraint": f"{band.constraint:.2g}",
            "beta": _text(band.beta_ratio),
            "gain": _text(band.gain),
            "predicted": number(band.predicted.mean, 3),
            "ratio": _text(band.gain_ratio),
        }


def _row(band: Band) -> tuple[Any, ...]:
    estimates = (band.beta_ratio, band.gain, band.predicted, band.gain_ratio)
    values = [value for e in estimates for value in (e.mean, e.low, e.high)]
    return (
        band.epsilon, band.tokens, band.used, band.at_one, band.constraint,
        *(value if math.isfinite(value) else None for value in values),
    )  # fmt: skip


def _points(axis: Any, budgets: list[float], estimates: list[Estimate], place: int) -> None:
    axis.plot(budgets, [e.mean for e in estimates], color=colour(place), marker="o", markersize=3, linewidth=0.8)
    axis.vlines(budgets, [e.low for e in estimates], [e.high for e in estimates], color=colour(place), linewidth=2)


def _text(found: Estimate) -> dict[str, str]:
    ends = f"[{number(found.low, 3)}, {number(found.high, 3)}]" if math.isfinite(found.low) else ""
    return {"mean": number(found.mean, 3), "range": ends}

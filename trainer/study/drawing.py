"""What the pictures of a study have in common: their size, title, legend and axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from trainer.report.charts import Chart
from trainer.report.draw import FONT, STYLES, images, number_values
from trainer.report.style import SERIES

WIDTH, PLOT_HEIGHT, PANEL_GAP = 4.4, 2.3, 0.14
"""Inches."""
LONGEST_LABEL = 34


@dataclasses.dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes:
        chart: its name, title and caption.
        heads, rows: the numbers that it shows.
        draw: makes it.
    """

    chart: Chart
    heads: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    draw: Callable[[], Figure]

    def images(self) -> tuple[bytes, str]:
        """A PNG, and an SVG element for the page."""
        return images(self.draw, self.chart)


def axes_in(plot_height: float, title: str, names: Sequence[str], left: float = 0.62) -> tuple[Figure, Any]:
    """A figure with one pair of axes under its title and legend; inches."""
    figure, (axis,) = panels_in(plot_height, 1, title, names, left)
    return figure, axis


def panels_in(
    plot_height: float, panels: int, title: str, names: Sequence[str], left: float = 0.62
) -> tuple[Figure, list[Any]]:
    """A figure with axes under one another, which share the horizontal one; ``plot_height`` inches of all together."""
    columns = 2 if max(map(len, names), default=0) > 12 else 3
    legend_rows = -(-len(names) // columns)
    top = 0.42 + 0.2 * legend_rows
    height = plot_height + top + 0.46
    figure = Figure(figsize=(WIDTH, height))
    gap = PANEL_GAP * panels / (plot_height - PANEL_GAP * (panels - 1))
    figure.subplots_adjust(left / WIDTH, 0.46 / height, 1 - 0.16 / WIDTH, 1 - top / height, hspace=gap)
    figure.text(0.1 / WIDTH, 1 - 0.08 / height, title, size=FONT + 2, weight="bold", va="top")
    if names:
        lines = [Line2D([], [], color=colour(i), linestyle=style(i)) for i in range(len(names))]
        figure.legend(
            lines, names, loc="upper left", bbox_to_anchor=(0.04 / WIDTH, 1 - 0.28 / height), ncols=columns,
            frameon=False, borderaxespad=0, handlelength=1.6, handletextpad=0.5, columnspacing=1.2, labelspacing=0.35,
        )  # fmt: skip
    return figure, list(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0])


def finish(figure: Figure, axis: Any, below: str, grid: str = "y") -> Figure:
    """Grid, numbers, and what the horizontal axis shows."""
    axis.grid(axis=grid)
    if grid == "y":
        number_values(axis)
    if below == "step":
        axis.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True))
    axis.set_xlabel(below, loc="right", labelpad=1, size=FONT - 1)
    return figure


def colour(place: int) -> str:
    """Of the line at a place of the legend."""
    return SERIES[place % len(SERIES)]


def style(place: int) -> Any:
    """Solid, and dashed once the colours are used up."""
    return STYLES[place // len(SERIES) % len(STYLES)]


def short(name: str) -> str:
    """A name that fits beside the axes."""
    return name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"

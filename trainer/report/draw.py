"""Draws a chart with matplotlib, once as a PNG and once as SVG that follows the page's colours."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from trainer.report.charts import Chart, Panel, Scale, ScoreChart, TimeChart
from trainer.report.runs import Run
from trainer.report.style import COLOURS, INK, LINE, SERIES, SHADE, SOFT
from trainer.report.times import draw_times, time_colours

WIDTH, PLOT_HEIGHT = 4.4, 2.15
LEFT, RIGHT, BOTTOM, TITLE, LEGEND_ROW, PANEL_GAP = 0.55, 0.16, 0.44, 0.52, 0.2, 0.36
"""Inches. The legend stands above the axes, never over the data; each of its rows makes the chart taller."""
DPI = 200
LONGEST_UNSMOOTHED = 100
STYLES: tuple[Any, ...] = ("-", (0, (4, 2)))
FONT = 9
SETTINGS = {
    "font.size": FONT,
    "text.parse_math": False,  # a run's name may hold a $
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": FONT,
    "axes.titlecolor": SOFT,
    "axes.titlelocation": "left",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "lines.linewidth": 1.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "trb",
}

Legend = list[tuple[Any, str]]


def render(chart: Chart, runs: Sequence[Run]) -> tuple[bytes, str]:
    """Draw one chart.

    Returns:
        As `images`.
    """
    return images(lambda: _draw(chart, runs), chart)


def images(draw: Callable[[], Figure], chart: Chart) -> tuple[bytes, str]:
    """A figure that ``draw`` makes in this module's style.

    Returns:
        A PNG on white, and an ``<svg>`` element without background for a page that defines `COLOURS`' variables.
    """
    png, svg = io.BytesIO(), io.StringIO()
    with matplotlib.rc_context(SETTINGS):
        figure = draw()
        FigureCanvasAgg(figure)
        figure.savefig(png, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
        FigureCanvasSVG(figure)
        nameless = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(svg, format="svg", transparent=True, metadata=nameless)
    return png.getvalue(), _for_page(svg.getvalue(), chart)


def _draw(chart: Chart, runs: Sequence[Run]) -> Figure:
    legend = _legend(chart, runs)
    columns = _columns(legend)
    rows = -(-len(legend) // columns)
    panels = max(1, len(chart.panels))
    top = TITLE + LEGEND_ROW * rows
    height = top + PLOT_HEIGHT + BOTTOM
    figure = Figure(figsize=(WIDTH, height))
    plot = (PLOT_HEIGHT - PANEL_GAP * (panels - 1)) / panels
    figure.subplots_adjust(LEFT / WIDTH, BOTTOM / height, 1 - RIGHT / WIDTH, 1 - top / height, hspace=PANEL_GAP / plot)
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    figure.text(0.1 / WIDTH, 1 - 0.08 / height, chart.title, size=FONT + 2, weight="bold", va="top")
    if legend:
        handles, labels = zip(*legend, strict=True)
        corner = (0.04 / WIDTH, 1 - 0.26 / height)
        figure.legend(
            handles, labels, loc="upper left", bbox_to_anchor=corner, ncols=columns, frameon=False, borderaxespad=0,
            handlelength=1.6, handletextpad=0.5, columnspacing=1.2, labelspacing=0.35,
        )  # fmt: skip
    _fill(chart, runs, axes)
    return figure


def _fill(chart: Chart, runs: Sequence[Run], axes: Any) -> None:
    if isinstance(chart, TimeChart):
        draw_times(axes[0], runs)
        if len(runs) > 1:
            return
    elif isinstance(chart, ScoreChart):
        _draw_scores(axes[0], chart, runs)
    else:
        for axis, panel in zip(axes, chart.panels, strict=True):
            _draw_panel(axis, panel, runs)
    last = max(run.last_step for run in runs)
    for axis in axes:
        axis.grid(axis="y")
        axis.set_xlim(0, max(last, 1))
        axis.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True))
        _mark_warmup(axis, chart, runs)
    axes[-1].set_xlabel("step", loc="right", labelpad=1)


def _draw_panel(axis: Any, panel: Panel, runs: Sequence[Run]) -> None:
    window = running_window(max(run.last_step for run in runs))
    axis.set_title(f"{panel.title}, running mean of {window} steps" if window > 1 else panel.title, pad=4)
    positive = False
    for i, run in enumerate(runs):
        for j, field in enumerate(panel.fields):
            steps, values = run.series(field)
            positive |= any(value > 0 for value in values)
            colour, marker = _colour(runs, i, j), "o" if len(values) == 1 else None
            means = running_mean(values, window)
            axis.plot(steps, means, color=colour, linestyle=STYLES[j], marker=marker, markersize=3)
            if window > 1:
                axis.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
    if panel.scale is Scale.LOG and positive:
        axis.set_yscale("log", nonpositive="mask")
        axis.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))
        axis.yaxis.set_minor_formatter(NullFormatter())
        return
    number_values(axis)
    if panel.scale is Scale.FROM_ZERO:
        axis.set_ylim(bottom=0)


def _draw_scores(axis: Any, chart: ScoreChart, runs: Sequence[Run]) -> None:
    axis.set_title("share of correct answers", pad=4)
    for i, run in enumerate(runs):
        scores = run.scores(chart.benchmark)
        colour = _colour(runs, i, 0)
        steps = [score.step for score in scores]
        values = [score.value for score in scores]
        axis.plot(steps, values, color=colour, marker="o", markersize=3.5, clip_on=False, zorder=3)  # over the axes
        ranged = [score for score in scores if score.low is not None and score.high is not None]
        ends = [score.step for score in ranged], [score.low for score in ranged], [score.high for score in ranged]
        if len(ranged) == 1:
            axis.vlines(*ends, color=colour, linewidth=3, alpha=0.3)
        axis.fill_between(*ends, color=colour, alpha=0.16, linewidth=0)
    number_values(axis)
    axis.set_ylim(max(axis.get_ylim()[0], 0), min(axis.get_ylim()[1], 1.02))


def number_values(axis: Any) -> None:
    """A few ticks, written as numbers are elsewhere in the report."""
    axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}".replace("-", "−")))


def _power_of_ten(value: float, _: int) -> str:
    exponent = round(math.log10(value))
    return f"1e{exponent}".replace("-", "−") if abs(exponent) > 2 else f"{value:g}"


def running_window(steps: int) -> int:
    """How many steps a curve is averaged over: one up to 100 steps, an odd number near a fortieth of a longer run."""
    return 1 if steps <= LONGEST_UNSMOOTHED else 2 * round(steps / 80) + 1


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of what lies up to half a window to both sides, less at the ends: a straight line stays as it is.

    NaN stays NaN, and is left out of its neighbours' means.
    """
    means = []
    for i, value in enumerate(values):
        half = min(window // 2, i, len(values) - 1 - i)
        near = [v for v in values[i - half : i + half + 1] if not math.isnan(v)]
        means.append(value if math.isnan(value) else math.fsum(near) / len(near))
    return means


def _colour(runs: Sequence[Run], run: int, field: int) -> str:
    """Colours tell runs apart, or, where there is one run, its fields."""
    return SERIES[run if len(runs) > 1 else field]


def _is_drawn(chart: Chart, run: Run) -> bool:
    return any(field in row for field in chart.fields() for row in run.rows)


def _common_warmup(runs: Sequence[Run]) -> tuple[int, int] | None:
    spans = {run.warmup() for run in runs} - {None}
    return spans.pop() if len(spans) == 1 else None


def _mark_warmup(axis: Any, chart: Chart, runs: Sequence[Run]) -> None:
    """Shade where ε > 0; where the runs differ in that, a dotted line at the end of each run's."""
    if span := _common_warmup(runs):
        axis.axvspan(*span, color=SHADE, zorder=0, linewidth=0)
        return
    for i, run in enumerate(runs):
        if (span := run.warmup()) and _is_drawn(chart, run):
            axis.axvline(span[1], color=_colour(runs, i, 0), linestyle=":", linewidth=1, zorder=1)


def _legend(chart: Chart, runs: Sequence[Run]) -> Legend:
    several = len(runs) > 1
    entries: Legend = []
    if isinstance(chart, TimeChart):
        entries += [(Patch(color=colour, linewidth=0), what) for what, colour in time_colours(runs).items()]
        if several:
            return entries
    elif several:
        # matplotlib leaves labels out that begin with an underscore.
        names = [(i, re.sub("^_", " _", run.name)) for i, run in enumerate(runs) if _is_drawn(chart, run)]
        entries += [(Line2D([], [], color=SERIES[i]), name) for i, name in names]
    labels = [label for panel in chart.panels for label in panel.fields.values() if label]
    styled = [(STYLES[j], SOFT if several else SERIES[j]) for j in range(len(labels))]
    entries += [(Line2D([], [], linestyle=s, color=c), label) for (s, c), label in zip(styled, labels, strict=True)]
    if _common_warmup(runs):
        entries.append((Patch(facecolor=SHADE, edgecolor=LINE, linewidth=0.6), "ε > 0"))
    elif any(run.warmup() for run in runs):
        entries.append((Line2D([], [], color=SOFT, linestyle=":", linewidth=1), "end of ε > 0"))
    return entries


def _columns(legend: Legend) -> int:
    """One row if it fits, or else columns as wide as the longest label."""
    widths = [0.42 + 0.08 * len(label) for _, label in legend] or [0.0]
    room = WIDTH - 0.1
    return len(widths) if sum(widths) <= room else max(1, int(room / max(widths)))


def _for_page(svg: str, chart: Chart) -> str:
    """The element alone: fluid in size, coloured by the page's variables, ids that no other chart has."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{chart.name}-", svg)
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    label = escape(f"{chart.title}. {chart.caption}")
    return f'<svg {box[0]} role="img" aria-label="{label}">{svg[svg.index(">") + 1 :]}'

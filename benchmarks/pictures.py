"""Draws the pictures of docs/performance.md from the numbers in benchmarks/results/ and from the page's own table.

    python -m benchmarks.pictures [--check]

Each is one SVG, docs/pictures/performance_*.svg, light or dark as the reader's browser is. ``--check`` says whether
they are current, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from benchmarks.kernels import BATCHES
from trainer.report.charts import Chart
from trainer.report.draw import FONT, images
from trainer.report.style import DARK_SERIES, INK, SERIES, SOFT

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/performance.md"
PICTURES = ROOT / "docs/pictures"
RESULTS = ROOT / "benchmarks/results"
WIDTH, LEFT, RIGHT = 6.6, 0.75, 0.2
"""Inches, as all measures of the figures."""
PAPER = "#ffffff"
PIXELS_A_POINT = 4 / 3

MODELS = {
    "attention": SERIES[0],
    "linear layers": SERIES[2],
    "norms, rotary embedding, the models' Python": SERIES[4],
}
STEP = MODELS | {"the blend": SERIES[1], "the scheduler: batches, results, requests": SERIES[3]}
"""The rows of the page's table of a decode step, as they are drawn from left to right."""
OTHER = "not told apart in the table"


def drawings() -> dict[str, str]:
    """Each picture's name and SVG."""
    kernels, overlaps = (json.loads((RESULTS / f"{name}-cpu.json").read_text()) for name in ("kernels", "overlap"))
    shares = step_shares(PAGE.read_text(encoding="utf-8"))
    return {
        "performance_roofline": _svg("Roofline of the fused step on an H100", lambda: roofline(kernels)),
        "performance_step": _svg("Where a decode step goes", lambda: anatomy(shares)),
        "performance_overlap": _svg("Seconds of a training step", lambda: overlap(overlaps)),
    }


def roofline(plan: dict[str, Any]) -> Figure:
    """For each batch size, from both matrices read once to every planned pass read from memory."""
    of_a_row = plan["bytes_a_row"]["bf16"]
    speed = 64 * of_a_row["statistics"] / plan["roofline_us_at_64_rows"]["bf16"] / 1e6
    passes = sum(of_a_row.values()) / of_a_row["statistics"]
    figure, axis = _figure(
        "Roofline of the fused step on an H100: counted bytes, not run on a GPU",
        f"µs for B rows at {speed:.3g} TB/s, from one reading of both models' logits (dot) to {passes:g} of them (top)",
        [(Patch(color=SERIES[i], linewidth=0), name) for i, name in enumerate(plan["bytes_a_row"])],
        height=2.7,
    )
    bare = {"facecolor": PAPER, "linewidth": 0, "pad": 0.5}
    for i, dtype in enumerate(plan["bytes_a_row"]):
        for place, rows in enumerate(BATCHES):
            least, planned = bounds_us(plan, dtype, rows)
            at = place + 0.36 * (i - 0.5)
            axis.vlines(at, least, planned, color=SERIES[i], linewidth=7, alpha=0.35)
            axis.plot(at, least, "o", color=SERIES[i], markersize=7)
            for value, gap, side in ((least, -7, "top"), (planned, 3, "bottom")):
                text = {"textcoords": "offset points", "ha": "center", "va": side, "color": INK, "bbox": bare}
                axis.annotate(_number(value), (at, value), (0, gap), size="small", **text)
    axis.set_yscale("log")
    axis.margins(y=0.12)
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_xticks(range(len(BATCHES)), [f"B = {rows}" for rows in BATCHES])
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="y")
    return figure


def bounds_us(plan: dict[str, Any], dtype: str, rows: int) -> tuple[float, float]:
    """Microseconds of a batch: its rows read once, and read in each pass of the plan."""
    once = plan["roofline_us_at_64_rows"][dtype] * rows / 64
    of_a_row = plan["bytes_a_row"][dtype]
    return once, once * sum(of_a_row.values()) / of_a_row["statistics"]


def step_shares(page: str) -> dict[str, dict[str, int]]:
    """The page's table of a decode step: of each column, the percentages of its rows."""
    table = re.search(r"^\| \| before \| after \|\n\|[-|]+\n((?:\|.*\n)+)", page, re.M)
    assert table is not None, "docs/performance.md has no table of a decode step"
    found: dict[str, dict[str, int]] = {"before": {}, "after": {}}
    for line in table[1].splitlines():
        what, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for shares, cell in zip(found.values(), cells, strict=True):
            if cell:
                shares[what] = int(cell.removesuffix("%"))
    assert set(found["after"]) == set(STEP), f"rows {sorted(found['after'])}, drawn are {sorted(STEP)}"
    return found


def anatomy(shares: dict[str, dict[str, int]]) -> Figure:
    """A bar for each column of the table, and what of the last one is the models'."""
    figure, axis = _figure(
        "Where a decode step of the micro pair goes, on a CPU",
        "% of the scheduler's time by py-spy, before and after attention takes requests together",
        [(Patch(color=colour, linewidth=0), what) for what, colour in (STEP | {OTHER: SERIES[7]}).items()],
        height=1.25,
        columns=2,
    )
    for place, (column, parts) in enumerate(shares.items()):
        start = 0
        left_over = {OTHER: 100 - sum(parts.values())}
        for what, colour in (STEP | {OTHER: SERIES[7]}).items():
            share = (parts | left_over).get(what, 0)
            _segment(axis, place, start, share, colour, f"{share}" if share > 2 else "")
            start += share
        axis.text(-1.5, place, column, ha="right", va="center", color=INK)
    models = sum(shares["after"][what] for what in MODELS)
    axis.plot((0.2, 0.2, models - 0.2, models - 0.2), (1.36, 1.44, 1.44, 1.36), color=SOFT, linewidth=1)
    axis.text(models / 2, 1.5, f"student and teacher together: {models}", ha="center", va="top", color=SOFT)
    axis.set(xlim=(0, 100), ylim=(1.75, -0.4), xticks=[], yticks=[])
    axis.spines[["left", "bottom"]].set_visible(False)
    return figure


def overlap(result: dict[str, Any]) -> Figure:
    """Of each case, a bar without and one with overlap."""
    phases = {
        "rollout": ("waits for rollouts", SERIES[0]), "train": ("trains", SERIES[2]), "push": ("new weights", SERIES[3])
    }  # fmt: skip
    figure, axis = _figure(
        "What overlap saves: seconds of a training step on two CPU cores",
        "s is rollouts.max_staleness; medians over runs; gain: steps a minute, of each pair of runs",
        [(Patch(color=colour, linewidth=0), name) for name, colour in phases.values()],
        height=2.3,
    )
    place = 0.0
    for case in result["cases"].values():
        held = f"a larger student, answers held back {case['delay_s']:g} s" if case["delay_s"] else "the demo"
        axis.text(0, place - 0.42, held, va="bottom", color=INK)
        for s in (0, 1):
            start = 0.0
            for phase, (_, colour) in phases.items():
                seconds = case[f"max_staleness {s}"][phase]
                _segment(axis, place + s, start, seconds, colour, f"{seconds:.1f}" if seconds > 0.5 else "")
                start += seconds
            gain = ", ".join(f"{gain:.2f}" for gain in case["gains"])
            axis.text(start + 0.12, place + s, f"gain {gain}" if s else "", va="center", color=SOFT)
            axis.text(-0.15, place + s, f"s = {s}", ha="right", va="center", color=INK)
        place += 2.7
    axis.set(xlim=(0, None), ylim=(place - 1.2, -0.95), yticks=[])
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x")
    return figure


def _segment(axis: Any, place: float, start: float, length: float, colour: str, text: str) -> None:
    axis.barh(place, length, 0.62, left=start, color=colour, linewidth=0)
    axis.text(start + length / 2, place, text, ha="center", va="center", color=PAPER, weight="bold")


def _figure(
    title: str, subtitle: str, legend: Sequence[tuple[Any, str]], *, height: float, columns: int = 8
) -> tuple[Figure, Any]:
    """A figure whose one axis is ``height`` high, with title, subtitle and legend above it."""
    top, bottom = 0.56 + 0.2 * -(-len(legend) // columns), 0.26
    whole = top + height + bottom
    figure = Figure(figsize=(WIDTH, whole))
    axis = figure.add_axes((LEFT / WIDTH, bottom / whole, 1 - (LEFT + RIGHT) / WIDTH, height / whole))
    figure.text(0.1 / WIDTH, 1 - 0.08 / whole, title, size=FONT + 2, weight="bold", va="top")
    figure.text(0.1 / WIDTH, 1 - 0.29 / whole, subtitle, color=SOFT, va="top")
    handles, names = zip(*legend, strict=True)
    figure.legend(
        handles, names, loc="upper left", bbox_to_anchor=(0.1 / WIDTH, 1 - 0.5 / whole), ncols=columns, frameon=False,
        borderaxespad=0, borderpad=0, handlelength=1.2, handletextpad=0.5, columnspacing=1.4, labelspacing=0.35,
    )  # fmt: skip
    return figure, axis


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _svg(title: str, draw: Any) -> str:
    """A file of its own, with its paper and with the colours of both schemes."""
    _, element = images(draw, Chart("performance", title, "", ()))
    element = element.replace(PAPER, "var(--card)")
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', element)
    assert box is not None
    width, height = (round(PIXELS_A_POINT * float(side)) for side in box.groups())
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    element = element.replace("<svg ", f'<svg {names} width="{width}" height="{height}" ', 1)
    paper = f'<style>{_palette()}</style><rect width="100%" height="100%" style="fill: var(--card)"/>'
    return re.sub(r"[ \t]+$", "", element.replace(">", f">\n{paper}", 1), flags=re.M).strip() + "\n"


def _palette() -> str:
    """The variables of the report's page, light and dark."""
    sheet = (ROOT / "sglang_trb/display/templates/page.css").read_text(encoding="utf-8")
    schemes = []
    for block, series in zip(sheet.split("@media")[:2], (SERIES, DARK_SERIES), strict=True):
        colours = dict(re.findall(r"--(card|ink|soft|line): (#\w+)", block))
        colours |= {f"s{i}": colour for i, colour in enumerate(series)}
        schemes.append(":root{" + ";".join(f"--{name}:{colour}" for name, colour in colours.items()) + "}")
    return f"{schemes[0]}@media (prefers-color-scheme:dark){{{schemes[1]}}}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the pictures are current")
    arguments = parser.parse_args()
    old = 0
    for name, svg in drawings().items():
        path = PICTURES / f"{name}.svg"
        current = path.is_file() and path.read_text(encoding="utf-8") == svg
        if arguments.check:
            print(f"{path.relative_to(ROOT)} is {'current' if current else 'old: run python -m benchmarks.pictures'}")
            old += not current
        else:
            path.write_text(svg, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return int(old > 0)


if __name__ == "__main__":
    sys.exit(main())

"""The report of finished or running runs: curves as PNG files and one self-contained HTML page.

Only reads the run folders; a run may go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sglang_trb.errors import InvalidParameter
from trainer.atomic import write_file
from trainer.report.charts import charts_for
from trainer.report.draw import render
from trainer.report.page import page
from trainer.report.runs import NothingToReport, Run, read_runs
from trainer.report.style import SERIES

__all__ = ["NothingToReport", "Run", "read_runs", "write_report"]

PAGE = "index.html"


def write_report(run_folders: Sequence[Path], out: Path) -> Path:
    """Draw every curve that the runs have values for, and the page that holds them.

    Args:
        run_folders: folders with a ``metrics.jsonl`` and perhaps a ``run.json``; several are overlaid, named by folder.
        out: where the files go, made if need be: ``index.html`` and a PNG per chart. Each is replaced atomically.

    Returns:
        The page.

    Raises:
        InvalidParameter: more runs than colours.
        NothingToReport: a folder holds no run, or none of the runs has recorded a step.
        RecordsBroken, SettingsBroken: a file of a run is damaged; the message names the place.
        OSError: a file cannot be read or written.
    """
    if len(run_folders) > len(SERIES):
        raise InvalidParameter("run folders", f"{len(run_folders)} folders", f"at most {len(SERIES)}, to be told apart")
    runs = read_runs(run_folders)
    out.mkdir(parents=True, exist_ok=True)
    drawn = []
    for chart in charts_for(runs):
        png, svg = render(chart, runs)
        write_file(out / f"{chart.name}.png", png)
        drawn.append((chart, svg))
    write_file(out / PAGE, page(runs, drawn).encode())
    return out / PAGE

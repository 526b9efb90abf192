"""``trb report``: curves and a page of one or several runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.report import write_report

DESCRIPTION = """Draw the curves of runs (folders that trb train writes) and put them on one page, each run a line."""


def run(argv: list[str]) -> int:
    """Run ``trb report``."""
    parser = argparse.ArgumentParser("trb report", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: report/ in the first run's folder")
    arguments = parser.parse_args(argv)
    page = write_report(arguments.runs, arguments.out or arguments.runs[0] / "report")
    print(page)
    return 0

"""``trb report``: curves and a page of one or several runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.report import write_report

DESCRIPTION = """Draw the curves of runs (folders that trb train writes) and put them on one page, each run a line. The
folder of a study (trb study) gives its table and pictures, as far as the study is."""


def run(argv: list[str]) -> int:
    """Run ``trb report``."""
    parser = argparse.ArgumentParser("trb report", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or one of a study")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: report/ in the first folder")
    arguments = parser.parse_args(argv)
    from trainer.study.page import write_study_report
    from trainer.study.results import is_study

    if len(arguments.runs) == 1 and is_study(arguments.runs[0]):
        print(write_study_report(arguments.runs[0], arguments.out))
        return 0
    page = write_report(arguments.runs, arguments.out or arguments.runs[0] / "report")
    print(page)
    return 0

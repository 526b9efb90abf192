"""``trb study``: a whole comparison of methods from one file; run again, it goes on where it was stopped."""

from __future__ import annotations

import argparse
import sys
import time

from trainer.cli import stop_on_sigterm
from trainer.config.file import WrongConfig
from trainer.text import duration

DESCRIPTION = """Train every family of a study, with every setting of its grid and every seed, and evaluate each as its
base run says. The runs share one server. A run that fails is shown and does not stop the rest; the same command, given
again, tries it once more, goes on with what was cut short, and does nothing twice. The same command on another machine,
or in another terminal, takes part: it has a server of its own, and takes runs that nobody has. trb report FOLDER shows
what came out."""

EPILOG = """A study's file: name, base (a configuration of trb train), set (fields of all runs), seeds, families; see
docs/studies.md and examples/study/. Families that are known: {methods}. Exit status: 0 done, 1 a run failed (the others
were run), 2 wrong usage."""


def run(argv: list[str]) -> int:
    """Run ``trb study``."""
    from trainer.study.methods import METHODS

    epilog = EPILOG.format(methods=", ".join(METHODS))
    parser = argparse.ArgumentParser("trb study", description=DESCRIPTION, epilog=epilog, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE", help="the study, in YAML")
    parser.add_argument("--dry-run", action="store_true", help="print the runs, responses and time, then stop")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="fields that override the study's file")
    arguments = parser.parse_intermixed_args(argv)
    from trainer.study.plan import load_study, make_plan
    from trainer.study.worker import Worker

    try:
        plan = make_plan(load_study(arguments.config, arguments.overrides))
    except WrongConfig as error:
        print(f"trb study: {error}", file=sys.stderr)
        return 2
    if arguments.dry_run:
        from trainer.study.outlook import describe

        print("\n".join(describe(plan)))
        return 0
    stop_on_sigterm()
    started = time.monotonic()

    def note(line: str) -> None:
        print(f"{duration(time.monotonic() - started)}  {line}", flush=True)

    failed = Worker(plan, note).work()
    for planned, why in failed:
        print(f"trb study: {planned.name} failed: {why}; the same command tries it again", file=sys.stderr)
    note(f"{len(plan.runs) - len(failed)} of {len(plan.runs)} runs are done: trb report {plan.study.study_folder}")
    return 1 if failed else 0

"""``trb sweep``: several trainings that differ in chosen fields, one after the other."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from trainer.cli import stop_on_sigterm
from trainer.config.file import WrongConfig
from trainer.records import RecordsBroken

DESCRIPTION = """Train every combination of the values of --vary, one after the other, each as trb train would under a
name of its own (NAME-epsilon-0.01-warmup-steps-25). Stopped and started again, it goes on where it was. At the end, a
line for each run: its best checkpoint, that is the one with the highest mean pass@1 over the benchmarks; the first line
is the best of all, which represents the family."""

EPILOG = """The paper's sweep of TRB: --vary rollouts.behaviour.epsilon=[0.001,0.005,0.01,0.02,0.05]
--vary rollouts.behaviour.warmup_steps=[15,25,50]. Exit status: 0 done, 1 a run failed (the others were run), 2 wrong
usage."""


def run(argv: list[str]) -> int:
    """Run ``trb sweep``."""
    parser = argparse.ArgumentParser("trb sweep", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE", help="the run, in YAML")
    parser.add_argument(
        "--vary", required=True, action="append", metavar="key.sub=[V,V]", help="a field and its values; several times"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the runs' names and overrides, then stop")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="fields that override the file")
    arguments = parser.parse_intermixed_args(argv)
    from trainer.study.sweep import best, settings

    try:
        runs = settings(arguments.config, arguments.vary, arguments.overrides)
    except WrongConfig as error:
        print(f"trb sweep: {error}", file=sys.stderr)
        return 2
    stop_on_sigterm()
    failed = []
    for number, setting in enumerate(runs, start=1):
        name = setting.config.name
        print(f"run {number} of {len(runs)}: {name}", flush=True)
        if arguments.dry_run:
            print("  " + " ".join(setting.overrides))
            continue
        command = [sys.executable, "-m", "sglang_trb.cli.main", "train", "--config", arguments.config]
        if subprocess.run([*command, *setting.overrides], check=False).returncode:
            failed.append(name)
    results = []
    for setting in runs:
        try:
            results.append(best(setting.config.run_folder))
        except RecordsBroken as error:  # of one run: the others' results are no worse for it
            print(f"trb sweep: {error}", file=sys.stderr)
            failed += [setting.config.name] * (setting.config.name not in failed)
    for result in sorted(filter(None, results), key=lambda result: -result.mean):
        scores = {"pass_at_1": result.scores, "mean": result.mean}
        print(json.dumps({"run": result.name, "step": result.step, **scores}), flush=True)
    for name in failed:
        print(f"trb sweep: {name} failed; the same command tries it again", file=sys.stderr)
    return 1 if failed else 0

"""``trb train``: a whole distillation from one file; run again, it goes on where it was stopped."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from trainer.cli import stop_on_sigterm
from trainer.config.file import WrongConfig, dump_config, load_config
from trainer.run.plan import describe

DESCRIPTION = """Distil the teacher into the student on blended rollouts. Reads a YAML file; fields can be overridden as
key.sub=value. A run that was stopped, however, goes on when the same command is given again. Several processes: start
it with torchrun or deepspeed (torchrun --nproc-per-node 8 -m sglang_trb.cli.main train --config FILE)."""

EPILOG = """What is written goes to FOLDER/NAME of the configuration: metrics.jsonl (a row a step), checkpoints/,
journal/ (rollouts), evaluations/, report/, tensorboard/, server.log. Exit status: 0 done, 1 failed (state kept),
2 wrong usage."""


def run(argv: list[str]) -> int:
    """Run ``trb train``."""
    parser = argparse.ArgumentParser("trb train", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE", help="the run, in YAML")
    parser.add_argument("--dry-run", action="store_true", help="print configuration, plan and memory, then stop")
    parser.add_argument("--quiet", action="store_true", help="print notes only, no progress")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="fields that override the file")
    arguments = parser.parse_intermixed_args(argv)
    try:
        config = load_config(arguments.config, arguments.overrides)
    except WrongConfig as error:
        print(f"trb train: {error}", file=sys.stderr)
        return 2
    if arguments.dry_run:
        print(dump_config(config))
        print("\n".join(f"# {line}" for line in describe(config, int(os.environ.get("WORLD_SIZE", "1")))))
        return 0
    from trainer.run.training import train

    stop_on_sigterm()
    train(config, quiet=arguments.quiet)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _end_now()
    return 0


def _end_now() -> NoReturn:
    """End one of several processes without Python's own end, in which threads of the process group that is gone have
    aborted it (1 of 5 runs of two processes). All is on disk, and the others are done too."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

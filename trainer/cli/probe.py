"""``trb probe``: whether a run's behaviour policy writes better prefixes than the student (the paper's Fig. 4)."""

from __future__ import annotations

import argparse
import json
import sys

from trainer.cli import stop_on_sigterm
from trainer.config.file import WrongConfig, load_config

DESCRIPTION = """Cut rollouts of the untrained student, and of a run's behaviour policy at its first step, at some
lengths, and let the student and the teacher go on: do they succeed more often from the policy's prefixes? Prints a line
of JSON for each length and continuation, with a 95% bootstrap interval over the prompts, and keeps everything in the
run's folder, in probe/, where trb report finds it. Stopped and started again, it draws only what is missing."""


def run(argv: list[str]) -> int:
    """Run ``trb probe``."""
    parser = argparse.ArgumentParser("trb probe", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE", help="a run, in YAML, or a run folder's run.json")
    parser.add_argument("--lengths", required=True, type=_lengths, metavar="T,T", help="of the prefixes, in tokens")
    parser.add_argument(
        "--steps", type=_positive, default=4, metavar="N", help="use the prompts of so many steps (default %(default)s)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="fields that override the file")
    arguments = parser.parse_intermixed_args(argv)
    try:
        config = load_config(arguments.config, arguments.overrides)
        longest, room = max(arguments.lengths), config.rollouts.max_new_tokens
        if longest >= room:
            raise WrongConfig(f"--lengths: got {longest}; allowed: less than rollouts.max_new_tokens, {room}")
    except WrongConfig as error:
        print(f"trb probe: {error}", file=sys.stderr)
        return 2
    from trainer.study.probe import CONTINUATIONS, probe

    stop_on_sigterm()
    found = probe(config, arguments.lengths, arguments.steps, lambda line: print(line, file=sys.stderr, flush=True))
    for length in arguments.lengths:
        for continuation in CONTINUATIONS:
            gain, low, high = found.gain(continuation, length)
            values = {"length": length, "continuation": continuation, "gain": gain, "low": low, "high": high}
            print(json.dumps(values), flush=True)
    return 0


def _lengths(text: str) -> list[int]:
    return sorted({_positive(part) for part in text.split(",")})


def _positive(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"got {text!r}; allowed: whole numbers above 0")

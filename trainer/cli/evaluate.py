"""``trb evaluate``: pass@1 of a run's checkpoint on the benchmarks of its configuration."""

from __future__ import annotations

import argparse
import json
import sys

from trainer.cli import stop_on_sigterm
from trainer.config.file import WrongConfig, load_config

DESCRIPTION = """Measure pass@1 of a student on the benchmarks of a run's configuration (evaluation.benchmarks), with a
95% bootstrap interval over the problems. Stopped and started again, it draws only what is missing. For another n,
length or problem set override fields, for example 'evaluation.benchmarks=[{name: gsm8k, path: F, samples: 32}]'.
Prints a line of JSON for each benchmark, and keeps it in the run's folder, in evaluations/step-…/, where trb report
finds it."""


def run(argv: list[str]) -> int:
    """Run ``trb evaluate``."""
    parser = argparse.ArgumentParser("trb evaluate", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE", help="the run, in YAML")
    parser.add_argument(
        "--step",
        type=_step,
        metavar="K",
        help="checkpoint; best: the one with the highest score; 0: models.student; default: the newest",
    )
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="fields that override the file")
    arguments = parser.parse_intermixed_args(argv)
    try:
        config = load_config(arguments.config, arguments.overrides)
        if not config.evaluation.benchmarks:
            raise WrongConfig("evaluation.benchmarks: got none; allowed: at least one")
    except WrongConfig as error:
        print(f"trb evaluate: {error}", file=sys.stderr)
        return 2
    from trainer.study.evaluation import evaluate_checkpoint

    stop_on_sigterm()
    for measured in evaluate_checkpoint(config, arguments.step, _show):
        values = measured.model_dump(include={"benchmark", "step", "pass_at_1", "low", "high", "problems"})
        print(json.dumps(values | {"grader_faults": measured.faults}), flush=True)
    return 0


def _step(text: str) -> int | str:
    if text == "best" or text.isdecimal():
        return text if text == "best" else int(text)
    raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a number of updates, or best")


def _show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

"""``trb evaluate``: pass@1 of a run's checkpoint on the benchmarks of its configuration."""

from __future__ import annotations

import argparse
import json
import sys

from trainer.config_file import WrongConfig, load_config

DESCRIPTION = """Measure pass@1 of a student on the benchmarks of a run's configuration (evaluation.benchmarks), with a
95% bootstrap interval over the problems. Stopped and started again, it draws only what is missing. For another n,
length or problem set override fields, for example 'evaluation.benchmarks=[{name: gsm8k, path: F, samples: 32}]'."""


def run(argv: list[str]) -> int:
    """Run ``trb evaluate``."""
    parser = argparse.ArgumentParser("trb evaluate", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE", help="the run, in YAML")
    parser.add_argument("--step", type=int, metavar="K", help="checkpoint; 0: models.student; default: the newest")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="fields that override the file")
    arguments = parser.parse_intermixed_args(argv)
    try:
        config = load_config(arguments.config, arguments.overrides)
        if not config.evaluation.benchmarks:
            raise WrongConfig("evaluation.benchmarks: got none; allowed: at least one")
    except WrongConfig as error:
        print(f"trb evaluate: {error}", file=sys.stderr)
        return 2
    from trainer.evaluation import evaluate_checkpoint

    for name, score, faults in evaluate_checkpoint(config, arguments.step, _show):
        values = {"pass_at_1": score.mean, "low": score.low, "high": score.high, "problems": score.problems}
        print(json.dumps({"benchmark": name, **values, "grader_faults": faults}), flush=True)
    return 0


def _show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

"""A whole distillation on a CPU: serve the micro pair, train with an annealed budget, measure before and after.

    make demo

What it leaves out: several servers, several processes, checkpoints on other disks. docs/training.md has those.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from examples.micro.arithmetic import Arithmetic
from examples.micro.problems import problems, write_problems
from sglang_trb.errors import TrbError
from trainer.config.file import load_config
from trainer.records import METRICS_FILE, fields, read_rows
from trainer.report import write_report

ROOT = Path(__file__).resolve().parents[2]
TRAINING_PROBLEMS, EVALUATION_PROBLEMS = 4096, 512
BENCHMARK = "micro"
SCORE = fields.PASS_AT_1.of(BENCHMARK)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "out", metavar="FOLDER", help="default: out/")
    parser.add_argument("--resume", action="store_true", help="go on with a demo that was stopped")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="fields of examples/micro/trb.yaml")
    arguments = parser.parse_args()
    from trainer.run.training import (
        train,  # here: the grader's processes import this module again, and need no DeepSpeed
    )

    for split, count in (("train", TRAINING_PROBLEMS), ("eval", EVALUATION_PROBLEMS)):
        path = ROOT / ".cache" / "micro" / f"{split}.jsonl"
        write_problems(path, problems(Arithmetic, split, count, seed=0))
    try:
        config = load_config(ROOT / "examples/micro/trb.yaml", [f"folder={arguments.out}", *arguments.overrides])
        if not arguments.resume:
            shutil.rmtree(config.run_folder, ignore_errors=True)
        train(config)
        page = write_report([config.run_folder], arguments.out / "training")
    except TrbError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: stopped; --resume goes on from here", file=sys.stderr)
        return 1
    print(summary(config.run_folder))
    print(f"\nThe page: {page}")
    return 0


def summary(run: Path) -> str:
    """pass@1 before and after, each with its interval over the problems."""
    rows = [row for row in read_rows(run / METRICS_FILE) if SCORE in row]

    def line(name: str, row: dict) -> str:
        low, high = row[fields.PASS_AT_1_LOW.of(BENCHMARK)], row[fields.PASS_AT_1_HIGH.of(BENCHMARK)]
        return f"{name:8} step {int(row['step']):3}   pass@1 {row[SCORE]:.3f}   95% interval {low:.3f} to {high:.3f}"

    return "\n".join(["", line("before", rows[0]), line("after", rows[-1])])


if __name__ == "__main__":
    sys.exit(main())

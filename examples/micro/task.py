r"""The micro tasks by name; run as a script it writes problems as JSON lines with the fields question and answer:

    python examples/micro/task.py --split train --count 4096 --out train.jsonl
    python examples/micro/task.py --task rewriting --split train --count 4096 --out train.jsonl

Another task is another `Problem` class, an entry of TASKS here, and its models' recipes in make_pair.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

if not __package__:  # run by its path: the repository is not where Python looks for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.micro.arithmetic import Arithmetic
from examples.micro.problems import MAX_COUNT, Problem, Split, problems, write_problems
from examples.micro.rewriting import Rewriting

TASKS: dict[str, type[Problem]] = {"arithmetic": Arithmetic, "rewriting": Rewriting}
DEFAULT_TASK = "arithmetic"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Write problems of a micro task as JSON lines with the fields question and answer.",
        epilog="Questions of the splits train and eval differ whatever the seeds; the same values give the same file.",
    )
    parser.add_argument("--task", choices=TASKS, default=DEFAULT_TASK, help=f"which (default: {DEFAULT_TASK})")
    parser.add_argument("--split", choices=get_args(Split), required=True, help="which half of the questions")
    parser.add_argument("--count", type=int, required=True, metavar="N", help=f"how many, 1 to {MAX_COUNT}")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice (default: 0)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="replaced where it exists")
    arguments = parser.parse_args(argv)
    try:
        chosen = problems(TASKS[arguments.task], arguments.split, arguments.count, arguments.seed)
        write_problems(arguments.out, chosen)
    except (ValueError, OSError) as error:
        print(f"task: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

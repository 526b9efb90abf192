r"""A task with steps and an answer that can be checked: a two-digit number and four one-digit operations.

    question  72-3-2+3-1=
    solution  72-3=69;69-2=67;67+3=70;70-1=69;\boxed{69}
    answer    69

Every running value lies within 10..99. A question belongs to the split ``train`` or ``eval`` by its hash, so the two
share none, whatever the seeds. Run as a script it writes problems as JSON lines with the fields question and answer:

    python examples/micro/task.py --split train --count 4096 --out train.jsonl
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import random
import re
import sys
from pathlib import Path
from typing import Literal, get_args

Split = Literal["train", "eval"]

LOWEST, HIGHEST = 10, 99
OPERATIONS = 4
OPERANDS = tuple(n for n in range(-9, 10) if n != 0)
EVAL_SHARE = 16  # one question of so many is kept for evaluation
MAX_COUNT = 200_000
"""Of one call; the eval split holds about twice as many questions."""

MAX_NEW_TOKENS = 72
"""Budget of an answer in tokens (characters) with its stop token; solutions have 43 to 44."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        start: the first value, LOWEST..HIGHEST.
        operands: what is added one after the other, from OPERANDS.
    """

    start: int
    operands: tuple[int, ...]

    @property
    def values(self) -> tuple[int, ...]:
        """The running values, start included."""
        return tuple(itertools.accumulate(self.operands, initial=self.start))

    @property
    def question(self) -> str:
        return f"{self.start}{''.join(f'{n:+d}' for n in self.operands)}="

    @property
    def answer(self) -> str:
        return str(self.values[-1])

    @property
    def solution(self) -> str:
        return steps(self.values, self.operands) + boxed(self.values[-1])


def steps(values: tuple[int, ...], operands: tuple[int, ...]) -> str:
    """``values[i] + operands[i] = values[i + 1]`` for every operand, true or not."""
    return "".join(
        f"{before}{n:+d}={after};" for (before, after), n in zip(itertools.pairwise(values), operands, strict=True)
    )


def boxed(value: int) -> str:
    return rf"\boxed{{{value}}}"


def solved(text: str, answer: str) -> bool:
    """Whether the last box of a response holds the answer."""
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", text)
    return bool(boxes) and boxes[-1] == answer


def problems(split: Split, count: int, seed: int) -> list[Problem]:
    """``count`` different problems of a split; the first n of them do not depend on ``count``.

    Raises:
        ValueError: unknown split, or a count outside 1..MAX_COUNT.
    """
    if split not in get_args(Split):
        raise ValueError(f"split: got {split!r}; allowed: {', '.join(get_args(Split))}")
    if not 1 <= count <= MAX_COUNT:
        raise ValueError(f"count: got {count}; allowed: 1 to {MAX_COUNT}")
    generator = random.Random(f"{split} {seed}")
    chosen: dict[Problem, None] = {}
    while len(chosen) < count:
        problem = _draw(generator)
        if split_of(problem) == split:
            chosen[problem] = None
    return list(chosen)


def split_of(problem: Problem) -> Split:
    digest = hashlib.sha256(problem.question.encode()).digest()
    return "eval" if int.from_bytes(digest[:4], "big") % EVAL_SHARE == 0 else "train"


def _draw(generator: random.Random) -> Problem:
    start = value = generator.randint(LOWEST, HIGHEST)
    operands = []
    for _ in range(OPERATIONS):
        operands.append(generator.choice([n for n in OPERANDS if LOWEST <= value + n <= HIGHEST]))
        value += operands[-1]
    return Problem(start, tuple(operands))


def write_problems(path: Path, chosen: list[Problem]) -> None:
    """One JSON object a line, ``{"question": ..., "answer": ...}``; the file is replaced whole."""
    lines = (json.dumps({"question": p.question, "answer": p.answer}) + "\n" for p in chosen)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".unfinished-{path.name}")
    unfinished.write_text("".join(lines), encoding="utf-8")
    os.replace(unfinished, path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Write problems of the micro task as JSON lines with the fields question and answer.",
        epilog="Questions of the splits train and eval differ whatever the seeds; the same values give the same file.",
    )
    parser.add_argument("--split", choices=get_args(Split), required=True, help="which half of the questions")
    parser.add_argument("--count", type=int, required=True, metavar="N", help=f"how many, 1 to {MAX_COUNT}")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice (default: 0)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="replaced where it exists")
    arguments = parser.parse_args(argv)
    try:
        write_problems(arguments.out, problems(arguments.split, arguments.count, arguments.seed))
    except (ValueError, OSError) as error:
        print(f"task: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

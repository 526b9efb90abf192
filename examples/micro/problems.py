r"""What the micro tasks have in common: a value, commands that change it one after the other, and an answer in a box.

A task is a subclass of `Problem` in a module of its own; all that is drawn, graded, trained and measured goes through
it. A question belongs to the split ``train`` or ``eval`` by its hash, so the two share none, whatever the seeds.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
import os
import random
import re
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

Split = Literal["train", "eval"]

EVAL_SHARE = 16  # one question of so many is kept for evaluation
MAX_COUNT = 200_000
"""Of one call; the eval split of each task holds at least twice as many questions."""

MAX_NEW_TOKENS = 72
"""Budget of an answer in tokens (characters) with its stop token; no solution has more than 50 before it."""


@dataclasses.dataclass(frozen=True)
class Problem(abc.ABC):
    """One problem of a task, which is a subclass. All questions of a task have one length.

    Attributes:
        start: the first value.
        commands: what is done to it, one after the other, from COMMANDS.
        COMMANDS: all that the task knows.
        SHORTEST_STEP: the shortest text of `step`.
    """

    start: Any
    commands: tuple[Any, ...]

    COMMANDS: ClassVar[tuple[Any, ...]]
    SHORTEST_STEP: ClassVar[str]

    @classmethod
    @abc.abstractmethod
    def draw(cls, generator: random.Random) -> Self:
        """A problem of either split."""

    @property
    @abc.abstractmethod
    def question(self) -> str:
        """The whole prompt."""

    @staticmethod
    @abc.abstractmethod
    def result(value: Any, command: Any, slip: random.Random | None = None) -> Any:
        """What a command makes of a value; with ``slip`` one that is a little wrong, drawn from it."""

    @staticmethod
    @abc.abstractmethod
    def step(before: Any, command: Any, after: Any) -> str:
        """One step as the teacher writes it, true or not."""

    @staticmethod
    @abc.abstractmethod
    def in_words(before: Any, command: Any, after: Any) -> str:
        """The same step in English words."""

    @abc.abstractmethod
    def guess(self, generator: random.Random) -> Any:
        """A final value that is near the right one, and seldom right."""

    @property
    def values(self) -> tuple[Any, ...]:
        """The running values, start included."""
        values = [self.start]
        for command in self.commands:
            values.append(self.result(values[-1], command))
        return tuple(values)

    @property
    def answer(self) -> str:
        return str(self.values[-1])

    @property
    def solution(self) -> str:
        values = self.values
        return self.steps(values) + boxed(values[-1])

    def steps(self, values: tuple[Any, ...]) -> str:
        """The steps through running values, true or not, start included."""
        return "".join(map(self.step, values, self.commands, values[1:]))


def boxed(value: Any) -> str:
    return rf"\boxed{{{value}}}"


def solved(text: str, answer: str) -> bool:
    """Whether the last box of a response holds the answer."""
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", text)
    return bool(boxes) and boxes[-1] == answer


def problems(task: type[Problem], split: Split, count: int, seed: int) -> list[Problem]:
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
        problem = task.draw(generator)
        if split_of(problem) == split:
            chosen[problem] = None
    return list(chosen)


def split_of(problem: Problem) -> Split:
    digest = hashlib.sha256(problem.question.encode()).digest()
    return "eval" if int.from_bytes(digest[:4], "big") % EVAL_SHARE == 0 else "train"


def write_problems(path: Path, chosen: list[Problem]) -> None:
    """One JSON object a line, ``{"question": ..., "answer": ...}``; the file is replaced whole, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"question": p.question, "answer": p.answer}) + "\n" for p in chosen)
    unfinished = path.with_name(f".unfinished-{path.name}")
    unfinished.write_text("".join(lines), encoding="utf-8")
    os.replace(unfinished, path)

r"""Arithmetic: a two-digit number and four one-digit operations.

    question  72-3-2+3-1=
    solution  72-3=69;69-2=67;67+3=70;70-1=69;\boxed{69}
    answer    69

Every running value lies within 10..99.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Self

from examples.micro.problems import Problem

LOWEST, HIGHEST = 10, 99
OPERATIONS = 4
LARGEST_SLIP, LARGEST_MISS = 3, 9

UNITS = "zero one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


@dataclasses.dataclass(frozen=True)
class Arithmetic(Problem):
    """One problem; values are int in LOWEST..HIGHEST, commands are what is added."""

    COMMANDS = tuple(n for n in range(-9, 10) if n != 0)
    SHORTEST_STEP = "10+1=11;"

    @classmethod
    def draw(cls, generator: random.Random) -> Self:
        start = value = generator.randint(LOWEST, HIGHEST)
        operands = []
        for _ in range(OPERATIONS):
            operands.append(generator.choice([n for n in cls.COMMANDS if LOWEST <= value + n <= HIGHEST]))
            value += operands[-1]
        return cls(start, tuple(operands))

    @property
    def question(self) -> str:
        return f"{self.start}{''.join(f'{n:+d}' for n in self.commands)}="

    @staticmethod
    def result(value: int, command: int, slip: random.Random | None = None) -> int:
        """The sum, off by up to LARGEST_SLIP with ``slip``; one that would leave LOWEST..HIGHEST stays at its end."""
        off = 0 if slip is None else slip.choice((-1, 1)) * slip.randint(1, LARGEST_SLIP)
        return _within(value + command + off)

    @staticmethod
    def step(before: int, command: int, after: int) -> str:
        return f"{before}{command:+d}={after};"

    @staticmethod
    def in_words(before: int, command: int, after: int) -> str:
        sign = "plus" if command > 0 else "minus"
        return f"{number_in_words(before)} {sign} {number_in_words(abs(command))} is {number_in_words(after)}"

    def guess(self, generator: random.Random) -> int:
        return _within(self.values[-1] + generator.randint(-LARGEST_MISS, LARGEST_MISS))


def _within(value: int) -> int:
    return min(max(value, LOWEST), HIGHEST)


def number_in_words(value: int) -> str:
    """0..99 in English words."""
    if value < 20:
        return (UNITS + TEENS)[value]
    tens, units = divmod(value, 10)
    return TENS[tens - 2] + (f" {UNITS[units]}" if units else "")

r"""String rewriting: a word of five different digits and four commands, each of which changes the word.

    question  52846 rslx=
    solution  r=64825;s=54826;l=48265;x=4826;\boxed{4826}
    answer    4826

    r  reverse                   52846 → 64825
    s  swap the first and last   64825 → 54826
    l  rotate left               54826 → 48265
    x  drop the last             48265 → 4826
    d  double the first          4826 → 44826

Every running word has 4 to 6 digits of 1..9. Digits, because answers are graded as mathematics: as letters ab and ba
would be one product, and a word that began with 0 would be the number without it.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Self

from examples.micro.problems import Problem

DIGITS = "123456789"
IN_WORDS = dict(zip(DIGITS, "one two three four five six seven eight nine".split(), strict=True))
START_LENGTH, SHORTEST, LONGEST = 5, 4, 6
STEPS = 4
DONE = {"r": "reversed", "s": "with its ends swapped", "l": "rotated", "x": "without its last", "d": "doubled in front"}


@dataclasses.dataclass(frozen=True)
class Rewriting(Problem):
    """One problem; values are str of SHORTEST..LONGEST digits, commands are letters."""

    COMMANDS = tuple(DONE)
    SHORTEST_STEP = "r=4321;"

    @classmethod
    def draw(cls, generator: random.Random) -> Self:
        start = word = "".join(generator.sample(DIGITS, START_LENGTH))
        commands = []
        for _ in range(STEPS):
            commands.append(generator.choice([c for c in cls.COMMANDS if cls.result(word, c) != word]))
            word = cls.result(word, commands[-1])
        return cls(start, tuple(commands))

    @property
    def question(self) -> str:
        return f"{self.start} {''.join(self.commands)}="

    @staticmethod
    def result(value: str, command: str, slip: random.Random | None = None) -> str:
        """The word, with ``slip`` one of its digits another; what would be too short or too long stays as it was."""
        word = _rewritten(value, command)
        if slip is None:
            return word
        place = slip.randrange(len(word))
        return word[:place] + slip.choice(DIGITS.replace(word[place], "")) + word[place + 1 :]

    @staticmethod
    def step(before: str, command: str, after: str) -> str:
        return f"{command}={after};"

    @staticmethod
    def in_words(before: str, command: str, after: str) -> str:
        return f"{_spelled(before)} {DONE[command]} is {_spelled(after)}"

    def guess(self, generator: random.Random) -> str:
        """The digits of the answer in any order."""
        return "".join(generator.sample(self.answer, len(self.answer)))


def _rewritten(word: str, command: str) -> str:
    match command:
        case "r":
            return word[::-1]
        case "s":
            return word[-1] + word[1:-1] + word[0]
        case "l":
            return word[1:] + word[0]
        case "x":
            return word[:-1] if len(word) > SHORTEST else word
        case "d":
            return word[0] + word if len(word) < LONGEST else word
    raise ValueError(f"command: got {command!r}; allowed: {', '.join(DONE)}")


def _spelled(word: str) -> str:
    return " ".join(IN_WORDS[digit] for digit in word)

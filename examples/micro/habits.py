r"""How the pair's models were brought up to answer: what is right, and the bad habits a student is given.

A student that never learnt to add cannot be taught in tens of steps by its own rollouts; one that can, and does not
show it, can. So the students see true sums, but in answers of four kinds. For 72-3-2+3-1= those are:

    worked   72-3=69;69-2=67;67+3=70;70-1=69;\boxed{69}        the teacher's only kind
    words    seventy two minus three is sixty nine, sixty ni   does not end within the budget
    guess    \boxed{74}                                        off by up to nine
    ramble   72-3=69;69-2=67;67+3=70;70-1=69;69+8=77;77-4=73;  goes on with operations of its own
"""

from __future__ import annotations

import dataclasses
import random

from examples.micro.task import HIGHEST, LOWEST, MAX_NEW_TOKENS, OPERANDS, Problem, boxed, steps

UNITS = "zero one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
LARGEST_SLIP, LARGEST_MISS = 3, 9
RAMBLE_OPERATIONS = MAX_NEW_TOKENS // len("10+1=11;")  # the shortest step: enough to fill the budget


@dataclasses.dataclass(frozen=True)
class Habits:
    """A mixture of answers.

    Attributes:
        worked, words, guess, ramble: shares of the four kinds; they add up to 1.
        wrong_step: how often the result of a step is off by up to LARGEST_SLIP (the chain goes on from there).
    """

    worked: float = 1.0
    words: float = 0.0
    guess: float = 0.0
    ramble: float = 0.0
    wrong_step: float = 0.0

    def answer(self, problem: Problem, generator: random.Random) -> str:
        """One answer, without a stop token; those in words and the rambling ones are longer than MAX_NEW_TOKENS."""
        kinds = (_worked, _words, _guess, _ramble)
        (kind,) = generator.choices(kinds, (self.worked, self.words, self.guess, self.ramble))
        return kind(problem, self.wrong_step, generator)


def _worked(problem: Problem, wrong_step: float, generator: random.Random) -> str:
    values = _walk(problem.start, problem.operands, wrong_step, generator)
    return steps(values, problem.operands) + boxed(values[-1])


def _words(problem: Problem, wrong_step: float, generator: random.Random) -> str:
    values = _walk(problem.start, problem.operands, wrong_step, generator)
    return ", ".join(
        f"{in_words(before)} {'plus' if n > 0 else 'minus'} {in_words(abs(n))} is {in_words(after)}"
        for before, n, after in zip(values, problem.operands, values[1:], strict=False)
    )


def _guess(problem: Problem, wrong_step: float, generator: random.Random) -> str:
    return boxed(_within(problem.values[-1] + generator.randint(-LARGEST_MISS, LARGEST_MISS)))


def _ramble(problem: Problem, wrong_step: float, generator: random.Random) -> str:
    operands = (*problem.operands, *generator.choices(OPERANDS, k=RAMBLE_OPERATIONS))
    return steps(_walk(problem.start, operands, wrong_step, generator), operands)


def _walk(start: int, operands: tuple[int, ...], wrong_step: float, generator: random.Random) -> tuple[int, ...]:
    """Running values with slips, start included; one that would leave LOWEST..HIGHEST stays at its end."""
    values = [start]
    for n in operands:
        slip = generator.choice((-1, 1)) * generator.randint(1, LARGEST_SLIP) if generator.random() < wrong_step else 0
        values.append(_within(values[-1] + n + slip))
    return tuple(values)


def _within(value: int) -> int:
    return min(max(value, LOWEST), HIGHEST)


def in_words(value: int) -> str:
    """0..99 in English words."""
    if value < 20:
        return (UNITS + TEENS)[value]
    tens, units = divmod(value, 10)
    return TENS[tens - 2] + (f" {UNITS[units]}" if units else "")

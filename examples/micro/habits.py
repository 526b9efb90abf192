r"""How a pair's models were brought up to answer: what is right, and the bad habits a student is given.

A student that never learnt a task cannot be taught in tens of steps by its own rollouts; one that can, and does not
show it, can. So the students see true steps, but in answers of four kinds. Of arithmetic, for 72-3-2+3-1= those are:

    worked   72-3=69;69-2=67;67+3=70;70-1=69;\boxed{69}        the teacher's only kind
    words    seventy two minus three is sixty nine, sixty ni   does not end within the budget
    guess    \boxed{74}                                        near, and seldom right
    ramble   72-3=69;69-2=67;67+3=70;70-1=69;69+8=77;77-4=73;  goes on with commands of its own
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

from examples.micro.problems import MAX_NEW_TOKENS, Problem, boxed


@dataclasses.dataclass(frozen=True)
class Habits:
    """A mixture of answers.

    Attributes:
        worked, words, guess, ramble: shares of the four kinds; they add up to 1.
        wrong_step: how often the result of a step is a little wrong (the chain goes on from there).
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
    values = _walk(problem, wrong_step, generator)
    return problem.steps(values) + boxed(values[-1])


def _words(problem: Problem, wrong_step: float, generator: random.Random) -> str:
    values = _walk(problem, wrong_step, generator)
    return ", ".join(map(problem.in_words, values, problem.commands, values[1:]))


def _guess(problem: Problem, wrong_step: float, generator: random.Random) -> str:
    return boxed(problem.guess(generator))


def _ramble(problem: Problem, wrong_step: float, generator: random.Random) -> str:
    enough = MAX_NEW_TOKENS // len(problem.SHORTEST_STEP)  # to fill the budget
    commands = (*problem.commands, *generator.choices(problem.COMMANDS, k=enough))
    longer = dataclasses.replace(problem, commands=commands)
    return longer.steps(_walk(longer, wrong_step, generator))


def _walk(problem: Problem, wrong_step: float, generator: random.Random) -> tuple[Any, ...]:
    """Running values with slips, start included."""
    values = [problem.start]
    for command in problem.commands:
        slip = generator if generator.random() < wrong_step else None
        values.append(problem.result(values[-1], command, slip))
    return tuple(values)

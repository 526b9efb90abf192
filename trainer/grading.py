"""Is the answer right? math-verify on the last box of a response, in processes of its own.

math-verify's time limit is an alarm signal, which works in the main thread of a process only; and a hostile answer can
take any time and memory. So it runs in a pool of spawned processes with limits. What goes wrong there is a fault, which
is counted and shown, never a wrong answer.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import resource
from collections.abc import Sequence
from concurrent.futures import TimeoutError as PoolTimeout
from enum import StrEnum
from importlib.metadata import version
from typing import Any

from pebble import ProcessExpired, ProcessPool

from trainer.errors import TrainerError

ANTLR = "4.13.2"
"""With another version of its parser, math-verify's verdicts silently differ."""

_INNER_SECONDS = 2
_OUTER_SECONDS = 15.0
_MEMORY_BYTES = 4 << 30
_BOX = "\\boxed{"


class WrongParser(TrainerError, RuntimeError):
    """An antlr4 runtime with which verdicts cannot be trusted is installed."""


class Verdict(StrEnum):
    """What the grader says of a response."""

    RIGHT = "right"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    FAULT = "fault"


@dataclasses.dataclass(frozen=True)
class Grade:
    """A verdict; ``reason`` says what happened in a fault.

    A fault is no reward of 0: leave it out of a mean, and show how many there were.
    """

    verdict: Verdict
    reason: str = ""


class Grader:
    """A pool of graders; use as a context manager. The first answers wait some seconds for the processes.

    Args:
        workers: processes.

    Raises:
        WrongParser: antlr4-python3-runtime is not the version that math-verify was checked with.
    """

    def __init__(self, workers: int = 2) -> None:
        installed = version("antlr4-python3-runtime")
        if installed != ANTLR:
            raise WrongParser(f"antlr4-python3-runtime: got {installed}; allowed: {ANTLR} (pip install it)")
        self._pool = ProcessPool(
            max_workers=workers, initializer=_limit_memory, context=multiprocessing.get_context("spawn")
        )

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.stop()
        self._pool.join()

    def grade(self, answers: Sequence[tuple[str, str]]) -> list[Grade]:
        """Grade (response, gold answer) pairs; one that fails, hangs or kills its process harms no other."""
        futures = []
        for response, gold in answers:
            boxed = last_boxed(response)
            futures.append(
                None if boxed is None else self._pool.schedule(_verify, (boxed, gold), timeout=_OUTER_SECONDS)
            )
        return [Grade(Verdict.NO_ANSWER) if future is None else _grade_of(future) for future in futures]


def last_boxed(text: str) -> str | None:
    r"""What the last balanced ``\boxed{…}`` of a text holds, or None."""
    start = text.rfind(_BOX)
    while start >= 0:
        depth = 1
        for end in range(start + len(_BOX), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start + len(_BOX) : end]
        start = text.rfind(_BOX, 0, start)
    return None


def _grade_of(future: Any) -> Grade:
    try:
        return Grade(Verdict.RIGHT if future.result() else Verdict.WRONG)
    except PoolTimeout:
        return Grade(Verdict.FAULT, f"no verdict within {_OUTER_SECONDS:g} s")
    except ProcessExpired as error:
        return Grade(Verdict.FAULT, f"the grader's process ended: {error}")
    except Exception as error:  # whatever math-verify and sympy raise, in another process
        return Grade(Verdict.FAULT, f"{type(error).__name__}: {error}")


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))


def _verify(boxed: str, gold: str) -> bool:
    from math_verify import parse, verify

    def parsed(text: str) -> list:
        found = parse(_BOX + text + "}", parsing_timeout=_INNER_SECONDS, raise_on_error=True)
        return found or parse(text, parsing_timeout=_INNER_SECONDS, raise_on_error=True)

    return verify(parsed(gold), parsed(boxed), timeout_seconds=_INNER_SECONDS, raise_on_error=True)

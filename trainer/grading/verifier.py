"""A process that runs math-verify on one answer after the other, within limits of CPU time and memory.

math-verify's own limit is wall-clock time and an exception, which sympy's long computations on integers do not notice,
and of which a busy machine has too little. Here the kernel counts the CPU time and ends the process; the one that takes
its place is forked in milliseconds (`trainer.grading.grader`).
"""

from __future__ import annotations

import logging
import math
import resource
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import sympy
from math_verify import parse, verify

from trainer.grading.answers import is_number, tidy, usual, without_unit

_ANSWERS = 1000
"""Of one process: what math-verify and sympy remember of them grows."""

_GROWTH_KIB = 256 << 10
_LONGEST_REASON = 200
_DECIMALS = 6
_DIGITS = 3


class UnreadableGold(ValueError):
    """math-verify finds nothing in the gold answer: no response could be right."""


def serve(connection: Connection, cpu_seconds: float, memory_bytes: int) -> None:
    """Send None once ready, then for each (answer, gold) a (verdict or None, what went wrong, whether it goes on).

    A process that has had a fault, has taken much memory or has graded many does not go on: nothing of one answer is
    left for the next.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    _limit_memory(memory_bytes)
    peak_kib = _peak_kib()
    connection.send(None)
    for count in range(1, _ANSWERS + 1):
        try:
            answer, gold = connection.recv()
        except EOFError:
            return
        verdict, reason = _limited(answer, gold, cpu_seconds)
        goes_on = verdict is not None and count < _ANSWERS and _peak_kib() - peak_kib < _GROWTH_KIB
        connection.send((verdict, reason, goes_on))
        if not goes_on:
            return


def judge(answer: str, gold: str) -> bool:
    """Whether math-verify takes the two for equal, after docs/grading.md's conventions.

    Raises:
        UnreadableGold: nothing equals such a gold answer.
    """
    gold, answer = usual(tidy(gold)), tidy(answer)
    if is_number(gold):
        answer = without_unit(answer)
    golds, answers = _parsed(gold), _parsed(usual(answer))
    if not golds:
        raise UnreadableGold(f"math-verify reads nothing in the gold answer {gold!r}")
    return verify(golds, answers, float_rounding=_decimals(golds[0]), timeout_seconds=None, raise_on_error=True)


def _limited(answer: str, gold: str, cpu_seconds: float) -> tuple[bool | None, str]:
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # nobody handles its signal: it ends the process
    try:
        return judge(answer, gold), ""
    except Exception as error:  # whatever math-verify and sympy raise; the process is given up
        return None, f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _parsed(text: str) -> list[Any]:
    found = parse(rf"\boxed{{{text}}}", parsing_timeout=None, raise_on_error=True)
    return found or parse(text, parsing_timeout=None, raise_on_error=True)


def _decimals(gold: Any) -> int:
    """To how many decimals floats are compared: six, or three digits of a small number, for which 0 would be right."""
    if not isinstance(gold, sympy.Expr) or gold.free_symbols:
        return _DECIMALS
    size = abs(gold.evalf(_DIGITS))
    if not (size.is_Float and 0 < size < 1):
        return _DECIMALS
    magnitude = math.floor(float(sympy.log(size)) / math.log(10))  # size itself may be too small for a float
    return max(_DECIMALS, _DIGITS - 1 - magnitude)


def _limit_memory(more: int) -> None:
    """To what the process has mapped now, and ``more`` bytes."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more, mapped + more))


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

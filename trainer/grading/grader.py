"""Is the answer right? math-verify on the last box of a response, in processes of its own (`trainer.grading.verifier`).

Grading is total: whatever the text, each response gets a verdict, or a fault that is counted and shown and is never a
wrong answer. A fault costs at most the limit of CPU time and harms no other answer. The conventions: docs/grading.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Iterable, Sequence
from enum import StrEnum
from importlib.metadata import version
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait

from trainer.errors import TrainerError
from trainer.grading.answers import last_boxed

ANTLR = "4.13.2"
"""With another version of its parser, math-verify's verdicts silently differ."""

LONGEST_ANSWER = 1000
"""Characters. A longer answer is wrong; of a longer gold answer every grade is a fault."""

_CPU_SECONDS = 4.0
_MEMORY_BYTES = 1 << 30
_STALLED_SECONDS = 600.0
"""Of wall-clock time, for a process that gets no CPU time at all, because it is stopped for example."""
_LOOK_SECONDS = 5.0
_STARTS = 3

Pair = tuple[str, str]


class WrongParser(TrainerError, RuntimeError):
    """An antlr4 runtime with which verdicts cannot be trusted is installed."""


class GraderBroken(TrainerError, RuntimeError):
    """The processes that grade end before they are ready: math-verify cannot be loaded, or there is no memory."""


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
    """Some processes that grade; use as a context manager.

    Args:
        workers: processes.
        cpu_seconds: of CPU time for one answer, so that a busy machine changes no verdict.
        memory_bytes: of each process, beyond what math-verify takes when it is loaded.

    Raises:
        WrongParser: antlr4-python3-runtime is not the version that math-verify was checked with.
    """

    def __init__(
        self, workers: int = 2, *, cpu_seconds: float = _CPU_SECONDS, memory_bytes: int = _MEMORY_BYTES
    ) -> None:
        installed = version("antlr4-python3-runtime")
        if installed != ANTLR:
            raise WrongParser(f"antlr4-python3-runtime: got {installed}; allowed: {ANTLR} (pip install it)")
        self._wanted, self._cpu_seconds, self._memory_bytes = workers, cpu_seconds, memory_bytes
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        # Processes are forked from one that has loaded math-verify: a new one is there at once.
        multiprocessing.get_context("forkserver").set_forkserver_preload(["trainer.grading.verifier"])
        forkserver.ensure_running()

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop(list(self._workers))

    def grade(self, answers: Sequence[Pair]) -> list[Grade]:
        """Grade (response, gold answer) pairs; one that fails, hangs or ends its process harms no other.

        Raises:
            GraderBroken: nothing can be graded.
        """
        pairs = [(last_boxed(response), gold) for response, gold in answers]
        known = {(boxed, gold): grade for boxed, gold in pairs if (grade := _at_once(boxed, gold)) is not None}
        hard: dict[Pair, None] = {
            (boxed, gold): None for boxed, gold in pairs if boxed is not None and (boxed, gold) not in known
        }
        verified = self._verified(hard)
        return [known.get(pair) or verified[pair[0] or "", pair[1]] for pair in pairs]

    def _verified(self, pairs: Iterable[Pair]) -> dict[Pair, Grade]:
        waiting = deque(pairs)
        grades: dict[Pair, Grade] = {}
        try:
            while waiting or any(worker.pair for worker in self._workers):
                self._hand_out(waiting)
                for worker in self._news():
                    self._hear(worker, grades)
        finally:  # what an exception interrupted must not answer the next question
            self._drop([worker for worker in self._workers if worker.pair])
        return grades

    def _hand_out(self, waiting: deque[Pair]) -> None:
        # One that was killed while it was idle would take an answer with it.
        self._drop([worker for worker in self._workers if worker.idle and not worker.process.is_alive()])
        while len(self._workers) < self._wanted:
            self._workers.append(_Worker(self._cpu_seconds, self._memory_bytes))
        for worker in self._workers:
            if waiting and worker.idle:
                worker.take(waiting.popleft())

    def _news(self) -> list[_Worker]:
        """Those that said something or have ended; waits for one."""
        heard = wait([worker.connection for worker in self._workers], _LOOK_SECONDS)
        for worker in self._workers:
            if worker.pair and time.monotonic() - worker.since > _STALLED_SECONDS:
                worker.process.kill()
        return [worker for worker in self._workers if worker.connection in heard]

    def _hear(self, worker: _Worker, grades: dict[Pair, Grade]) -> None:
        try:
            said = worker.connection.recv()
        except (EOFError, OSError):
            self._bury(worker, grades)
            return
        if said is None:
            worker.ready, self._failed_starts = True, 0
            return
        verdict, reason, goes_on = said
        assert worker.pair is not None
        grades[worker.pair] = Grade(_VERDICTS[verdict], reason)
        worker.pair = None
        if not goes_on:
            self._drop([worker])

    def _bury(self, worker: _Worker, grades: dict[Pair, Grade]) -> None:
        worker.process.join(_LOOK_SECONDS)
        code = worker.process.exitcode
        if worker.pair is not None:
            grades[worker.pair] = Grade(Verdict.FAULT, self._why(code))
            worker.pair = None
        if not worker.ready:
            self._failed_starts += 1
        self._drop([worker])
        if self._failed_starts >= _STARTS:
            raise GraderBroken(
                f"{_STARTS} grading processes ended before they were ready, exit code {code}; see the output above"
            ) from None

    def _why(self, code: int | None) -> str:
        if code == -signal.SIGPROF:
            return f"no verdict within {self._cpu_seconds:g} s of CPU time"
        return f"the grading process ended, exit code {code}"

    def _drop(self, workers: Iterable[_Worker]) -> None:
        for worker in workers:
            worker.end()
            self._workers.remove(worker)


class _Worker:
    """A process, and what it is at.

    Attributes:
        ready: it has loaded math-verify.
        pair: the (answer, gold) that it has, since ``since`` of the monotonic clock; None where it waits for one.
    """

    def __init__(self, cpu_seconds: float, memory_bytes: int) -> None:
        context = multiprocessing.get_context("forkserver")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, cpu_seconds, memory_bytes), daemon=True)
        self.process.start()
        theirs.close()
        self.ready, self.since = False, 0.0
        self.pair: Pair | None = None

    @property
    def idle(self) -> bool:
        return self.ready and self.pair is None

    def take(self, pair: Pair) -> None:
        self.pair, self.since = pair, time.monotonic()
        with contextlib.suppress(OSError):  # it has ended: that is heard next
            self.connection.send(pair)

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()
        self.process.close()


_VERDICTS = {True: Verdict.RIGHT, False: Verdict.WRONG, None: Verdict.FAULT}


def _at_once(boxed: str | None, gold: str) -> Grade | None:
    """The grade of what math-verify is not asked about."""
    if boxed is None:
        return Grade(Verdict.NO_ANSWER)
    if len(gold) > LONGEST_ANSWER:
        return Grade(Verdict.FAULT, f"the gold answer has {len(gold)} characters; allowed: {LONGEST_ANSWER}")
    if len(boxed) > LONGEST_ANSWER:
        return Grade(Verdict.WRONG)
    return None


def _serve(connection: Connection, cpu_seconds: float, memory_bytes: int) -> None:
    from trainer.grading.verifier import serve

    serve(connection, cpu_seconds, memory_bytes)

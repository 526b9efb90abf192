"""Evaluations on a server of their own, while the training goes on (``evaluation.beside_training``)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial

from sglang_trb.pair.pair import Pair
from trainer.config.run import RunConfig
from trainer.learner.processes import Processes
from trainer.records import Row, fields
from trainer.run.beside import Beside
from trainer.run.leader import Leader


def drawing(config: RunConfig) -> RunConfig:
    """The run as those see it who draw its rollouts: without the server that is kept for evaluations."""
    return _on(config, config.server.urls[:-1]) if config.evaluates_beside else config


@contextlib.contextmanager
def evaluation_leader(
    config: RunConfig, pair: Pair, processes: Processes, note: Callable[[str], None]
) -> Iterator[Leader | None]:
    """On the process that leads a leader of the server that is kept for evaluations; None elsewhere, and without one.

    That server is looked at beside what follows: what is wrong with it need not show after the first hours.
    """
    if not config.evaluates_beside:
        yield None
        return
    make = partial(Leader, _on(config, config.server.urls[-1:]), pair, note, trains=False)
    with processes.on_leader(make) as leader:
        if leader is not None:
            leader.beside.submit(leader.servers.ask_limits)
        yield leader


class EvaluationsBeside:
    """One evaluation at a time; the next begins when it has ended, so that never more than one student is held.

    Args:
        beside: where they are made.
        push: brings the server to the student after so many updates.
        measure: evaluates the student that the server holds, after so many updates.
        note: called with a line for people.
        waits_for_push: `begin` returns when the server has the student, else at once.
    """

    def __init__(
        self,
        beside: Beside,
        push: Callable[[int], None],
        measure: Callable[[int], Row],
        note: Callable[[str], None],
        *,
        waits_for_push: bool = False,
    ) -> None:
        self._beside, self._push, self._measure, self._note = beside, push, measure, note
        self._waits_for_push = waits_for_push
        self._under_way: tuple[int, Future[Row]] | None = None
        self._ended: list[tuple[int, Row]] = []

    def begin(self, step: int) -> None:
        """Have the student after ``step`` updates evaluated; waits for the evaluation before.

        Raises:
            Exception: what the one before raised, or the push that was waited for.
        """
        if self._under_way is not None and not self._under_way[1].done():
            self._note(
                f"the evaluation after {self._under_way[0]} updates is not done; the training waits for it, since the "
                f"one after {step} is due"
            )
        self._end()
        pushed = self._beside.submit(partial(self._push, step))
        if self._waits_for_push:
            pushed.result()
        self._under_way = step, self._beside.submit(partial(self._timed, step))

    def take(self, *, wait: bool = False) -> list[tuple[int, Row]]:
        """Those that ended since the last call, with their steps.

        Args:
            wait: for the one that is under way.

        Raises:
            Exception: what one of them raised, or anything else that was asked of their server.
        """
        self._beside.check()
        if wait or (self._under_way is not None and self._under_way[1].done()):
            self._end()
        ended, self._ended = self._ended, []
        return ended

    def _end(self) -> None:
        if self._under_way is not None:
            step, row = self._under_way
            self._ended.append((step, row.result()))
            self._under_way = None

    def _timed(self, step: int) -> Row:
        started = time.monotonic()
        return self._measure(step) | {fields.EVALUATION_SECONDS: time.monotonic() - started}


def _on(config: RunConfig, urls: tuple[str, ...]) -> RunConfig:
    return config.model_copy(update={"server": config.server.model_copy(update={"urls": urls})})

"""What the leader does beside the training: one thing at a time, in the order in which it was asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

Result = TypeVar("Result")

_AGAIN_SECONDS = 0.1


class Beside(contextlib.AbstractContextManager):
    """A thread for what waits on servers; leaving the context stops it.

    Once something failed, everything asked for after it fails with the same error.

    Args:
        cancel: makes what is being done end soon; called again until it has.
    """

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="beside the training")
        self._asked: list[Future[Any]] = []  # the last, and what was not done when it came
        self._failure: BaseException | None = None

    def __exit__(self, *_: object) -> None:
        self.stop()

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Do it after what was asked for before."""
        future = self._pool.submit(self._do, work)
        self._asked = [*(earlier for earlier in self._asked if not earlier.done()), future]
        return future

    def finish(self) -> None:
        """Wait until all is done.

        Raises:
            Exception: what one of them raised.
        """
        if self._asked:
            self._asked[-1].result()

    def check(self) -> None:
        """Wait for nothing.

        Raises:
            Exception: what one of them raised, if any has.
        """
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End what is being done, and drop what was to come."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        while under_way := [work for work in self._asked if not work.done()]:
            self._cancel()
            wait(under_way, _AGAIN_SECONDS)
        self._pool.shutdown()

    def _do(self, work: Callable[[], Result]) -> Result:
        if self._failure is not None:
            raise self._failure
        try:
            return work()
        except BaseException as failure:
            self._failure = failure
            raise

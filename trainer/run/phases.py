"""The phases of a step: shown while they last, and timed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from trainer.records import Row, fields

_RECORDED = {"evaluate": "eval"}


class Phases:
    """What the run is doing.

    Args:
        show: called with the name of each phase as it begins.
    """

    def __init__(self, show: Callable[[str], None] = lambda name: None) -> None:
        self._show = show
        self.seconds: dict[str, float] = {}
        """By phase, of the wall clock, since `forget`."""

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Show a phase, and add the block's time to it."""
        self._show(name)
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def row(self) -> Row:
        """The times as they are recorded."""
        return {fields.TIME.of(_RECORDED.get(name, name)): value for name, value in self.seconds.items()}

    def forget(self) -> None:
        """Begin another row."""
        self.seconds.clear()

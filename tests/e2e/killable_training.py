"""Runs `trb train` and ends itself without ceremony, as SIGKILL would, where a test wants it.

    python -m tests.e2e.killable_training WHERE COUNT train-arguments...

WHERE: ``journal`` (in the middle of collection), ``update`` (after an update, before it is recorded), ``checkpoint``
(all is written but the name), ``none``. COUNT: at which pass.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import trainer.atomic
from trainer.checkpoints import STATE
from trainer.cli.train import run
from trainer.journal import StepJournal


def main() -> int:
    where, count, *arguments = sys.argv[1:]
    if where == "journal":
        _end_in(StepJournal, "append", int(count))
    elif where == "update":
        from trainer.engine import TrainEngine

        _end_in(TrainEngine, "update", int(count))
    elif where == "checkpoint":
        _end_before_checkpoint_is_named(int(count))
    return run(arguments)


def _end_in(owner: type, method: str, count: int) -> None:
    original: Callable[..., Any] = getattr(owner, method)
    passes = 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal passes
        result = original(*args, **options)
        passes += 1
        if passes == count:
            os._exit(9)
        return result

    setattr(owner, method, counted)


def _end_before_checkpoint_is_named(count: int) -> None:
    sync, passes = trainer.atomic.sync, 0

    def counted(path):
        nonlocal passes
        passes += path.name == STATE
        if passes == count:
            os._exit(9)
        sync(path)

    trainer.atomic.sync = counted


if __name__ == "__main__":
    sys.exit(main())

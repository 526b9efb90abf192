"""Runs `trb train` and ends itself without ceremony, as SIGKILL would, where a test wants it.

    python -m tests.e2e.killable_training WHERE COUNT train-arguments...

WHERE: ``journal`` (in the middle of collection), ``update`` (after an update, before it is recorded), ``checkpoint``
(all is written but the name), ``evaluation`` (measured, not recorded), ``evaluation_beside`` (the same, once a later
checkpoint is there), ``push`` (after a part of the weights was sent), ``none``. COUNT: at which pass. The others harm
something else: ``server`` kills the server that the run started, in the middle of collection, and ``server_in_push``
between two parts of the weights; ``disk`` lets the files of a checkpoint grow to 100 kB only, ``disk_in_journal`` fails
once a rollout was written, ``nan`` makes one update's gradient NaN, and ``refusal`` has one request refused.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil

import trainer.atomic
from sglang_trb.cli.main import main as trb
from trainer.learner.checkpoints import STATE, CheckpointStore
from trainer.rollouts.client import Refused, TrbClient
from trainer.rollouts.journal import StepJournal


def main() -> int:
    where, count, *arguments = sys.argv[1:]
    if where == "journal":
        _end_in(StepJournal, "append", int(count))
    elif where == "update":
        from trainer.learner.engine import TrainEngine

        _end_in(TrainEngine, "update", int(count))
    elif where == "evaluation":
        from trainer.run import evaluator

        _end_in(evaluator, "evaluate_benchmark", int(count))
    elif where == "evaluation_beside":
        _end_in_evaluation_beside(int(count))
    elif where == "push":
        _in_push(int(count), lambda: os._exit(9))
    elif where == "server_in_push":
        _in_push(int(count), _kill_server)
    elif where == "server":
        _call_after(StepJournal, "append", int(count), _kill_server)
    elif where == "disk_in_journal":
        _call_after(StepJournal, "append", int(count), _no_space)
    elif where == "nan":
        _poison_update(int(count))
    elif where == "refusal":
        _refuse(int(count))
    elif where == "disk":
        from trainer.learner.engine import TrainEngine

        _fill_disk(TrainEngine)
    elif where == "checkpoint":
        _end_before_checkpoint_is_named(int(count))
    return trb(["train", *arguments])


def _end_in(owner: Any, method: str, count: int) -> None:
    _call_after(owner, method, count, lambda: os._exit(9))


def _end_in_evaluation_beside(count: int) -> None:
    from trainer.run import evaluator

    evaluate, passes = evaluator.evaluate_benchmark, 0

    def counted(leader: Any, benchmark: Any, step: int) -> Any:
        nonlocal passes
        measured = evaluate(leader, benchmark, step)
        passes += 1
        store = CheckpointStore(leader.config.run_folder / "checkpoints", 1)
        while passes == count:
            latest = store.latest()
            if latest is not None and latest.step > step:
                time.sleep(1.0)  # what is older than the newest is removed meanwhile
                os._exit(9)
            time.sleep(0.01)
        return measured

    evaluator.evaluate_benchmark = counted  # type: ignore[assignment]


def _kill_server() -> None:
    for child in psutil.Process().children():
        if "sglang_trb.cli.main" in child.cmdline():
            child.kill()


def _poison_update(count: int) -> None:
    from trainer.learner.engine import TrainEngine

    update, passes = TrainEngine.update, 0

    def poisoned(self: Any, shard: Any, *arguments: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == count:
            shard[0].position_weight_N[0] = float("nan")
        return update(self, shard, *arguments)

    TrainEngine.update = poisoned  # type: ignore[method-assign]


def _no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a journal")


def _refuse(count: int) -> None:
    generate, passes = TrbClient.generate, 0

    async def counted(self: TrbClient, *arguments: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == count:
            raise Refused("a row of NaN")
        return await generate(self, *arguments)

    TrbClient.generate = counted  # type: ignore[method-assign]


def _fill_disk(engine: type) -> None:
    save = engine.save

    def limited(self: Any, folder: Any) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        try:
            save(self, folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    engine.save = limited


def _call_after(owner: Any, method: str, count: int, action: Callable[[], None]) -> None:
    original: Callable[..., Any] = getattr(owner, method)
    passes = 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal passes
        result = original(*args, **options)
        passes += 1
        if passes == count:
            action()
        return result

    setattr(owner, method, counted)


def _in_push(count: int, action: Callable[[], None]) -> None:
    post, passes = TrbClient.post, 0

    async def counted(self: TrbClient, route: str, *arguments: Any) -> Any:
        nonlocal passes
        result = await post(self, route, *arguments)
        is_part = route.startswith("/update_weights_from_")
        passes += is_part
        if is_part and passes == count:
            action()
        return result

    TrbClient.post = counted  # type: ignore[method-assign]


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

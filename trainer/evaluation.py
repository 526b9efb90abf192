"""Evaluation of a checkpoint outside a training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from trainer.checkpoints import CheckpointStore
from trainer.config import RunConfig
from trainer.errors import TrainerError
from trainer.leader import Leader
from trainer.run_folder import claimed
from trainer.statistics import PassAt1
from trainer.vocabulary import shared_vocabulary

_SAY_EVERY_SECONDS = 10.0


class NoSuchCheckpoint(TrainerError, LookupError):
    """The run has no checkpoint of that step."""


def evaluate_checkpoint(
    config: RunConfig, step: int | None, note: Callable[[str], None]
) -> Iterator[tuple[str, PassAt1, int]]:
    """pass@1 on each benchmark of the configuration, as it is measured.

    Args:
        config: of the run.
        step: of the checkpoint; 0 is ``models.student``; None the newest checkpoint, or 0 where there is none.
        note: called with a line for people.

    Yields:
        The benchmark's name, the result, and how many answers the grader failed on.

    Raises:
        NoSuchCheckpoint: names the steps that there are.
        FolderInUse: the run is being trained.
    """
    checkpoints = {c.step: c for c in CheckpointStore(config.run_folder / "checkpoints", 1).all()}
    if step is None:
        step = max(checkpoints, default=0)
    if step and step not in checkpoints:
        raise NoSuchCheckpoint(f"--step: got {step}; allowed: 0 and the checkpoints {sorted(checkpoints)}")
    folder = checkpoints[step].student if step else config.models.student
    said = time.monotonic()

    def on_rollout(done: int, wanted: int, tokens: int) -> None:
        nonlocal said
        if time.monotonic() - said > _SAY_EVERY_SECONDS or done == wanted:
            said = time.monotonic()
            note(f"{done} of {wanted} responses, {tokens} tokens")

    with (
        claimed(config.run_folder),
        Leader(config, shared_vocabulary(config), note, on_rollout) as leader,
    ):
        leader.serve_folder(folder, step)
        for benchmark in config.evaluation.benchmarks:
            note(f"{benchmark.name}: the student after {step} updates")
            yield benchmark.name, *leader.evaluate(benchmark, step)

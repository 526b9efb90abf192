"""Evaluation of a checkpoint outside a training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from sglang_trb.checkpoints.weight_files import require_weights
from sglang_trb.pair.pair import Pair
from trainer.config.run import Benchmark, RunConfig
from trainer.errors import TrainerError
from trainer.learner.checkpoints import Checkpoint, CheckpointStore
from trainer.learner.student_folder import STUDENT_FIELD
from trainer.records import Evaluation, write_evaluation
from trainer.run.benchmarks import Measured, evaluate_benchmark
from trainer.run.folder import claimed
from trainer.run.leader import Leader

_SAY_EVERY_SECONDS = 10.0

BEST = "best"
"""Instead of a step: the checkpoint with the highest score."""


class NoSuchCheckpoint(TrainerError, LookupError):
    """The run has no such checkpoint."""


def evaluate_checkpoint(
    config: RunConfig, wanted: int | str | None, note: Callable[[str], None]
) -> Iterator[Evaluation]:
    """pass@1 on each benchmark of the configuration, as it is measured; kept in the run's folder, too.

    Of the configuration's data only the benchmarks are read.

    Args:
        config: of the run.
        wanted: step of the checkpoint; 0 is ``models.student``; `BEST`; None is the newest checkpoint, or 0 where there
            is none.
        note: called with a line for people.

    Yields:
        Each result, before it is written: a full disk does not keep it from being shown.

    Raises:
        NoSuchCheckpoint: names the steps that there are.
        CheckpointBroken: the record of the best is damaged.
        FolderInUse: the run is being trained.
        OSError: a result cannot be written; its responses are there, and are not drawn again.
    """
    store = CheckpointStore(config.run_folder / "checkpoints", 1)
    checkpoints = {c.step: c for c in store.all()}
    step = _step(store, checkpoints, wanted)
    folder = checkpoints[step].student if step else config.models.student
    require_weights(STUDENT_FIELD, folder)
    said = time.monotonic()

    def on_rollout(done: int, wanted: int, tokens: int) -> None:
        nonlocal said
        if time.monotonic() - said > _SAY_EVERY_SECONDS or done == wanted:
            said = time.monotonic()
            note(f"{done} of {wanted} responses, {tokens} tokens")

    with (
        claimed(config.run_folder),
        Leader(
            config, Pair.load(config.models.student, config.models.teacher), note, on_rollout, trains=False
        ) as leader,
    ):
        leader.servers.publish_folder(folder, leader.weight_version(step))
        for benchmark in config.evaluation.benchmarks:
            note(f"{benchmark.name}: the student after {step} updates")
            evaluation = _evaluation(config, benchmark, step, evaluate_benchmark(leader, benchmark, step))
            yield evaluation
            write_evaluation(config.run_folder, evaluation)


def _step(store: CheckpointStore, checkpoints: dict[int, Checkpoint], wanted: int | str | None) -> int:
    if wanted is None:
        return max(checkpoints, default=0)
    if wanted == BEST:
        best = store.best()
        if best is None or best.step not in checkpoints:
            raise NoSuchCheckpoint(f"--step: got 'best', but no checkpoint was evaluated in {store.folder}")
        return best.step
    if not isinstance(wanted, int) or (wanted and wanted not in checkpoints):
        raise NoSuchCheckpoint(f"--step: got {wanted}; allowed: 0, best and the checkpoints {sorted(checkpoints)}")
    return wanted


def _evaluation(config: RunConfig, benchmark: Benchmark, step: int, measured: Measured) -> Evaluation:
    drawn = config.evaluation.model_dump(mode="json", include={"temperature", "max_new_tokens"})
    settings: dict[str, Any] = {"student": config.models.student, "seed": config.seed, **drawn}
    settings["benchmark"] = benchmark.model_dump(mode="json")
    score = measured.score
    graded = score.problems > 0
    return Evaluation(
        benchmark=benchmark.name,
        step=step,
        pass_at_1=score.mean if graded else None,
        low=score.low if graded else None,
        high=score.high if graded else None,
        problems=score.problems,
        faults=measured.faults,
        settings=settings,
    )

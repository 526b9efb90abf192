"""Checkpoints: folders that are whole or not there, the last few and the best of them.

A checkpoint ``step-000020`` is the run after 20 updates: ``state.json``, ``engine/`` (DeepSpeed's: optimiser,
scheduler), ``student/`` (weights, config and tokenizer, for everything that loads a checkpoint).
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from trainer.atomic import UNFINISHED, remove_folder, write_file
from trainer.errors import TrainerError
from trainer.statistics import best_of

STATE, ENGINE, STUDENT = "state.json", "engine", "student"
BEST = "best.json"
_NAME = re.compile(r"step-(\d{6,})")


class CheckpointBroken(TrainerError, ValueError):
    """A checkpoint that does not belong to this run, or that somebody changed."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk.

    Attributes:
        step: updates that were made.
    """

    folder: Path
    step: int

    @property
    def engine(self) -> Path:
        """The folder of the optimiser's state."""
        return self.folder / ENGINE

    @property
    def student(self) -> Path:
        """The folder of the student."""
        return self.folder / STUDENT

    def state(self) -> dict[str, Any]:
        """What ``state.json`` holds.

        Raises:
            CheckpointBroken: it is missing, unreadable, or of another step.
        """
        try:
            state = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointBroken(f"{self.folder / STATE}: {error}") from None
        step = state.get("step") if isinstance(state, dict) else None
        if step != self.step:
            raise CheckpointBroken(f"{self.folder / STATE}: step: got {step!r}; allowed: {self.step}")
        return state


@dataclasses.dataclass(frozen=True)
class Best:
    """Which checkpoint is the best, and its mean pass@1."""

    step: int
    score: float


class CheckpointStore:
    """The checkpoints of a run.

    Args:
        folder: where they are.
        keep_last: how many of the newest are kept, besides the best.
    """

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder, self._keep_last = folder, keep_last

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.folder / f"step-{step:06d}"

    def all(self) -> list[Checkpoint]:
        """Whole checkpoints, oldest first."""
        return sorted(self._found(), key=lambda checkpoint: checkpoint.step)

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, None where there is none."""
        checkpoints = self.all()
        return checkpoints[-1] if checkpoints else None

    def best(self) -> Best | None:
        """The checkpoint whose evaluation was the best so far, if any was recorded.

        Raises:
            CheckpointBroken: the record is damaged.
        """
        path = self.folder / BEST
        if not path.is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return Best(int(record["step"]), float(record["score"]))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointBroken(f"{path}: {error!r}; remove it to forget which was the best") from None

    def record_best(self, now: Best) -> None:
        """Record it if its score is above that of the best so far; NaN never is, and never stays the best."""
        known = [best for best in (self.best(), now) if best is not None]
        if best_of(known, lambda best: best.score) is now:
            write_file(self.folder / BEST, json.dumps(dataclasses.asdict(now)) + "\n")

    def remove_leftovers(self) -> None:
        """Remove what a killed process left half-written."""
        for path in self.folder.glob(UNFINISHED + "*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def prune(self, also_keep: Container[int] = ()) -> None:
        """Remove all but the newest ``keep_last``, the best, and those of the steps that are named."""
        best = self.best()
        for checkpoint in self.all()[: -self._keep_last]:
            if checkpoint.step not in also_keep and (best is None or checkpoint.step != best.step):
                remove_folder(checkpoint.folder)

    def _found(self) -> Iterator[Checkpoint]:
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                name = _NAME.fullmatch(path.name)
                if name and path.is_dir():
                    yield Checkpoint(path, int(name[1]))

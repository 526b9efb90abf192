"""What each problem of an evaluation scored: what intervals, pairs and halves of a study are computed from.

A JSON file a benchmark in ``scores/step-000020/`` of a run's folder; made again, it is replaced.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.atomic import write_file
from trainer.records.metrics import RecordsBroken

_SCORES = "scores"


class ProblemScores(BaseModel):
    """One student on one benchmark, problem by problem, in the benchmark's order."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    benchmark: str = Field(description="its name")
    step: int = Field(ge=0, description="updates that were made")
    problems: str = Field(description="digest of the questions and answers: scores of one digest can be paired")
    right: list[int] = Field(description="responses that were verified, of each problem")
    graded: list[int] = Field(description="responses with a verdict, of each problem; 0 counts in no mean")

    def shares(self) -> np.ndarray:
        """c/n of each problem (App. A.1), float64 [problems]; NaN where no response could be graded."""
        graded = np.asarray(self.graded, np.float64)
        return np.divide(self.right, graded, out=np.full(len(graded), np.nan), where=graded > 0)


def write_scores(run_folder: Path, scores: ProblemScores) -> None:
    """Keep the scores of a step and benchmark.

    Raises:
        OSError: the disk is full or gone; what was there before is as it was.
    """
    path = _path(run_folder, scores.step, scores.benchmark)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, scores.model_dump_json() + "\n")


def read_scores(run_folder: Path, step: int, benchmark: str) -> ProblemScores | None:
    """The scores of a step and benchmark; None where none were kept.

    Raises:
        RecordsBroken: the file is not what `write_scores` wrote.
    """
    path = _path(run_folder, step, benchmark)
    try:
        scores = ProblemScores.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise RecordsBroken(f"{path}: {error.errors()[0]['msg']}; remove it to go on without it") from None
    if len(scores.right) != len(scores.graded) or any(
        not 0 <= right <= graded for right, graded in zip(scores.right, scores.graded, strict=True)
    ):
        raise RecordsBroken(f"{path}: right and graded do not belong together; remove it to go on without it")
    return scores


def _path(run_folder: Path, step: int, benchmark: str) -> Path:
    return run_folder / _SCORES / f"step-{step:06d}" / f"{benchmark}.json"

"""What `trb evaluate` measured: a JSON file each in ``evaluations/step-000020/``, beside the responses.

A file is of one benchmark, step and way to draw; measured again, it is replaced.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.atomic import UNFINISHED, write_file
from trainer.records.metrics import RecordsBroken

EVALUATIONS = "evaluations"
"""Of a run's folder: the responses of its evaluations, and the results of `trb evaluate`."""


class Evaluation(BaseModel):
    """pass@1 of one student on one benchmark; scores are None where no answer could be graded."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    benchmark: str = Field(description="its name")
    step: int = Field(description="updates that were made")
    pass_at_1: float | None = Field(description="0 to 1")
    low: float | None = Field(description="of its interval")
    high: float | None = Field(description="of its interval")
    problems: int = Field(description="with a graded answer")
    faults: int = Field(description="responses that could not be had or graded")
    settings: dict[str, Any] = Field(description="how the responses were drawn")


def write_evaluation(run_folder: Path, evaluation: Evaluation) -> Path:
    """Keep a result under its step, benchmark and settings.

    Raises:
        OSError: the disk is full or gone; a result that was there before is as it was.
    """
    settings = json.dumps(evaluation.settings, sort_keys=True)
    name = f"{evaluation.benchmark}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.json"
    path = run_folder / EVALUATIONS / f"step-{evaluation.step:06d}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, evaluation.model_dump_json(indent=2) + "\n")
    return path


def read_evaluations(run_folder: Path) -> list[Evaluation]:
    """All results in a run's folder, by step and benchmark.

    Raises:
        RecordsBroken: a file is not what `write_evaluation` wrote.
    """
    paths = sorted((run_folder / EVALUATIONS).glob("step-*/*.json"))
    found = [_read(path) for path in paths if not path.name.startswith(UNFINISHED)]
    return sorted(found, key=lambda evaluation: (evaluation.step, evaluation.benchmark))


def _read(path: Path) -> Evaluation:
    try:
        return Evaluation.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise RecordsBroken(f"{path}: {where}: {first['msg']}; remove it to go on without it") from None

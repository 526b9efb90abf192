"""Which evaluations beside the training are to be made: steps whose rows are recorded without them.

A file in the run's folder, so that whoever goes on with the run makes them, from the checkpoints of their steps.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from trainer.atomic import write_file
from trainer.records import EVALUATIONS, RecordsBroken


class PendingEvaluations:
    """Steps, on disk.

    Args:
        run_folder: of the run.

    Attributes:
        remedy: what people do who want none of them.
    """

    def __init__(self, run_folder: Path) -> None:
        self._path = run_folder / EVALUATIONS / "pending.json"
        self.remedy = f"remove {self._path} to go on without the evaluations that are missing"

    def steps(self) -> list[int]:
        """In their order.

        Raises:
            RecordsBroken: the file is damaged.
        """
        try:
            steps = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except ValueError:
            steps = None
        if not isinstance(steps, list) or any(type(step) is not int for step in steps):
            raise RecordsBroken(f"{self._path}: got no list of steps; {self.remedy}")
        return sorted(steps)

    def add(self, step: int) -> None:
        """Before the step's row is recorded. Raises: OSError."""
        self.replace({*self.steps(), step})

    def remove(self, step: int) -> None:
        """Once its row has the evaluation. Raises: OSError."""
        self.replace({*self.steps()} - {step})

    def replace(self, steps: Iterable[int]) -> None:
        """Raises: OSError."""
        wanted = sorted(steps)
        if wanted != self.steps():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._path, json.dumps(wanted) + "\n")

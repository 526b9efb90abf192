"""Where rows are shown besides the metrics file: TensorBoard, and wandb if it is asked for.

Each imports its library only when it is made. Checked with tensorboard 2.21.0; wandb against its documentation only.
"""

from __future__ import annotations

import importlib
import math
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from trainer.atomic import write_file
from trainer.errors import TrainerError
from trainer.records.metrics import RecordsBroken

WANDB_ID_FILE = "wandb-id"
_WANDB_ID = re.compile(r"[\w-]{1,64}", re.ASCII)


class SinkUnavailable(TrainerError, ImportError):
    """A sink was asked for whose library is not installed."""


class SinkFailed(TrainerError, RuntimeError):
    """A sink could not take a row; the message names the sink and says why."""


class Sink(Protocol):
    """Takes rows in the order of their steps, of which some come again with what was measured later, and that alone.

    Raises SinkFailed, and nothing else, when it cannot.
    """

    def write(self, row: Mapping[str, float]) -> None:
        """Take one row. Raises: SinkFailed."""

    def close(self) -> None:
        """Write what is left. Raises: SinkFailed."""


class TensorBoardSink:
    """Writes each value as a scalar of its step."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Open a new event file.

        Args:
            folder: where the event files go; the same folder when a run is resumed.
            first_step: the first step that will be written; TensorBoard hides what a killed run wrote from there on.

        Raises:
            SinkUnavailable: tensorboard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SinkUnavailable(f"records.tensorboard is on, but {error}: pip install tensorboard") from error
        self._writer: Any = SummaryWriter(str(folder), purge_step=first_step)

    def write(self, row: Mapping[str, float]) -> None:
        """As `Sink.write`."""
        try:
            for name, value in row.items():
                if name != "step":
                    self._writer.add_scalar(name, value, int(row["step"]))
            self._writer.flush()
        except OSError as error:
            raise SinkFailed(f"TensorBoard failed: {error}") from error

    def close(self) -> None:
        """As `Sink.close`."""
        try:
            self._writer.close()
        except OSError as error:
            raise SinkFailed(f"TensorBoard failed: {error}") from error


def wandb_id(folder: Path) -> str:
    """The id of a folder's wandb run, drawn at the first call.

    Raises:
        RecordsBroken: the file holds no id.
    """
    path = folder / WANDB_ID_FILE
    if not path.exists():
        write_file(path, secrets.token_hex(8) + "\n")
    found = path.read_text(encoding="utf-8", errors="replace").strip()
    if not _WANDB_ID.fullmatch(found):
        raise RecordsBroken(f"{path}: got {found[:80]!r}; allowed: letters, digits, - and _; remove it to begin anew")
    return found


class WandbSink:
    """Logs each row to one wandb run, with ``step`` as the axis of every chart.

    The wandb run belongs to the run's folder: its id is drawn once and kept there, in ``wandb-id``, so that a resumed
    run goes on with it and a run of the same name in another folder has its own.

    wandb keeps what it was sent: steps that a resumed run repeats are there twice, with equal values.
    """

    def __init__(self, project: str, name: str, folder: Path, settings: Mapping[str, Any]) -> None:
        """Start the wandb run, or go on with it.

        Args:
            project: wandb's project.
            name: shown for the run; several may have it.
            folder: the run's, where wandb keeps its local files.
            settings: the run's resolved settings, shown by wandb.

        Raises:
            SinkUnavailable: wandb is not installed.
            SinkFailed: wandb would not start (no login, no network).
            RecordsBroken: the folder's ``wandb-id`` is no id.
        """
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise SinkUnavailable(
                "records.wandb_project is set, but wandb is not installed: pip install wandb"
            ) from error
        run_id = wandb_id(folder)
        self._failures: tuple[type[Exception], ...] = (wandb.Error, OSError)
        try:
            self._run: Any = wandb.init(
                project=project, id=run_id, name=name, resume="allow", dir=str(folder), config=dict(settings)
            )
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        except self._failures as error:
            raise SinkFailed(f"wandb would not start: {error}") from error

    def write(self, row: Mapping[str, float]) -> None:
        """As `Sink.write`."""
        # wandb draws no point for NaN and the infinities, and its JSON is not strict about them.
        finite = {name: value for name, value in row.items() if math.isfinite(value)}
        try:
            self._run.log(finite)
        except self._failures as error:
            raise SinkFailed(f"wandb failed: {error}") from error

    def close(self) -> None:
        """As `Sink.close`."""
        try:
            self._run.finish()
        except self._failures as error:
            raise SinkFailed(f"wandb failed: {error}") from error

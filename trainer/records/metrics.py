"""``metrics.jsonl``: the source of truth of a run's curves, one JSON object a step.

A row is on disk when `MetricsLog.append` returns. Numbers read back bit for bit; NaN and the infinities, which JSON
lacks, are written as the strings "NaN", "Infinity" and "-Infinity" and read back as numbers.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sglang_trb.errors import InvalidParameter
from trainer.atomic import sync, write_file
from trainer.errors import TrainerError

Row = dict[str, float]
"""``step`` (an int) and the step's values by name, ``group/name`` or ``group/name/name``."""

_NAME = re.compile(r"\w+(/[\w.@+-]+)+", re.ASCII)
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_WALL_CLOCK = re.compile(r"time/.*|.*_per_s|.*/seconds")


class RecordsBroken(TrainerError, ValueError):
    """A file of the records holds what no run writes; the message names the place."""


class MetricsLog:
    """Appends rows to a metrics file. One process per file.

    Opening creates the file, and cuts off a last line that a kill left unfinished; its bytes are kept in a history file
    (``metrics.torn-001.jsonl`` and so on).

    Attributes:
        last_step: ``step`` of the last row, None in an empty file.
    """

    def __init__(self, path: Path) -> None:
        """Open, and repair if need be.

        Raises:
            RecordsBroken: a line other than an unfinished last one is not a row, or the steps do not increase.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        sync(path.parent)
        _repair(path)
        rows = read_rows(path)
        self.last_step = int(rows[-1]["step"]) if rows else None

    def append(self, row: Mapping[str, float]) -> None:
        """Write one row and wait until it is on disk.

        Args:
            row: ``step``, larger than `last_step`, and the values; ints and floats, NaN and infinities included.

        Raises:
            InvalidParameter: a name or value that a row cannot hold, or a step that does not follow.
            OSError: the disk is full or gone; the rows before this one are whole.
        """
        line = _to_line(row)
        step = int(row["step"])
        if self.last_step is not None and step <= self.last_step:
            raise InvalidParameter("step", step, f"greater than the last recorded, {self.last_step}")
        _append_synced(self.path, line)
        self.last_step = step

    def amend(self, step: int, values: Mapping[str, float]) -> None:
        """Add what was measured later to a row that is there; readers see the file as it was or with it, whole.

        Raises:
            InvalidParameter: no row of that step, or a name or value that a row cannot hold.
            OSError: the disk is full or gone; the file is as it was.
        """
        rows = read_rows(self.path)
        amended = next((row for row in rows if row["step"] == step), None)
        if amended is None:
            raise InvalidParameter("step", step, "that of a recorded row")
        amended.update(values)
        write_file(self.path, _to_text(rows))

    def rewind(self, step: int) -> Path | None:
        """Before resuming from the checkpoint of ``step``: move the rows after it to a history file.

        Returns:
            The history file (``metrics.rewound-001.jsonl`` and so on), or None where there were no such rows.
        """
        if self.last_step is None or self.last_step <= step:
            return None
        rows = read_rows(self.path)
        kept = [row for row in rows if row["step"] <= step]
        # History first: a kill in between leaves the rows in both files, never in none.
        history = _keep_aside(self.path, "rewound", _to_text(rows[len(kept) :]))
        write_file(self.path, _to_text(kept))
        self.last_step = int(kept[-1]["step"]) if kept else None
        return history


def read_rows(path: Path) -> list[Row]:
    """Read a metrics file, without its unfinished last line if it has one; also while a run writes to it.

    Raises:
        RecordsBroken: a line is not a row, or the steps do not increase.
        OSError: the file cannot be read.
    """
    rows: list[Row] = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        row = _from_line(line)
        if row is None:
            raise RecordsBroken(f"{path}, line {number}: not a row: {line[:80]!r}")
        if rows and row["step"] <= rows[-1]["step"]:
            raise RecordsBroken(f"{path}, line {number}: step {row['step']} follows step {rows[-1]['step']}")
        rows.append(row)
    return rows


def curve(rows: Iterable[Mapping[str, float]]) -> list[Row]:
    """The rows without what the wall clock decides (``time/…``, ``…/seconds``, ``…_per_s``): equal for equal runs.

    Compare the results as text (``repr`` or JSON): NaN is not equal to itself.
    """
    return [{name: value for name, value in row.items() if not _WALL_CLOCK.fullmatch(name)} for row in rows]


def _repair(path: Path) -> None:
    content = path.read_bytes()
    whole, newline, last = content.rpartition(b"\n")
    if not last:
        return
    if _from_line(last) is not None:  # only its newline is missing: an editor, or a kill at the very last byte
        _append_synced(path, b"\n")
        return
    _keep_aside(path, "torn", last)
    write_file(path, whole + newline)


def _keep_aside(path: Path, why: str, content: bytes) -> Path:
    """Write the next free history file beside a metrics file."""
    numbered = (path.with_name(f"{path.stem}.{why}-{number:03d}{path.suffix}") for number in itertools.count(1))
    history = next(file for file in numbered if not file.exists())
    write_file(history, content)
    return history


def _append_synced(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        end = os.fstat(descriptor).st_size
        try:
            written = 0
            while written < len(content):
                written += os.write(descriptor, content[written:])
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)


def _to_text(rows: Iterable[Row]) -> bytes:
    return b"".join(_to_line(row) for row in rows)


def _to_line(row: Mapping[str, Any]) -> bytes:
    step = row.get("step")
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise InvalidParameter("step", step, "an integer >= 0")
    for name, value in row.items():
        if name != "step" and not _NAME.fullmatch(name):
            raise InvalidParameter("metric name", name, "group/name, of letters, digits and _ . @ + -")
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_a_float(value):
            raise InvalidParameter(name, value, "an int or a float; leave out what was not measured")
    safe = {name: value if math.isfinite(value) else _spell(value) for name, value in row.items()}
    return json.dumps({"step": step} | safe, allow_nan=False).encode() + b"\n"


def _is_a_float(value: float) -> bool:
    """An int can be too large for one."""
    try:
        float(value)
    except OverflowError:
        return False
    return True


def _spell(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _from_line(line: bytes) -> Row | None:
    """The row of a line, or None if it is not one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or isinstance(row.get("step"), bool) or not isinstance(row.get("step"), int):
        return None
    values: Row = {}
    for name, value in row.items():
        number: Any = _NON_FINITE.get(value) if isinstance(value, str) else value
        if type(number) not in (int, float) or not _is_a_float(number):
            return None
        values[name] = number
    return values

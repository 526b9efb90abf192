"""Rows of JSON lines, of parquet files, or of a data set on the Hugging Face hub, each with the place it comes from."""

from __future__ import annotations

import glob
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError

Rows = Iterator[tuple[str, Mapping[str, Any]]]

_KINDS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
_SAY_EVERY_ROWS = 10_000


class BadProblems(TrainerError, ValueError):
    """A file of problems cannot be used; the message names file, line and column."""


class WrittenFloat(float):
    """A number of JSON that remembers how it is written: 1e22 and 0.10 stay what the file says."""

    text: str

    def __new__(cls, text: str) -> WrittenFloat:
        number = super().__new__(cls, text)
        number.text = text
        return number


def json_text(value: Any) -> str:
    """A value as JSON writes it, a number of a file as the file writes it; a date and the like as text."""
    if isinstance(value, WrittenFloat):
        return value.text
    if value is None or isinstance(value, bool | int | float | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def local_rows(path: str) -> Rows:
    """Rows of a file, of all files of a folder, or of those that a pattern such as ``data/train-*.parquet`` matches.

    Args:
        path: of .jsonl or .json (an object a line), both also with .gz, or .parquet; ``~`` is the home folder.

    Raises:
        BadProblems: there is no such file, or it is not what its name says.
    """
    for file in _files(path):
        yield from _parquet_rows(file) if file.suffix == ".parquet" else _json_rows(file)


def hub_rows(repo: str, subset: str | None, split: str, note: Callable[[str], None]) -> Rows:
    """Rows of a data set on the hub, as they are downloaded.

    Raises:
        BadProblems: it cannot be reached.
    """
    import datasets

    place = f"{repo}{'' if subset is None else f' ({subset})'}, split {split}"
    note(f"reading {place} from the hub")
    try:
        rows = datasets.load_dataset(repo, subset, split=split, streaming=True)
        for line, row in enumerate(rows, start=1):
            if line % _SAY_EVERY_ROWS == 0:
                note(f"{place}: {line} rows")
            yield f"{repo}, line {line}", row
    except (OSError, ValueError) as error:
        raise BadProblems(f"problems: got {place}; allowed: a data set that can be reached ({error})") from None


def _files(given: str) -> list[Path]:
    try:
        path = Path(given).expanduser()
    except RuntimeError as error:
        raise BadProblems(f"problems: got {given!r}; allowed: a path ({error})") from None
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(_KINDS) and file.is_file())
    else:
        files = sorted(file for name in glob.glob(str(path), recursive=True) if (file := Path(name)).is_file())
    kinds = {file.suffix == ".parquet" for file in files}
    if len(kinds) != 1:
        held = "parquet files beside others" if kinds else "no file"
        raise BadProblems(
            f"problems: got {held} in {given!r}; allowed: a file that exists, or a folder or a pattern of JSON lines "
            f"or of parquet files ({', '.join(_KINDS)})"
        )
    return files


def _parquet_rows(path: Path) -> Rows:
    import pyarrow.parquet

    line = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                line += 1
                yield f"{path}, line {line}", row
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise BadProblems(f"{path}: got no parquet file; allowed: one ({error})") from None


def _json_rows(path: Path) -> Rows:
    """Blank lines are no rows."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            for line, raw in enumerate(stream, start=1):
                if raw.strip():
                    place = f"{path}, line {line}"
                    yield place, _json_row(raw, place)
    except (OSError, EOFError, zlib.error) as error:
        raise BadProblems(f"{path}: got a file that cannot be read; allowed: JSON lines ({error})") from None


def _json_row(raw: bytes, place: str) -> Mapping[str, Any]:
    try:
        row = json.loads(raw, parse_float=WrittenFloat)
    except (ValueError, RecursionError) as error:
        raise BadProblems(f"{place}: got no JSON ({error}); allowed: one object a line") from None
    if not isinstance(row, dict):
        raise BadProblems(f"{place}: got {type(row).__name__}; allowed: one object a line")
    return row

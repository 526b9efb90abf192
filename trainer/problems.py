"""Problems: a question and its gold answer, from local JSON lines or parquet."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError


class BadProblems(TrainerError, ValueError):
    """A file of problems cannot be used; the message names file, line and column."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        id: of the file's ``id`` column, or its line number.
        question: not empty.
        answer: gold, or None where none is known.
    """

    id: str
    question: str
    answer: str | None = None


def read_problems(
    path: str | Path,
    *,
    question_field: str = "question",
    answer_field: str | None = "answer",
    where: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> list[Problem]:
    """Read a file.

    Args:
        path: ``*.jsonl`` or ``*.parquet``.
        question_field, answer_field: columns; answers may be text, numbers, or lists of one of those.
        where: keep the rows whose columns have these values, compared as text.
        limit: the first so many of them.

    Raises:
        BadProblems: missing file or column, something that is not text, an empty question, an id given twice.
    """
    problems: list[Problem] = []
    seen: set[str] = set()
    for line, row in _rows(Path(path)):
        if limit is not None and len(problems) == limit:
            break
        place = f"{path}, line {line}"
        if any(str(_column(row, name, place)) != value for name, value in (where or {}).items()):
            continue
        question = _column(row, question_field, place)
        if not isinstance(question, str) or not question.strip():
            raise BadProblems(f"{place}, {question_field}: got {question!r}; allowed: text that is not empty")
        answer = None if answer_field is None else _answer(_column(row, answer_field, place), place, answer_field)
        problem = Problem(str(row.get("id", line)), question, answer)
        if problem.id in seen:
            raise BadProblems(f"{place}, id: got {problem.id!r} again; allowed: a different id for every problem")
        seen.add(problem.id)
        problems.append(problem)
    if not problems:
        kept = f" with {dict(where)}" if where else ""
        raise BadProblems(f"{path}: got no problem{kept}; allowed: at least one")
    return problems


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if not path.is_file():
        raise BadProblems(f"problems: got {str(path)!r}; allowed: a file that exists")
    if path.suffix == ".parquet":
        import pyarrow.parquet

        yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1)
        return
    with path.open("rb") as stream:
        for line, raw in enumerate(stream, start=1):
            try:
                row = json.loads(raw)
            except (ValueError, UnicodeDecodeError) as error:
                raise BadProblems(f"{path}, line {line}: got no JSON ({error}); allowed: one object a line") from None
            if not isinstance(row, dict):
                raise BadProblems(f"{path}, line {line}: got {type(row).__name__}; allowed: one object a line")
            yield line, row


def _column(row: Mapping[str, Any], name: str, place: str) -> Any:
    if name not in row:
        raise BadProblems(f"{place}: there is no column {name!r}; there are: {', '.join(row)}")
    return row[name]


def _answer(value: Any, place: str, field: str) -> str | None:
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise BadProblems(f"{place}, {field}: got {value!r}; allowed: text or a number")
    if value is None:
        return None
    # GSM8K's answers are whole solutions that end in "#### 1,234".
    text = str(value)
    return text.rsplit("####", 1)[1].strip().replace(",", "") if "####" in text else text

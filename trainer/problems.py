"""Problems: a question and its gold answer, from JSON lines, parquet, or a data set on the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.atomic import write_file
from trainer.config import Source
from trainer.errors import TrainerError
from trainer.grading import last_boxed

_SAY_EVERY_ROWS = 10_000


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


def read_problems(source: Source, note: Callable[[str], None] = lambda line: None) -> list[Problem]:
    """Read a source. Of a data set on the hub, what was chosen is kept, and read from there the next time.

    Args:
        source: answers may be text, numbers, or lists of those.
        note: called with a line for people while a data set is read from the hub.

    Raises:
        BadProblems: missing file, data set or column, something that is not text, an empty question, an id given twice.
    """
    if source.path is not None:
        return _chosen(_local_rows(Path(source.path)), source, source.path)
    kept = _kept_file(source)
    if not kept.is_file():
        problems = _chosen(_hub_rows(source, note), source, str(source.repo))
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_file(kept, "".join(json.dumps(dataclasses.asdict(problem)) + "\n" for problem in problems))
        note(f"{source.repo}: {len(problems)} problems, kept in {kept}")
    return [Problem(**row) for _, row in _local_rows(kept)]


def _chosen(rows: Iterable[tuple[int, Mapping[str, Any]]], source: Source, name: str) -> list[Problem]:
    problems: list[Problem] = []
    ids: set[str] = set()
    questions: set[str] = set()
    for line, row in rows:
        if source.limit is not None and len(problems) == source.limit:
            break
        place = f"{name}, line {line}"
        if any(str(_column(row, column, place)) != value for column, value in source.where.items()):
            continue
        question = _column(row, source.question_field, place)
        if not isinstance(question, str) or not question.strip():
            raise BadProblems(f"{place}, {source.question_field}: got {question!r}; allowed: text that is not empty")
        if not _is_unicode(question):
            raise BadProblems(f"{place}, {source.question_field}: got a lone surrogate; allowed: Unicode text")
        if source.unique and question in questions:
            continue
        answer = None
        if source.answer_field is not None:
            answer = _answer(_column(row, source.answer_field, place), source, place)
        problem = Problem(str(row.get("id", line)), question, answer)
        if problem.id in ids:
            raise BadProblems(f"{place}, id: got {problem.id!r} again; allowed: a different id for every problem")
        ids.add(problem.id)
        questions.add(question)
        problems.append(problem)
    if not problems:
        chosen = f" with {source.where}" if source.where else ""
        raise BadProblems(f"{name}: got no problem{chosen}; allowed: at least one")
    return problems


def _hub_rows(source: Source, note: Callable[[str], None]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import datasets

    place = f"{source.repo}{'' if source.subset is None else f' ({source.subset})'}, split {source.split}"
    note(f"reading {place} from the hub")
    try:
        rows = datasets.load_dataset(source.repo, source.subset, split=source.split, streaming=True)
        for line, row in enumerate(rows, start=1):
            if line % _SAY_EVERY_ROWS == 0:
                note(f"{place}: {line} rows")
            yield line, row
    except (OSError, ValueError) as error:
        if isinstance(error, BadProblems):
            raise
        raise BadProblems(f"problems: got {place}; allowed: a data set that can be reached ({error})") from None


def _kept_file(source: Source) -> Path:
    """Named after all that decides about its rows."""
    decides = Source.model_validate(source.model_dump(include=set(Source.model_fields))).model_dump_json()
    name = str(source.repo).strip("/").replace("/", "--")
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return cache / "sglang-trb" / "problems" / f"{name}-{hashlib.sha256(decides.encode()).hexdigest()[:16]}.jsonl"


def _local_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if not path.is_file():
        raise BadProblems(f"problems: got {str(path)!r}; allowed: a file that exists")
    if path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
        except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
            raise BadProblems(f"{path}: got no parquet file; allowed: one ({error})") from None
        yield from enumerate(rows, start=1)
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


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _column(row: Mapping[str, Any], name: str, place: str) -> Any:
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise BadProblems(f"{place}: there is no column {name!r}; there are: {', '.join(row)}") from None
    return value


def _answer(value: Any, source: Source, place: str) -> str | None:
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        value = ", ".join(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise BadProblems(f"{place}, {source.answer_field}: got {value!r}; allowed: text or a number")
    if value is None:
        return None
    text = str(value)
    if source.answer_form == "boxed":
        return last_boxed(text)
    # GSM8K's answers are whole solutions that end in "#### 1,234".
    return text.rsplit("####", 1)[1].strip().replace(",", "") if "####" in text else text

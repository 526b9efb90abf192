"""Problems: a question and its gold answer, from the rows of files or of a data set on the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import string
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from trainer.atomic import write_file
from trainer.config.run import Source
from trainer.data.rows import BadProblems, WrittenFloat, hub_rows, json_text, local_rows
from trainer.grading.answers import last_boxed


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        id: of the row's ``id``, where it has one that no row before it has; else made of the row's number.
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
        BadProblems: a missing file, data set or column, an empty question or answer, or one that cannot be used.
    """
    if source.path is not None:
        return _chosen(local_rows(source.path), source, source.path)
    kept = _kept_file(source)
    if not kept.is_file():
        rows = hub_rows(str(source.repo), source.subset, source.split, note)
        problems = _chosen(rows, source, str(source.repo))
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_file(kept, "".join(json.dumps(dataclasses.asdict(problem)) + "\n" for problem in problems))
        note(f"{source.repo}: {len(problems)} problems, kept in {kept}")
    return [Problem(**row) for _, row in local_rows(str(kept))]


def _chosen(rows: Iterable[tuple[str, Mapping[str, Any]]], source: Source, name: str) -> list[Problem]:
    problems: list[Problem] = []
    ids: set[str] = set()
    questions: set[str] = set()
    for number, (place, row) in enumerate(rows, start=1):
        if source.limit is not None and len(problems) == source.limit:
            break
        if not all(_matches(_column(row, column, place), wanted) for column, wanted in source.where.items()):
            continue
        question = _question(row, source.question_field, place)
        if source.unique and question in questions:
            continue
        answer = None
        if source.answer_field is not None:
            answer = _answer(_column(row, source.answer_field, place), source, f"{place}, {source.answer_field}")
        problem = Problem(_id(row.get("id"), number, ids, place), question, answer)
        ids.add(problem.id)
        questions.add(question)
        problems.append(problem)
    if not problems:
        chosen = f" with {source.where}" if source.where else ""
        raise BadProblems(f"{name}: got no problem{chosen}; allowed: at least one")
    return problems


def _kept_file(source: Source) -> Path:
    """Named after all that decides about its rows."""
    decides = Source.model_validate(source.model_dump(include=set(Source.model_fields))).model_dump_json()
    name = str(source.repo).strip("/").replace("/", "--")
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return cache / "sglang-trb" / "problems" / f"{name}-{hashlib.sha256(decides.encode()).hexdigest()[:16]}.jsonl"


def _column(row: Mapping[str, Any], name: str, place: str) -> Any:
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if value is None:  # nor has it any parts
            return None
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise BadProblems(f"{place}: there is no column {name!r}; there are: {', '.join(row)}") from None
    return value


def _matches(value: Any, wanted: str | float | bool | None) -> bool:
    """A value matches as what it is: 5 and 5.0, but neither 5 and "5" nor 1 and true. A text also matches the JSON of
    what is no text, so that ``"true"`` finds true.
    """
    if isinstance(wanted, str):
        return (value if isinstance(value, str) else json_text(value)) == wanted
    if wanted is None or isinstance(wanted, bool) or isinstance(value, bool):
        return value is wanted
    if isinstance(value, Decimal):
        return value == wanted or float(value) == wanted
    return isinstance(value, int | float) and value == wanted


def _question(row: Mapping[str, Any], field: str, place: str) -> str:
    """The column, or the template over columns, filled in."""
    question = _column(row, field, place) if "{" not in field else _filled(row, field, place)
    if not isinstance(question, str) or not question.strip():
        raise BadProblems(f"{place}, {field}: got {question!r}; allowed: text that is not empty")
    return _unicode(question, f"{place}, {field}")


def _filled(row: Mapping[str, Any], template: str, place: str) -> str:
    filled = ""
    for text, column, _, _ in string.Formatter().parse(template):
        filled += text
        if column is not None:
            value = _column(row, column, place)
            if not (isinstance(value, str) or _is_number(value)):
                raise BadProblems(f"{place}, {column}: got {value!r}; allowed: text or a number")
            filled += value if isinstance(value, str) else json_text(value)
    return filled


def _answer(value: Any, source: Source, place: str) -> str | None:
    """The gold answer; a list is one answer that has all of its parts, in any order."""
    if value is None:
        return None
    parts = value if isinstance(value, list) else [value]
    if not parts or not all(isinstance(part, str) or _is_number(part) for part in parts):
        raise BadProblems(f"{place}: got {value!r}; allowed: text, a number, or a list of those")
    text = _unicode(", ".join(part if isinstance(part, str) else json_text(part) for part in parts), place)
    if source.answer_form == "boxed":
        return last_boxed(text) or None
    answer = (_plain if source.answer_pattern is None else _found)(text, source, place).strip()
    if not answer:
        raise BadProblems(f"{place}: got {text!r}; allowed: an answer, or null where none is known")
    return answer


def _plain(text: str, source: Source, place: str) -> str:
    """GSM8K's answers are whole solutions whose last line is ``#### 1,234``."""
    if "####" not in text:
        return text
    found = re.search(r"^[ \t]*####([^\n]*)\s*\Z", text, re.MULTILINE)
    if found is None:
        raise BadProblems(
            f"{place}: got {_shown(text)}; allowed: text whose last line is #### and the answer, or with answer_pattern"
        )
    return found[1].replace(",", "")


def _found(text: str, source: Source, place: str) -> str:
    found = re.search(source.answer_pattern or "", text)
    if found is None:
        raise BadProblems(f"{place}: got {_shown(text)}; allowed: what answer_pattern {source.answer_pattern!r} finds")
    return found[1] or ""


def _id(given: Any, number: int, taken: set[str], place: str) -> str:
    if given is None or given == "":
        given = number
    text = given if isinstance(given, str) else json_text(given)
    _unicode(text, f"{place}, id")
    return text if text not in taken else f"{text} (row {number})"


def _unicode(text: str, place: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadProblems(f"{place}: got a lone surrogate; allowed: Unicode text") from None
    return text


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return False
    # 1e400 of a file is a number, and infinite only as a float.
    return isinstance(value, int | WrittenFloat) or Decimal(value).is_finite()


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"…{text[-80:]}")

"""Files of problems: what is read, and what is said of what cannot be."""

from __future__ import annotations

import gzip
import json
import math
import re
from datetime import date
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest

from trainer.config.run import Source
from trainer.data.problems import BadProblems, Problem, read_problems
from trainer.statistics import pass_at_1


def read(path, **options):
    return read_problems(Source(path=str(path), **options))


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_json_lines_and_parquet_are_read_alike(tmp_path):
    rows = [{"question": "1+1?", "answer": "2"}, {"question": "2+2?", "answer": "4"}]
    want = [Problem("1", "1+1?", "2"), Problem("2", "2+2?", "4")]
    assert read(write(tmp_path / "p.jsonl", *rows)) == want
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert read(tmp_path / "p.parquet") == want
    assert read(tmp_path / "p.parquet", limit=1) == want[:1]


@pytest.mark.parametrize(
    ("answer", "want"),
    [
        ("5", "5"),
        (5, "5"),
        (0.5, "0.5"),
        (["5"], "5"),
        (["1", "2"], "1, 2"),
        ([1, 2.50], "1, 2.5"),
        (None, None),
        ("So 2 * 3.\n#### 1,234", "1234"),
        ("## 1\n#### 2\nand\n#### 3\n\n", "3"),
        (" 5\n", "5"),
        (10**22, "10000000000000000000000"),
    ],
)
def test_answers(tmp_path, answer, want):
    (problem,) = read(write(tmp_path / "p.jsonl", {"question": "?", "answer": answer}))
    assert problem.answer == want


def test_columns_have_any_names(tmp_path):
    path = write(tmp_path / "p.jsonl", {"problem": "?", "final": "1", "id": "a"})
    assert read(path, question_field="problem", answer_field="final") == [Problem("a", "?", "1")]
    assert read(path, question_field="problem", answer_field=None) == [Problem("a", "?", None)]


@pytest.mark.parametrize("written", ["1e22", "1E+22", "1e-7", "0.10", "-0.0", "1e400", "12345678901234567890"])
def test_numbers_stay_as_the_file_writes_them(tmp_path, written):
    path = write(tmp_path / "p.jsonl", f'{{"question": "?", "answer": {written}}}')
    assert read(path)[0].answer == written
    assert read(write(path, f'{{"question": "?", "answer": [{written}]}}'))[0].answer == written


def test_decimal_and_nested_columns_of_parquet(tmp_path):
    rows = [{"question": "?", "answer": Decimal("12.50"), "level": Decimal("5.0")}, {"question": "!", "answer": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert read(tmp_path / "p.parquet", where={"level": 5}) == [Problem("1", "?", "12.50")]
    assert read(tmp_path / "p.parquet", where={"level": None}) == [Problem("2", "!", None)]
    rows = [rows[0] | {"of": {"day": date(2024, 1, 2)}}, rows[1] | {"of": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "q.parquet")
    assert read(tmp_path / "q.parquet", where={"of.day": "2024-01-02"}) == [Problem("1", "?", "12.50")]
    assert read(tmp_path / "q.parquet", where={"of.day": None}) == [Problem("2", "!", None)]


VALUES = {"int": 5, "float": 0.1, "yes": True, "no": False, "nothing": None, "text": "true", "one": 1, "large": 10**30}


@pytest.mark.parametrize(
    ("where", "matches"),
    [
        ({"int": 5}, True),
        ({"int": 5.0}, True),
        ({"int": "5"}, True),
        ({"float": 0.1}, True),
        ({"float": "0.1"}, True),
        ({"yes": True}, True),
        ({"yes": "true"}, True),
        ({"yes": "True"}, False),
        ({"no": False, "nothing": None}, True),
        ({"nothing": "null"}, True),
        ({"nothing": "None"}, False),
        ({"text": "true"}, True),
        ({"text": True}, False),
        ({"one": True}, False),
        ({"yes": 1}, False),
        ({"no": 0}, False),
        ({"no": None}, False),
        ({"large": 10**30}, True),
        ({"large": 1e30}, False),
    ],
)
def test_rows_are_chosen_by_the_values_of_their_columns(tmp_path, where, matches):
    path = write(tmp_path / "p.jsonl", {"question": "?", "answer": 1, **VALUES})
    if matches:
        assert len(read(path, where=where)) == 1
    else:
        with pytest.raises(BadProblems, match=re.escape(f"no problem with {where}")):
            read(path, where=where)


def test_what_a_row_is_chosen_by_is_checked():
    for wrong in ([5], {"a": 1}, float("nan")):
        with pytest.raises(ValueError, match="allowed: text, a number, true, false or null"):
            Source(path="p", where={"level": wrong})
    assert Source.model_validate_json(Source(path="p", where={"a": True, "b": 1}).model_dump_json()).where["a"] is True


def test_ids_that_cannot_be_used_are_made_up(tmp_path):
    ids = ["a", None, "a", 7, "", 2, True]
    path = write(tmp_path / "p.jsonl", *({"question": "?", "answer": 1, "id": id} for id in ids), {**GOOD})
    assert [p.id for p in read(path)] == ["a", "2", "a (row 3)", "7", "5", "2 (row 6)", "true", "8"]


def test_compressed_lines_shards_and_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = [{"question": f"{i}?", "answer": i} for i in range(4)]
    want = [Problem(str(i + 1), f"{i}?", str(i)) for i in range(4)]
    with gzip.open(tmp_path / "all.jsonl.gz", "wt") as stream:
        stream.write("\n".join(map(json.dumps, rows)) + "\n\n \n")
    assert read("~/all.jsonl.gz") == want
    shards = tmp_path / "shards"
    shards.mkdir()
    write(shards / "train-1.jsonl", *rows[2:])
    write(shards / "train-0.jsonl", *rows[:2], "")
    (shards / "README.md").write_text("no rows")
    assert read(shards) == read(shards / "train-*.jsonl") == read(tmp_path / "**" / "*.jsonl") == want
    write(shards / "train-1.jsonl", rows[0], "{")
    with pytest.raises(BadProblems, match=r"train-1\.jsonl, line 2: got no JSON"):
        read(shards)


def test_a_question_in_two_columns(tmp_path):
    row = {"body": "Ann has 2.", "ask": {"en": "How many {apples}?"}, "points": 1.50, "answer": "2"}
    path = write(tmp_path / "p.jsonl", row)
    (problem,) = read(path, question_field="{body} {ask.en} ({points} {{points}})")
    assert problem.question == "Ann has 2. How many {apples}? (1.5 {points})"
    with pytest.raises(BadProblems, match="line 1: there is no column 'text'; there are: body"):
        read(path, question_field="{body} {text}")
    write(path, row | {"body": None})
    with pytest.raises(BadProblems, match="line 1, body: got None; allowed: text or a number"):
        read(path, question_field="{body} {ask.en}")
    for wrong in ("{body", "{body!r}", "{body:5}", "{}", "{{body}}"):
        with pytest.raises(ValueError, match="question_field\n.*allowed: a column, or a template"):
            Source(path="p", question_field=wrong)


@pytest.mark.parametrize(
    ("pattern", "answer", "want"),
    [
        (r"^(.*?) *\([^()]*\)$", "9 (apples)", "9"),
        (r"^(.*?) *(?:\([^()]*\))?$", "9", "9"),
        (r"The answer is: (.*)", "So #### 5 it is.\nThe answer is: 15", "15"),
    ],
)
def test_an_answer_within_its_column(tmp_path, pattern, answer, want):
    path = write(tmp_path / "p.jsonl", {"question": "?", "answer": answer})
    assert read(path, answer_pattern=pattern)[0].answer == want
    with pytest.raises(BadProblems, match=r"line 1, answer: got .*; allowed: what answer_pattern '\(xyz\)' finds"):
        read(path, answer_pattern="(xyz)")
    for wrong in ("(", "a", "(a)(b)", "a" * 501):
        with pytest.raises(ValueError, match="answer_pattern"):
            Source(path="p", answer_pattern=wrong)


def test_a_nested_column_and_the_answer_in_a_trace(tmp_path):
    """The columns of OpenThoughts3-1.2M."""

    def row(question, trace):
        talk = [{"from": "human", "value": question}, {"from": "gpt", "value": trace}]
        return {"domain": "math", "conversations": talk}

    traces = [r"first \boxed{1}, no, \boxed{\frac{1}{2}}.", "cut off", r"\boxed{3}"]
    rows = [row(question, trace) for question, trace in zip(("a?", "b?", "a?"), traces, strict=True)]
    path = write(tmp_path / "p.jsonl", *rows, row("c?", "") | {"domain": "code"})
    columns = {"question_field": "conversations.0.value", "answer_field": "conversations.1.value"}
    got = read(path, **columns, answer_form="boxed", where={"domain": "math"}, unique=True)
    assert got == [Problem("1", "a?", r"\frac{1}{2}"), Problem("2", "b?", None)]
    with pytest.raises(BadProblems, match=r"no column 'conversations\.5\.value'; there are: domain, conversations"):
        read(path, question_field="conversations.5.value")


def test_a_data_set_is_read_once_and_kept(tmp_path, monkeypatch):
    """`datasets` reads a local folder as it does the hub."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    repo = tmp_path / "repo"
    repo.mkdir()
    write(repo / "train.jsonl", *({"problem": f"{i}?", "answer": i} for i in range(5)))
    source = Source(repo=str(repo), split="train", question_field="problem", limit=3)
    notes: list[str] = []
    want = [Problem("1", "0?", "0"), Problem("2", "1?", "1"), Problem("3", "2?", "2")]
    assert read_problems(source, notes.append) == want
    assert "3 problems, kept in" in notes[-1]
    (repo / "train.jsonl").unlink()
    assert read_problems(source, notes.append) == want
    with pytest.raises(BadProblems, match="allowed: a data set that can be reached"):
        read_problems(Source(repo=str(repo), split="train"))


def test_a_source_is_one_place():
    for wrong in ({}, {"path": "a", "repo": "b"}):
        with pytest.raises(ValueError, match="either path"):
            Source(**wrong)


GOOD = {"question": "?", "answer": "1"}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([GOOD, "{"], "line 2: got no JSON"),
        ([GOOD, "[1]"], "line 2: got list"),
        ([{"q": "?"}], "there is no column 'question'; there are: q"),
        ([{"question": "?"}], "there is no column 'answer'"),
        ([{"question": "  ", "answer": "1"}], "line 1, question: got '  '; allowed: text that is not empty"),
        ([{"question": 5, "answer": "1"}], "line 1, question: got 5"),
        ([GOOD | {"answer": []}], "line 1, answer: got \\[\\]; allowed: text, a number, or a list"),
        ([GOOD | {"answer": ["1", None]}], "line 1, answer"),
        ([GOOD | {"answer": {"a": 1}}], "line 1, answer"),
        (['{"question": "?", "answer": NaN}'], "line 1, answer: got nan"),
        (['{"question": "?", "answer": -Infinity}'], "line 1, answer: got -inf"),
        ([GOOD, GOOD | {"answer": " "}], "line 2, answer: got ' '; allowed: an answer, or null"),
        ([GOOD | {"answer": "So\n####"}], "line 1, answer: got .*; allowed: an answer, or null"),
        ([GOOD | {"answer": "5 #### is it"}], "line 1, answer: got .*; allowed: text whose last line is ####"),
        ([GOOD | {"answer": "#### 5\nThe answer is: 5"}], "line 1, answer: got .*allowed: text whose last line"),
        ([GOOD | {"answer": "\ud800"}], "line 1, answer: got a lone surrogate"),
        ([GOOD | {"answer": ["1", "\ud800"]}], "line 1, answer: got a lone surrogate"),
        ([GOOD | {"id": "\udfff"}], "line 1, id: got a lone surrogate"),
        ([GOOD, "[" * 100_000], "line 2: got no JSON"),
        ([GOOD, "9" * 5000], "line 2: got no JSON"),
        ([{"question": "?", "answer": True}], "line 1, answer"),
        ([{"question": "x \ud800 y", "answer": "1"}], "line 1, question: got a lone surrogate"),
        ([], "got no problem"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, rows, says):
    with pytest.raises(BadProblems, match=says):
        read(write(tmp_path / "p.jsonl", *rows))


def test_bytes_that_are_no_parquet(tmp_path):
    (tmp_path / "p.parquet").write_bytes(b"nonsense" * 10)
    with pytest.raises(BadProblems, match="got no parquet file"):
        read(tmp_path / "p.parquet")


def test_files_that_are_not_there_or_broken(tmp_path):
    for path in ("none.jsonl", "none-*.jsonl", "a\0b"):
        with pytest.raises(BadProblems, match="got no file in .*allowed: a file that exists, or a folder"):
            read(tmp_path / path)
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(b'{"question": "?", "answer": 1}\n' * 1000)[:-20])
    with pytest.raises(BadProblems, match=r"p\.jsonl\.gz: got a file that cannot be read"):
        read(tmp_path / "p.jsonl.gz")
    (tmp_path / "p.parquet").write_bytes(b"")
    with pytest.raises(BadProblems, match="got parquet files beside others"):
        read(tmp_path)
    with pytest.raises(BadProblems, match="~nobody-of-that-name"):
        read("~nobody-of-that-name/p.jsonl")


def test_pass_at_1_is_the_mean_of_shares_with_an_interval():
    """1,000 problems of share 0 or 1: the interval is about 1.96 standard errors wide on each side."""
    shares = [1.0] * 300 + [0.0] * 700
    score = pass_at_1(shares)
    half = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert score.mean == pytest.approx(0.3) and score.problems == 1000
    assert score.low == pytest.approx(0.3 - half, abs=0.003) and score.high == pytest.approx(0.3 + half, abs=0.003)
    assert pass_at_1(shares) == score, "the same every time"
    assert (pass_at_1([0.25]).low, pass_at_1([0.25]).high) == (0.25, 0.25)


@pytest.mark.filterwarnings("error")
def test_pass_at_1_of_no_graded_answer_is_nan():
    score = pass_at_1([])
    assert math.isnan(score.mean) and math.isnan(score.low) and math.isnan(score.high) and score.problems == 0

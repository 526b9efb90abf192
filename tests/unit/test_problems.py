"""Files of problems: what is read, and what is said of what cannot be."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from trainer.config import Source
from trainer.problems import BadProblems, Problem, read_problems
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
        (None, None),
        ("So 2 * 3.\n#### 1,234", "1234"),
    ],
)
def test_answers(tmp_path, answer, want):
    (problem,) = read(write(tmp_path / "p.jsonl", {"question": "?", "answer": answer}))
    assert problem.answer == want


def test_columns_have_any_names(tmp_path):
    path = write(tmp_path / "p.jsonl", {"problem": "?", "final": "1", "id": "a"})
    assert read(path, question_field="problem", answer_field="final") == [Problem("a", "?", "1")]
    assert read(path, question_field="problem", answer_field=None) == [Problem("a", "?", None)]


def test_rows_are_chosen_by_their_columns(tmp_path):
    rows = [{"question": f"{i}?", "answer": i, "id": 1, "source": f"set{i}"} for i in range(3)]
    path = write(tmp_path / "p.jsonl", *rows)
    assert read(path, where={"source": "set2"}) == [Problem("1", "2?", "2")]
    with pytest.raises(BadProblems, match="no problem with {'source': 'none'}"):
        read(path, where={"source": "none"})


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
        ([{"question": "?", "answer": [1, 2]}], "line 1, answer"),
        ([{"question": "?", "answer": True}], "line 1, answer"),
        ([{"question": "x \ud800 y", "answer": "1"}], "line 1, question: got a lone surrogate"),
        ([GOOD | {"id": 1}, GOOD | {"id": 1}], "line 2, id: got '1' again"),
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


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadProblems, match="a file that exists"):
        read(tmp_path / "none.jsonl")


def test_pass_at_1_is_the_mean_of_shares_with_an_interval():
    """1,000 problems of share 0 or 1: the interval is about 1.96 standard errors wide on each side."""
    shares = [1.0] * 300 + [0.0] * 700
    score = pass_at_1(shares)
    half = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert score.mean == pytest.approx(0.3) and score.problems == 1000
    assert score.low == pytest.approx(0.3 - half, abs=0.003) and score.high == pytest.approx(0.3 + half, abs=0.003)
    assert pass_at_1(shares) == score, "the same every time"
    assert (pass_at_1([0.25]).low, pass_at_1([0.25]).high) == (0.25, 0.25)

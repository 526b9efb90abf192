"""Files of problems: what is read, and what is said of what cannot be."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from trainer.problems import BadProblems, Problem, read_problems
from trainer.statistics import pass_at_1


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_json_lines_and_parquet_are_read_alike(tmp_path):
    rows = [{"question": "1+1?", "answer": "2"}, {"question": "2+2?", "answer": "4"}]
    want = [Problem("1", "1+1?", "2"), Problem("2", "2+2?", "4")]
    assert read_problems(write(tmp_path / "p.jsonl", *rows)) == want
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert read_problems(tmp_path / "p.parquet") == want
    assert read_problems(tmp_path / "p.parquet", limit=1) == want[:1]


@pytest.mark.parametrize(
    ("answer", "want"),
    [("5", "5"), (5, "5"), (0.5, "0.5"), (["5"], "5"), (None, None), ("So 2 * 3.\n#### 1,234", "1234")],
)
def test_answers(tmp_path, answer, want):
    (problem,) = read_problems(write(tmp_path / "p.jsonl", {"question": "?", "answer": answer}))
    assert problem.answer == want


def test_columns_have_any_names(tmp_path):
    path = write(tmp_path / "p.jsonl", {"problem": "?", "final": "1", "id": "a"})
    assert read_problems(path, question_field="problem", answer_field="final") == [Problem("a", "?", "1")]
    assert read_problems(path, question_field="problem", answer_field=None) == [Problem("a", "?", None)]


def test_rows_are_chosen_by_their_columns(tmp_path):
    rows = [{"question": f"{i}?", "answer": i, "id": 1, "source": f"set{i}"} for i in range(3)]
    path = write(tmp_path / "p.jsonl", *rows)
    assert read_problems(path, where={"source": "set2"}) == [Problem("1", "2?", "2")]
    with pytest.raises(BadProblems, match="no problem with {'source': 'none'}"):
        read_problems(path, where={"source": "none"})


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
        ([{"question": "?", "answer": ["1", "2"]}], "line 1, answer"),
        ([{"question": "?", "answer": True}], "line 1, answer"),
        ([GOOD | {"id": 1}, GOOD | {"id": 1}], "line 2, id: got '1' again"),
        ([], "got no problem"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, rows, says):
    with pytest.raises(BadProblems, match=says):
        read_problems(write(tmp_path / "p.jsonl", *rows))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadProblems, match="a file that exists"):
        read_problems(tmp_path / "none.jsonl")


def test_pass_at_1_is_the_mean_of_shares_with_an_interval():
    """1,000 problems of share 0 or 1: the interval is about 1.96 standard errors wide on each side."""
    shares = [1.0] * 300 + [0.0] * 700
    score = pass_at_1(shares)
    half = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert score.mean == pytest.approx(0.3) and score.problems == 1000
    assert score.low == pytest.approx(0.3 - half, abs=0.003) and score.high == pytest.approx(0.3 + half, abs=0.003)
    assert pass_at_1(shares) == score, "the same every time"
    assert (pass_at_1([0.25]).low, pass_at_1([0.25]).high) == (0.25, 0.25)

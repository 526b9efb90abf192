"""Grading in a pool: verdicts, and faults that are neither wrong answers nor anybody else's trouble."""

from __future__ import annotations

import os
import time

import pytest

from trainer import grading
from trainer.grading import Grader, Verdict, WrongParser, last_boxed


@pytest.fixture(scope="module")
def grader():
    with Grader(2) as grader:
        yield grader


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (r"\boxed{4} no, \boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{4} and \boxed{5", "4"),
        (r"\boxed{}", ""),
        ("no box", None),
        (r"\boxed{{", None),
        ("", None),
    ],
)
def test_the_last_balanced_box_counts(text, want):
    assert last_boxed(text) == want


@pytest.mark.parametrize(
    ("response", "gold", "verdict"),
    [
        (r"so \boxed{69}", "69", Verdict.RIGHT),
        (r"so \boxed{68}", "69", Verdict.WRONG),
        (r"\boxed{4} wait \boxed{5}", "5", Verdict.RIGHT),
        (r"\boxed{5} wait \boxed{4}", "5", Verdict.WRONG),
        (r"\boxed{\frac{1}{2}}", "0.5", Verdict.RIGHT),
        (r"\boxed{0.075}", r"$7.5\%$", Verdict.RIGHT),
        (r"\boxed{1,234}", "1234", Verdict.RIGHT),
        ("the answer is 69", "69", Verdict.NO_ANSWER),
    ],
)
def test_verdicts(grader, response, gold, verdict):
    assert grader.grade([(response, gold)])[0].verdict is verdict


def test_a_killed_or_hanging_grader_is_a_fault_of_that_answer_alone(grader, monkeypatch):
    monkeypatch.setattr(grading, "_OUTER_SECONDS", 3.0)
    pool = grader._pool
    killed = pool.schedule(os._exit, (9,))
    hanging = pool.schedule(time.sleep, (60,), timeout=1.0)
    grades = grader.grade([(r"\boxed{1}", "1"), (r"\boxed{2}", "1")])
    assert [grade.verdict for grade in grades] == [Verdict.RIGHT, Verdict.WRONG]
    for future, words in ((killed, "process ended"), (hanging, "no verdict")):
        grade = grading._grade_of(future)
        assert grade.verdict is Verdict.FAULT and words in grade.reason


def test_another_parser_is_refused(monkeypatch):
    monkeypatch.setattr(grading, "version", lambda name: "4.9.3")
    with pytest.raises(WrongParser, match=r"antlr4-python3-runtime: got 4\.9\.3; allowed: 4\.13\.2"):
        Grader()

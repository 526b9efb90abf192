"""The micro tasks: what holds for each of them, and what the product's grader says of their answers."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from examples.micro.arithmetic import HIGHEST, LOWEST, Arithmetic, number_in_words
from examples.micro.habits import Habits
from examples.micro.problems import MAX_NEW_TOKENS, boxed, problems, solved, split_of
from examples.micro.rewriting import DIGITS, LONGEST, SHORTEST, Rewriting
from examples.micro.task import TASKS
from trainer.grading.grader import Grader, Verdict

ROOT = Path(__file__).resolve().parents[2]
each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())


@pytest.fixture(scope="module")
def grader():
    with Grader(1) as grader:
        yield grader


@each_task
def test_problems_are_different_right_and_fit_the_budget(task):
    chosen = problems(task, "train", 2000, seed=0)
    assert len(set(chosen)) == 2000 and len({len(p.question) for p in chosen}) == 1
    for problem in chosen:
        assert solved(problem.solution, problem.answer) and len(problem.solution) < MAX_NEW_TOKENS
    assert problems(task, "train", 10, seed=0) == chosen[:10]
    assert problems(task, "train", 10, seed=1) != chosen[:10]


@each_task
def test_the_splits_share_nothing(task):
    train, held_out = problems(task, "train", 1000, seed=0), problems(task, "eval", 1000, seed=5)
    assert not {p.question for p in train} & {p.question for p in held_out}
    assert {split_of(p) for p in train} == {"train"} and {split_of(p) for p in held_out} == {"eval"}


@each_task
@pytest.mark.parametrize(("split", "count"), [("test", 1), ("train", 0), ("train", 10**9)])
def test_wrong_requests_are_named(task, split, count):
    with pytest.raises(ValueError, match="split|count"):
        problems(task, split, count, seed=0)


@each_task
def test_bad_habits_do_what_they_are_for(task):
    generator = random.Random(0)
    chosen = problems(task, "train", 300, seed=0)
    assert all(Habits().answer(p, generator) == p.solution for p in chosen)
    for kind in ("words", "ramble"):
        answers = [Habits(0, **{kind: 1.0}).answer(p, generator) for p in chosen]
        assert min(map(len, answers)) >= MAX_NEW_TOKENS, "these never end within the budget"
    right = sum(solved(Habits(0, guess=1.0).answer(p, generator), p.answer) for p in chosen)
    assert right < 60, "at most one guess in 12 is right, so 25 of 300 are expected; P(60 or more) < 1e-8"


@each_task
def test_the_grader_takes_each_answer_and_no_other(task, grader):
    """Against other problems' answers, guesses, and other orders of the same characters."""
    generator, chosen = random.Random(0), problems(task, "eval", 150, seed=1)
    right = [(p.solution, p.answer) for p in chosen]
    assert {grade.verdict for grade in grader.grade(right)} == {Verdict.RIGHT}
    others = [problem.answer for problem in generator.sample(chosen, len(chosen))]
    guesses = [str(problem.guess(generator)) for problem in chosen]
    shuffled = ["".join(generator.sample(p.answer, len(p.answer))) for p in chosen]
    for texts in (others, guesses, shuffled):
        pairs = [(boxed(text), p.answer) for text, p in zip(texts, chosen, strict=True)]
        verdicts = [grade.verdict for grade in grader.grade(pairs)]
        assert verdicts == [Verdict.RIGHT if solved(*pair) else Verdict.WRONG for pair in pairs]
        assert verdicts.count(Verdict.WRONG) > len(pairs) / 3


def test_letters_would_not_be_graded_exactly(grader):
    """Why words are of digits."""
    assert grader.grade([(boxed("ba"), "ab")])[0].verdict is Verdict.RIGHT


def test_arithmetic():
    problem = Arithmetic(72, (-3, -2, 3, -1))
    assert problem.question == "72-3-2+3-1="
    assert problem.solution == r"72-3=69;69-2=67;67+3=70;70-1=69;\boxed{69}"
    for problem in problems(Arithmetic, "train", 500, seed=0):
        assert all(LOWEST <= value <= HIGHEST for value in problem.values)
        assert int(problem.answer) == eval(problem.question.rstrip("="))
    assert number_in_words(42) == "forty two" and number_in_words(17) == "seventeen"


def test_rewriting():
    problem = Rewriting("52846", tuple("rslx"))
    assert problem.question == "52846 rslx="
    assert problem.solution == r"r=64825;s=54826;l=48265;x=4826;\boxed{4826}"
    assert Rewriting.result("4826", "d") == "44826"
    assert Rewriting.result("4826", "x") == "4826" and Rewriting.result("482611", "d") == "482611"
    for problem in problems(Rewriting, "train", 500, seed=0):
        assert all(SHORTEST <= len(word) <= LONGEST and set(word) <= set(DIGITS) for word in problem.values)
        assert all(after != before for before, after in zip(problem.values, problem.values[1:], strict=False))
        slipped = Rewriting.result(problem.start, problem.commands[0], slip=random.Random(0))
        assert sum(map(str.__ne__, slipped, problem.values[1])) == 1 and len(slipped) == len(problem.values[1])
    with pytest.raises(ValueError, match="command: got 'q'"):
        Rewriting.result("52846", "q")


@pytest.mark.parametrize("options", [[], ["--task", "rewriting"]], ids=TASKS)
def test_the_script_writes_the_problems_wherever_it_is_run(options, tmp_path):
    command = [sys.executable, ROOT / "examples/micro/task.py", "--split", "eval", "--count", "5", "--out", "p.jsonl"]
    subprocess.run([*command, *options], cwd=tmp_path, check=True)
    task = TASKS[options[1]] if options else Arithmetic
    expected = [{"question": p.question, "answer": p.answer} for p in problems(task, "eval", 5, seed=0)]
    assert [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()] == expected

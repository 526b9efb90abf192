"""The micro task and its pair: problems, habits, tokenizer, and how well the committed models do."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from examples.micro.checkpoints import ENDOFTEXT, IM_END, tokenizer_with_stop
from examples.micro.habits import Habits, in_words
from examples.micro.make_pair import BATCH, RECIPES, batch, measure, respond
from examples.micro.task import HIGHEST, LOWEST, MAX_NEW_TOKENS, Problem, problems, solved, split_of
from sglang_trb.pair.stops import stop_alignment
from sglang_trb.pair.vocab import check_same_vocabulary

PAIR = Path(__file__).resolve().parents[2] / "examples" / "micro" / "pair"
STUDENTS = ("student", "informative")


def test_problems_are_in_range_different_and_right():
    chosen = problems("train", 2000, seed=0)
    assert len(set(chosen)) == 2000
    for problem in chosen:
        assert all(LOWEST <= value <= HIGHEST for value in problem.values)
        assert int(problem.answer) == eval(problem.question.rstrip("="))
        assert solved(problem.solution, problem.answer)
    assert problems("train", 10, seed=0) == chosen[:10]
    assert problems("train", 10, seed=1) != chosen[:10]


def test_the_splits_share_nothing():
    train, held_out = problems("train", 3000, seed=0), problems("eval", 3000, seed=5)
    assert not set(train) & set(held_out)
    assert {split_of(p) for p in train} == {"train"} and {split_of(p) for p in held_out} == {"eval"}


def test_the_known_example():
    problem = Problem(72, (-3, -2, 3, -1))
    assert problem.question == "72-3-2+3-1="
    assert problem.solution == r"72-3=69;69-2=67;67+3=70;70-1=69;\boxed{69}"


@pytest.mark.parametrize(("split", "count"), [("test", 1), ("train", 0), ("train", 10**9)])
def test_wrong_requests_are_named(split, count):
    with pytest.raises(ValueError, match="split|count"):
        problems(split, count, seed=0)


def test_bad_habits_do_what_they_are_for():
    generator = random.Random(0)
    chosen = problems("train", 300, seed=0)
    assert all(solved(Habits().answer(p, generator), p.answer) for p in chosen)
    for kind in ("words", "ramble"):
        answers = [Habits(0, **{kind: 1.0}).answer(p, generator) for p in chosen]
        assert min(map(len, answers)) >= MAX_NEW_TOKENS, "these never end within the budget"
    right = sum(solved(Habits(0, guess=1.0).answer(p, generator), p.answer) for p in chosen)
    assert right < 60, "19 guesses are possible, so 16 of 300 are expected; P(60 or more) < 1e-15"
    assert in_words(42) == "forty two" and in_words(17) == "seventeen"


def test_tokenizer_round_trip_and_batches():
    tokenizer = tokenizer_with_stop(IM_END)
    problem = problems("train", 1, seed=0)[0]
    text = problem.question + problem.solution
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text) and tokenizer.decode(ids) == text
    ids_BT, labels_BT = batch(problems("train", 4, seed=0), RECIPES["teacher"], random.Random(0))
    assert ids_BT.shape == labels_BT.shape
    for ids_T, labels_T in zip(ids_BT, labels_BT, strict=True):
        answer = labels_T[labels_T != -100]
        assert torch.equal(ids_T[labels_T != -100], answer)
        assert tokenizer.decode(answer).endswith(IM_END)
    assert BATCH == 64


def test_the_pair_shares_a_vocabulary_and_stops_differently():
    for name in STUDENTS:
        size = check_same_vocabulary(PAIR / name, PAIR / "teacher").size
        alignment = stop_alignment(PAIR / name, PAIR / "teacher", size)
        tokenizer = tokenizer_with_stop(ENDOFTEXT)
        assert alignment.student_ids == (tokenizer.convert_tokens_to_ids(ENDOFTEXT),)
        assert alignment.teacher_ids == (tokenizer.convert_tokens_to_ids(IM_END),)
        assert not alignment.is_identity


def test_the_committed_pair_is_small_and_says_how_good_it_is():
    assert sum(path.stat().st_size for path in PAIR.rglob("*")) < 8 << 20
    record = json.loads((PAIR / "pair.json").read_text())
    for name, recipe in RECIPES.items():
        lowest, highest = recipe.pass_at_1
        assert lowest <= record["pass_at_1"][name] <= highest


def test_the_teacher_solves_the_task():
    chosen = problems("eval", 64, seed=3)
    answers = respond(PAIR / "teacher", chosen, seed=None)
    assert sum(solved(text, p.answer) for text, p in zip(answers, chosen, strict=True)) >= 0.9 * 64


def test_the_student_is_weak_and_not_hopeless():
    """pass@1 is .24: of 128 sampled answers 9 to 56 are right but with probability below 1e-6."""
    assert 9 / 128 <= measure(PAIR / "student", problems("eval", 128, seed=4), seed=0) <= 56 / 128

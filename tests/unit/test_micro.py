"""The micro pairs: tokenizer, batches, and how well the committed models do."""

from __future__ import annotations

import json
import random

import pytest
import torch

from examples.micro.arithmetic import Arithmetic
from examples.micro.checkpoints import ENDOFTEXT, IM_END, tokenizer_with_stop
from examples.micro.make_pair import BATCH, MADE, RECIPES, batch, main, measure, respond
from examples.micro.problems import problems, solved
from examples.micro.task import TASKS
from sglang_trb.pair.stops import stop_alignment
from sglang_trb.pair.vocab import check_same_vocabulary

STUDENTS = ("student", "informative")
each_task = pytest.mark.parametrize("task", TASKS)


@each_task
def test_tokenizer_round_trip_and_batches(task):
    tokenizer, chosen = tokenizer_with_stop(IM_END), problems(TASKS[task], "train", 4, seed=0)
    text = chosen[0].question + chosen[0].solution
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text) and tokenizer.decode(ids) == text
    ids_BT, labels_BT = batch(chosen, RECIPES[task]["teacher"], random.Random(0))
    assert ids_BT.shape == labels_BT.shape
    for ids_T, labels_T in zip(ids_BT, labels_BT, strict=True):
        answer = labels_T[labels_T != -100]
        assert torch.equal(ids_T[labels_T != -100], answer)
        assert tokenizer.decode(answer).endswith(IM_END)
    assert BATCH == 64


@each_task
def test_a_pair_shares_a_vocabulary_and_stops_differently(task):
    pair = MADE[task]
    for name in STUDENTS:
        size = check_same_vocabulary(pair / name, pair / "teacher").size
        alignment = stop_alignment(pair / name, pair / "teacher", size)
        tokenizer = tokenizer_with_stop(ENDOFTEXT)
        assert alignment.student_ids == (tokenizer.convert_tokens_to_ids(ENDOFTEXT),)
        assert alignment.teacher_ids == (tokenizer.convert_tokens_to_ids(IM_END),)
        assert not alignment.is_identity


@each_task
def test_a_committed_pair_is_small_and_says_how_good_it_is(task):
    assert sum(path.stat().st_size for path in MADE[task].rglob("*")) < 8 << 20
    record = json.loads((MADE[task] / "pair.json").read_text())
    assert (record["task"], record["seed"]) == (task, 0)
    for name, recipe in RECIPES[task].items():
        lowest, highest = recipe.pass_at_1
        assert lowest <= record["pass_at_1"][name] <= highest


def test_what_is_made_already_is_left_alone(capsys):
    assert main(["--task", "arithmetic", "--out", str(MADE["arithmetic"])]) == 0
    assert main(["--task", "rewriting", "--out", str(MADE["arithmetic"])]) == 1
    assert "holds the arithmetic pair of seed 0; allowed:" in capsys.readouterr().err


@each_task
def test_the_teacher_solves_the_task(task):
    chosen = problems(TASKS[task], "eval", 64, seed=3)
    answers = respond(MADE[task] / "teacher", chosen, seed=None)
    assert sum(solved(text, p.answer) for text, p in zip(answers, chosen, strict=True)) >= 0.9 * 64


def test_the_student_is_weak_and_not_hopeless():
    """pass@1 is .24: of 128 sampled answers 9 to 56 are right but with probability below 1e-6."""
    chosen = problems(Arithmetic, "eval", 128, seed=4)
    assert 9 / 128 <= measure(MADE["arithmetic"] / "student", chosen, seed=0) <= 56 / 128

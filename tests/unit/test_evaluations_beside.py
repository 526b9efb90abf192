"""When evaluations beside the training begin and end, by one that begins and ends when the test says so."""

from __future__ import annotations

import threading
import time

import pytest

from trainer.config.run import RunConfig
from trainer.records import RecordsBroken, fields
from trainer.run.beside import Beside
from trainer.run.evaluations_beside import EvaluationsBeside, drawing
from trainer.run.pending_evaluations import PendingEvaluations

SECONDS = 10
SERVERS = [f"http://127.0.0.1:{port}" for port in (30000, 30001, 30002)]


class Server:
    """One that measures only when it is let; what it held then is the score."""

    def __init__(self):
        self.holds, self.measuring = None, threading.Event()
        self.let: dict[int, threading.Event] = {}
        self.wrong: dict[int, Exception] = {}
        self.measured = []

    def push(self, step):
        self.holds = step

    def measure(self, step):
        self.measuring.set()
        assert self.let.setdefault(step, threading.Event()).wait(SECONDS)
        if step in self.wrong:
            raise self.wrong[step]
        self.measured.append(step)
        return {"eval/sums/pass_at_1": float(self.holds)}

    def finish(self, step):
        self.let.setdefault(step, threading.Event()).set()


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def notes():
    return []


@pytest.fixture
def evaluations(server, notes):
    with Beside(lambda: [server.finish(step) for step in list(server.let)]) as beside:
        yield EvaluationsBeside(beside, server.push, server.measure, notes.append)


def scores(ended):
    assert all(row[fields.EVALUATION_SECONDS] >= 0 for _, row in ended)
    return [(step, row["eval/sums/pass_at_1"]) for step, row in ended]


def taken(evaluations):
    """What ends, as a training sees it that looks after each of its steps."""
    until = time.monotonic() + SECONDS
    while not (ended := evaluations.take()):
        assert time.monotonic() < until
        time.sleep(0.001)
    return scores(ended)


def test_the_training_goes_on_until_the_evaluation_ends(evaluations, server, notes):
    evaluations.begin(2)
    assert server.measuring.wait(SECONDS)
    for _ in range(3):  # steps of the training
        assert evaluations.take() == []
    server.finish(2)
    assert taken(evaluations) == [(2, 2.0)]
    assert evaluations.take() == evaluations.take(wait=True) == [] and not notes


def test_the_next_waits_for_the_one_before_and_says_so(evaluations, server, notes):
    evaluations.begin(2)
    waits = threading.Thread(target=evaluations.begin, args=(4,))
    waits.start()
    while not notes:
        time.sleep(0.001)
    assert notes == [
        "the evaluation after 2 updates is not done; the training waits for it, since the one after 4 is due"
    ]
    time.sleep(0.02)
    assert waits.is_alive() and server.holds == 2, "the weights must not change under an evaluation"
    server.finish(2)
    waits.join(SECONDS)
    assert scores(evaluations.take()) == [(2, 2.0)]
    server.finish(4)
    assert scores(evaluations.take(wait=True)) == [(4, 4.0)]
    assert server.measured == [2, 4] and len(notes) == 1


def test_one_that_has_ended_is_not_waited_for(evaluations, server, notes):
    for step in (2, 4):
        server.finish(step)
        evaluations.begin(step)
        while step not in server.measured:
            time.sleep(0.001)
        time.sleep(0.02)
    assert scores(evaluations.take(wait=True)) == [(2, 2.0), (4, 4.0)] and not notes


@pytest.mark.parametrize(
    "look", [taken, lambda evaluations: evaluations.take(wait=True), lambda evaluations: evaluations.begin(4)]
)
def test_its_error_is_raised_wherever_the_training_looks_next(evaluations, server, look):
    server.wrong[2] = OSError("the disk is full")
    evaluations.begin(2)
    server.finish(2)
    with pytest.raises(OSError, match="the disk is full"):
        look(evaluations)
    assert server.holds == 2


def test_what_is_wrong_with_the_server_shows_before_the_first_evaluation(notes, server):
    def look():
        raise ConnectionError("another pair")

    with Beside(lambda: None) as beside:
        evaluations = EvaluationsBeside(beside, server.push, server.measure, notes.append)
        beside.submit(look)
        with pytest.raises(ConnectionError, match="another pair"):
            taken(evaluations)


def test_a_push_that_must_not_meet_the_training_is_waited_for(server, notes):
    def slowly(step):
        time.sleep(0.05)
        server.push(step)

    with Beside(lambda: None) as beside:
        evaluations = EvaluationsBeside(beside, slowly, server.measure, notes.append, waits_for_push=True)
        evaluations.begin(2)
        assert server.holds == 2 and not server.measured
        server.finish(2)


def test_the_end_of_the_training_ends_it(server, notes):
    with Beside(lambda: server.finish(2)) as beside:
        EvaluationsBeside(beside, server.push, server.measure, notes.append).begin(2)
        assert server.measuring.wait(SECONDS)
    assert server.measured == [2]


@pytest.mark.parametrize(
    ("evaluation", "urls"),
    [
        ({"beside_training": True, "benchmarks": ["gsm8k"]}, SERVERS[:2]),
        ({"beside_training": True}, SERVERS),
        ({"beside_training": True, "benchmarks": ["gsm8k"], "every": 0}, SERVERS),
        ({"benchmarks": ["gsm8k"]}, SERVERS),
    ],
)
def test_the_last_server_draws_where_nothing_is_evaluated_beside(evaluation, urls):
    config = RunConfig(
        name="run", models={"student": "s", "teacher": "t"}, data={"path": "p"}, loss={"name": "reverse_kl"},
        server={"urls": SERVERS}, evaluation=evaluation,
    )  # fmt: skip
    assert list(drawing(config).server.urls) == urls
    assert drawing(config).run_folder == config.run_folder


def test_what_is_pending_survives_the_process(tmp_path):
    pending = PendingEvaluations(tmp_path)
    assert pending.steps() == []
    pending.remove(3)
    assert not list(tmp_path.iterdir())
    for step in (40, 0, 20, 20):
        pending.add(step)
    assert PendingEvaluations(tmp_path).steps() == [0, 20, 40]
    pending.remove(20)
    assert PendingEvaluations(tmp_path).steps() == [0, 40]
    (path,) = (tmp_path / "evaluations").iterdir()
    for damaged in ("{}", "[1.5]", "[tru", "[true]"):
        path.write_text(damaged)
        with pytest.raises(RecordsBroken, match=r"pending\.json: got no list of steps; remove .* to go on without"):
            pending.steps()

"""Grading: the verdicts of docs/grading.md, and a verdict or a counted fault for any text, whatever happens."""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer.grading import grader as grading
from trainer.grading.grader import LONGEST_ANSWER, Grade, Grader, GraderBroken, Verdict, WrongParser

PAGE = Path(__file__).resolve().parents[2] / "docs" / "grading.md"
CELLS = re.compile(r"\| `(.+?)` \| `(.+?)` \| ([a-z ]+) \| \**([a-z–]+)\** \| .+ \|")
MEMORY = 512 << 20
PARTS = (
    *r"\frac \sqrt { } ( ) [ ] 1 2 17 0.5 , . ^ _ x y + - * / = < ! % \% \pi \infty \left( \right) \text{a}".split(),
    *r"\cup \boxed{ \boxed \\ \, \begin{pmatrix} \end{pmatrix} & \sum \int \lim $ \( \) e i \log \binom and".split(),
    *r"\overline{3} 10^{10^{9}} \{ \} \leq \sin | \in \mathbb{R} 50 \pm 1e9 million é ∞".split(),
    *(" ", "\n", "\x00", "\ud800"),
)
GOLDS = ("5", r"\frac{1}{2}", "x^2", "(1,2)", "1, 2", "A")


@pytest.fixture(scope="module")
def grader():
    with Grader(2, cpu_seconds=0.5, memory_bytes=MEMORY) as grader:
        yield grader


def boxed(*answers, gold="7"):
    return [(rf"\boxed{{{answer}}}", gold) for answer in answers]


def verdicts(grades):
    return [grade.verdict for grade in grades]


def page():
    cases = [found.groups() for line in PAGE.read_text("utf-8").splitlines() if (found := CELLS.fullmatch(line))]
    return [(gold, response, Verdict(ours.replace(" ", "_")), theirs) for gold, response, ours, theirs in cases]


def test_the_page_says_what_the_grader_does(grader):
    cases = page()
    assert len(cases) > 60
    grades = grader.grade([(response, gold) for gold, response, _, _ in cases])
    wrong = [(case, grade) for case, grade in zip(cases, grades, strict=True) if grade.verdict is not case[2]]
    assert not wrong


def test_the_page_says_what_math_verify_does():
    from math_verify import parse, verify

    for gold, response, _, theirs in page():
        if theirs != "–":
            assert verify(parse(f"${gold}$"), parse(response)) is (theirs == "right"), (gold, response)


def test_texts_that_hurt_are_faults_and_delay_no_other(grader):
    """Powers of powers, long products, brackets that take exponential time: none ends more than itself."""
    hurting = ["2^{2^{2024}}", "(10^9)!", "(" * 60 + "1" + ")" * 60]
    easy = [str(i) for i in range(20)]
    started = time.monotonic()
    grades = grader.grade(boxed(*hurting, *easy, *hurting, gold="7"))
    assert verdicts(grades[:3]) == verdicts(grades[-3:]) == [Verdict.FAULT] * 3
    assert grades[0].reason == "no verdict within 0.5 s of CPU time"
    assert [grade.verdict is Verdict.RIGHT for grade in grades[3:-3]] == [answer == "7" for answer in easy]
    assert time.monotonic() - started < 60, "equal answers are graded once"
    assert grader.grade(boxed("7")) == [Grade(Verdict.RIGHT)]


def test_an_answer_of_any_length_takes_no_time(grader):
    long = "1" + "+0" * LONGEST_ANSWER
    assert verdicts(grader.grade([*boxed(long, gold="1"), *boxed("1", gold=long)])) == [Verdict.WRONG, Verdict.FAULT]


def test_a_gold_answer_that_equals_nothing_is_a_fault(grader):
    (grade,) = grader.grade(boxed("5", gold=r"\frac{1}{0}"))
    assert grade.verdict is Verdict.FAULT and "ValueError" in grade.reason


def test_faults_are_counted_and_said_and_in_no_mean(grader):
    """Of a step with an answer and a gold answer that cannot be computed, and a prompt without a gold answer."""
    from trainer.run.leader import Leader
    from trainer.run.measurements import rewards

    leader, notes = Leader.__new__(Leader), []
    leader._tokenizer = SimpleNamespace(decode=lambda text, skip_special_tokens: text)
    leader._grader, leader.note = grader, notes.append
    responses = [SimpleNamespace(token_ids_T=rf"\boxed{{{text}}}") for text in ("7", "10^{10^{10}}", "7", "8", "9")]
    grades = leader.grade(responses, ["7", "7", "10^{10^{10}}", "7", None])
    assert rewards(grades) == {"rollout/grader_faults": 2.0, "rollout/reward": 0.5}
    assert notes == ["the grader has no verdict on 2 of 4 responses, one for: no verdict within 0.5 s of CPU time"]


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_any_text_gets_a_verdict_or_a_counted_fault(grader, count):
    generator = random.Random(count)
    texts = ["".join(generator.choices(PARTS, k=generator.randint(0, 14))) for _ in range(count)]
    answers = [(rf"\boxed{{{text}}}" if i % 3 else text, GOLDS[i % len(GOLDS)]) for i, text in enumerate(texts)]
    grades = grader.grade(answers)
    assert len(grades) == count
    assert all(bool(grade.reason) == (grade.verdict is Verdict.FAULT) for grade in grades)
    faults = Counter(grade.reason for grade in grades if grade.reason)
    assert faults.total() < count / 100, faults
    assert grader.grade(answers[:50]) == grades[:50], "whatever came before"


def test_the_limit_is_of_cpu_time(grader):
    """A process that is kept from running for longer than the limit gives its verdict all the same."""
    grader.grade(boxed("1"))
    pids = [worker.process.pid for worker in grader._workers]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.8, lambda: [os.kill(pid, signal.SIGCONT) for pid in pids]).start()
    assert verdicts(grader.grade(boxed("7", "8"))) == [Verdict.RIGHT, Verdict.WRONG]


def test_a_process_that_is_killed_takes_its_own_answer_with_it(grader):
    def kill_who_is_busy():
        while not (busy := [w for w in grader._workers if w.pair and "2024" in w.pair[0]]):
            time.sleep(0.01)
        os.kill(busy[0].process.pid, signal.SIGKILL)

    grader.grade(boxed("1"))
    for worker in grader._workers:
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.join()
    assert verdicts(grader.grade(boxed("7", "8"))) == [Verdict.RIGHT, Verdict.WRONG], "an idle one has none"
    threading.Thread(target=kill_who_is_busy).start()
    grades = grader.grade(boxed("2^{2^{2024}}", "7", "8"))
    assert verdicts(grades) == [Verdict.FAULT, Verdict.RIGHT, Verdict.WRONG]
    assert grades[0].reason == "the grading process ended, exit code -9"


def test_a_stalled_process_is_given_up(monkeypatch):
    with Grader(1) as grader:
        grader.grade(boxed("1"))
        monkeypatch.setattr(grading, "_STALLED_SECONDS", 0.2)  # from here on: a slow start is no stall
        monkeypatch.setattr(grading, "_LOOK_SECONDS", 0.1)
        os.kill(grader._workers[0].process.pid, signal.SIGSTOP)
        assert verdicts(grader.grade(boxed("7"))) == [Verdict.FAULT]


def test_answers_of_an_interrupted_call_answer_no_later_one(grader, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    grader.grade(boxed("1"))
    monkeypatch.setattr(grading, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        grader.grade(boxed("7", "7 + 0"))
    monkeypatch.undo()
    assert verdicts(grader.grade(boxed("8", "9"))) == [Verdict.WRONG] * 2


def test_memory_is_bounded_by_the_kernel(grader):
    grader.grade(boxed("1"))
    for worker in grader._workers:
        limit = resource.prlimit(worker.process.pid, resource.RLIMIT_AS)[0]
        mapped = int(Path(f"/proc/{worker.process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        assert mapped <= limit <= mapped + MEMORY


def test_processes_that_cannot_start_are_no_fault_of_the_answers():
    with Grader(1, memory_bytes=None) as broken, pytest.raises(GraderBroken, match="before they were ready"):
        broken.grade(boxed("7"))


def test_another_parser_is_refused(monkeypatch):
    monkeypatch.setattr(grading, "version", lambda name: "4.9.3")
    with pytest.raises(WrongParser, match=r"antlr4-python3-runtime: got 4\.9\.3; allowed: 4\.13\.2"):
        Grader()

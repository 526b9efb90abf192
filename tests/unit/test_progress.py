"""What a run shows: a live display in a terminal, plain lines in a pipe, only what must be seen when quiet."""

import io
import math
import re

import pytest

from sglang_trb.errors import InvalidParameter
from trainer.run.progress import SIGN_OF_LIFE_S, TrainingProgress, sparkline
from trainer.text import duration

ROW = {
    "step": 3,
    "rollout/epsilon": 0.038,
    "rollout/mean_beta": 0.25,
    "rollout/reward": 0.5,
    "rollout/reverse_kl": 0.123456,
    "rollout/tokens_per_s": 3204.4,
    "train/loss": 7.0,
    "time/eval_s": 1.0,
    "time/rollout_s": 6.0,
    "time/train_s": 2.5,
    "time/push_s": 0.5,
    "eval/sums/pass_at_1": 0.43,
    "eval/sums/pass_at_1_low": 0.38,
    "eval/sums/pass_at_1_high": 0.4799,
}


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "40")
    return Terminal()


def lines(stream):
    """The lines of a log, without the time of day in front of each."""
    assert "\x1b" not in stream.getvalue()
    stamped = re.compile(r"\d\d:\d\d:\d\d (.*)")
    return [stamped.fullmatch(line)[1] for line in stream.getvalue().splitlines()]


def last_frame(terminal):
    """What a terminal shows at the end: the text after the last time the display was drawn anew."""
    *_, frame = re.split(r"(?:\x1b\[1A\x1b\[2K)+", terminal.getvalue())
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", frame)


def test_a_log_has_one_plain_line_a_step(clock, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on many CI machines
    stream = io.StringIO()
    with TrainingProgress(50, stream=stream, clock=clock) as progress:
        progress.phase("evaluate")
        clock.now += 5
        progress.step_done({"step": 0, "eval/sums/pass_at_1": 0.19})
        for step in (1, 2):
            progress.phase("rollout")
            progress.rollout_progress(100, 256, 1000)
            clock.now += 10
            progress.step_done(ROW | {"step": step})
    first, second, third = lines(stream)
    assert first == "step 0/50 | pass@1 sums 0.190"
    assert second == (
        "step 1/50 | eps 0.0380 beta 0.250 reward 0.500 reverse_kl 0.1235 tokens/s 3204"
        " | 10.0 s: rollout 60%, train 25%, push 5%, eval 10% | pass@1 sums 0.430 [0.380, 0.480] | 0:08:10 left"
    )
    assert third.startswith("step 2/50 | ") and third.endswith("0:08:00 left")


def test_an_evaluation_of_an_earlier_step_changes_nothing_else(clock):
    stream = io.StringIO()
    with TrainingProgress(4, stream=stream, clock=clock) as progress:
        for step in (1, 2, 3):
            clock.now += 10
            progress.step_done({"step": step})
        progress.evaluated({"step": 2, "eval/sums/pass_at_1": 0.25, "eval/seconds": 9.0})
        clock.now += 10
        progress.step_done({"step": 4})
    assert lines(stream)[3:] == ["evaluated step 2 | pass@1 sums 0.250", "step 4/4 | 0:00:00 left"]


def test_a_long_phase_gives_a_sign_of_life_in_a_log(clock):
    stream = io.StringIO()
    with TrainingProgress(2, stream=stream, clock=clock) as progress:
        progress.phase("rollout")
        for done in range(1, 7):
            clock.now += SIGN_OF_LIFE_S / 2
            progress.rollout_progress(done, 6, 300 * done)
    assert lines(stream) == [f"rollout {done}/6, 10 tokens/s, 0:0{done // 2}:00" for done in (2, 4, 6)]


def test_quiet_says_only_what_must_be_seen(terminal, clock):
    with TrainingProgress(2, stream=terminal, clock=clock, quiet=True) as progress:
        progress.phase("rollout")
        clock.now += 1000
        progress.rollout_progress(1, 2, 3)
        progress.step_done(ROW)
        progress.note("the server is not answering; waiting")
    assert lines(terminal) == ["the server is not answering; waiting"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_note_cannot_drive_the_log_or_break_it(encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    with TrainingProgress(2, stream=stream) as progress:
        progress.note("\x1b[31mε [bold]\r")
        progress.step_done(ROW)
    written = stream.buffer.getvalue().decode(encoding)
    assert "\x1b" not in written and "\r" not in written and "[bold]" in written and len(written.splitlines()) == 2


def test_the_display_shows_the_run(terminal, clock):
    history = [{"step": 0, "eval/sums/pass_at_1": 0.19, "time/eval_s": 10.0}]
    with TrainingProgress(6, history=history, stream=terminal, clock=clock) as progress:
        for step in (1, 2, 3):
            clock.now += 10
            progress.step_done(ROW | {"step": step, "rollout/reward": step / 10})
        progress.phase("rollout")
        clock.now += 2
        progress.rollout_progress(64, 256, 1000)
        progress.note("not [answering]\x1b[2J")
    labels = len("pass@1 sums ")
    shown = {line[:labels].strip(): " ".join(line[labels:].split()) for line in last_frame(terminal).splitlines()}
    assert shown["step"].endswith("3/6 after 0:00:32, 0:00:30 left")
    assert shown["rollout"].endswith("64/256, 500 tokens/s, 0:00:02")
    assert shown["ε, nats"].endswith("0.0380") and shown["mean β"].endswith("0.250")
    assert shown["reverse KL"].endswith("0.1235") and shown["tokens/s"].endswith("3204")
    assert re.fullmatch("▁{8}▅{8}█{8} 0.300", shown["reward"])  # half of a bar of 48 for half of the run
    assert shown["pass@1 sums"].endswith("0.430 [0.380, 0.480] at step 3")
    assert shown["time"] == "rollout 45%, train 19%, push 4%, eval 32%"
    assert "not [answering]␛[2J" in terminal.getvalue()


@pytest.mark.parametrize(("term", "encoding"), [("dumb", "utf-8"), ("xterm", "latin-1")])
def test_a_terminal_that_cannot_draw_gets_lines(terminal, monkeypatch, term, encoding):
    monkeypatch.setenv("TERM", term)
    terminal.encoding = encoding
    with TrainingProgress(4, stream=terminal) as progress:
        progress.step_done(ROW)
    assert lines(terminal)[0].startswith("step 3/4 | eps 0.0380")


def test_the_display_ends_when_the_run_fails(terminal):
    with pytest.raises(KeyboardInterrupt), TrainingProgress(4, stream=terminal):
        raise KeyboardInterrupt
    assert terminal.getvalue().endswith("\x1b[?25h")  # the cursor is back


def test_an_unknown_phase_is_refused():
    with pytest.raises(InvalidParameter, match="phase: got 'sleep'; allowed: rollout, train, push"):
        TrainingProgress(4).phase("sleep")


def test_the_numbers_that_are_not_finite_are_shown():
    stream = io.StringIO()
    with TrainingProgress(4, stream=stream) as progress:
        progress.step_done({"step": 1, "rollout/reverse_kl": math.nan})
    assert "reverse_kl nan" in stream.getvalue()


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([1.0, 2.0], 4, "▁▁██"),
        ([5.0], 3, "▁▁▁"),
        ([0.0, 1.0, 6.0, 8.0], 2, "▁█"),
        ([0.0, math.nan, 7.0], 3, "▁ █"),
        ([math.inf], 2, "  "),
        (list(range(8)), 8, "▁▂▃▄▅▆▇█"),
    ],
)
def test_sparkline(values, width, line):
    assert sparkline(values, width) == line


def test_duration():
    assert [duration(s) for s in (0, 59.6, 3725, 360000)] == ["0:00:00", "0:01:00", "1:02:05", "100:00:00"]

"""The extra places rows go to: they show what the metrics file says, and cannot stop a run or fail in silence."""

import math
import re
import sys
import types

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.records import (
    MetricsLog,
    RecordsBroken,
    RunRecords,
    SinkFailed,
    SinkUnavailable,
    TensorBoardSink,
    WandbSink,
    read_rows,
)


class Kept:
    """A sink that keeps its rows, and fails at one step."""

    def __init__(self, fails_at=None, fails_closing=False):
        self.rows, self.closed, self.fails_at, self.fails_closing = [], False, fails_at, fails_closing

    def write(self, row):
        if row["step"] == self.fails_at:
            raise SinkFailed("Kept failed: no space")
        self.rows.append(dict(row))

    def close(self):
        self.closed = True
        if self.fails_closing:
            raise SinkFailed("Kept failed: gone")


@pytest.fixture
def log(tmp_path):
    return MetricsLog(tmp_path / "metrics.jsonl")


def test_a_failing_sink_is_reported_once_and_everything_else_goes_on(log):
    notes, good, bad = [], Kept(), Kept(fails_at=2)
    records = RunRecords(log, [bad, good], notes.append)
    for step in range(1, 5):
        records.append({"step": step, "train/loss": 0.5})
    records.close()
    assert [row["step"] for row in read_rows(log.path)] == [1, 2, 3, 4] == [row["step"] for row in good.rows]
    assert [row["step"] for row in bad.rows] == [1]
    assert notes == ["Kept failed: no space (at step 2); it gets no more rows, metrics.jsonl has them all"]
    assert good.closed


def test_what_is_measured_later_reaches_the_sinks_with_its_step(log):
    sink = Kept()
    records = RunRecords(log, [sink])
    for step in range(3):
        records.append({"step": step, "train/loss": 0.5})
    records.amend(1, {"eval/sums/pass_at_1": 0.25})
    assert sink.rows[-1] == {"step": 1, "eval/sums/pass_at_1": 0.25}
    assert read_rows(log.path)[1] == {"step": 1, "train/loss": 0.5, "eval/sums/pass_at_1": 0.25}


def test_failing_to_close_is_reported_and_closes_the_others(log):
    notes, sinks = [], [Kept(fails_closing=True), Kept()]
    records = RunRecords(log, sinks, notes.append)
    records.close()
    records.close()
    assert notes == ["Kept failed: gone (closing); metrics.jsonl has every row"] and sinks[1].closed


def test_a_row_the_metrics_file_refuses_reaches_no_sink(log):
    sink = Kept()
    with pytest.raises(ValueError, match="train/loss"):
        RunRecords(log, [sink]).append({"step": 1, "train/loss": None})
    assert sink.rows == []


def scalars(folder, name):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    first = TensorBoardSink(tmp_path, first_step=0)
    for step in range(5):
        first.write({"step": step, "train/loss": float(step), "eval/sums/pass_at_1": math.nan})
    assert scalars(tmp_path, "train/loss")[-1] == (
        4,
        4.0,
    )  # before it is closed: a killed run shows all
    resumed = TensorBoardSink(tmp_path, first_step=3)
    resumed.write({"step": 3, "train/loss": 30.0})
    resumed.close()
    first.close()
    assert scalars(tmp_path, "train/loss") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 30.0)]


def test_tensorboard_says_what_failed(tmp_path, monkeypatch):
    sink = TensorBoardSink(tmp_path, first_step=0)

    def full():
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(sink._writer, "flush", full)
        with pytest.raises(SinkFailed, match="TensorBoard failed: .*No space left"):
            sink.write({"step": 1, "train/loss": 1.0})
    sink.close()


def test_a_library_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SinkUnavailable, match=r"records\.wandb_project is set.* pip install wandb"):
        WandbSink("project", "run", tmp_path, {})
    with pytest.raises(SinkUnavailable, match=r"records\.tensorboard is on.* pip install tensorboard"):
        TensorBoardSink(tmp_path, first_step=0)


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the module, with the calls that were made to it."""
    module = types.ModuleType("wandb")
    module.calls = []
    module.Error = type("Error", (Exception,), {})
    module.broken = False

    def record(name):
        def call(*args, **kwargs):
            if module.broken:
                raise module.Error("not logged in")
            module.calls.append((name, args, kwargs))
            return types.SimpleNamespace(**{key: record(key) for key in ("define_metric", "log", "finish")})

        return call

    module.init = record("init")
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_the_rows_on_the_axis_of_steps(tmp_path, wandb):
    sink = WandbSink("trb", "micro-1", tmp_path, {"steps": 3})
    sink.write({"step": 7, "train/loss": 0.5, "train/grad_norm": math.inf})
    sink.close()
    (init, _, started), *calls = wandb.calls
    assert init == "init" and started["config"] == {"steps": 3} and started["dir"] == str(tmp_path)
    assert (started["project"], started["name"], started["resume"]) == ("trb", "micro-1", "allow")
    assert calls == [
        ("define_metric", ("step",), {}),
        ("define_metric", ("*",), {"step_metric": "step"}),
        ("log", ({"step": 7, "train/loss": 0.5},), {}),
        ("finish", (), {}),
    ]


def test_a_wandb_run_belongs_to_its_folder_and_not_to_its_name(tmp_path, wandb):
    for folder in ("one", "two", "one"):
        (tmp_path / folder).mkdir(exist_ok=True)
        WandbSink("trb", "micro", tmp_path / folder, {}).close()
    first, second, resumed = (options["id"] for call, _, options in wandb.calls if call == "init")
    assert first == resumed != second and re.fullmatch(r"[\w-]{8,64}", first)
    (tmp_path / "one" / "wandb-id").write_text("a/b")
    with pytest.raises(RecordsBroken, match="wandb-id: got 'a/b'; allowed: "):
        WandbSink("trb", "micro", tmp_path / "one", {})


def test_wandb_says_what_failed(tmp_path, wandb):
    sink = WandbSink("trb", "run", tmp_path, {})
    wandb.broken = True
    for call in (lambda: sink.write({"step": 1}), sink.close, lambda: WandbSink("trb", "run", tmp_path, {})):
        with pytest.raises(SinkFailed, match=r"wandb .*: not logged in"):
            call()

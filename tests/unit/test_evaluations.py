"""The results of `trb evaluate`: kept by step and settings, whole or not there, and shown in the report."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trainer.atomic import UNFINISHED, new_folder
from trainer.cli.evaluate import run
from trainer.config.run import RunConfig
from trainer.learner.checkpoints import Best, CheckpointStore
from trainer.records import (
    Evaluation,
    MetricsLog,
    ProblemScores,
    RecordsBroken,
    read_evaluations,
    read_scores,
    write_evaluation,
    write_scores,
)
from trainer.report import write_report
from trainer.run.benchmarks import Measured
from trainer.statistics import pass_at_1
from trainer.study import evaluation
from trainer.study.evaluation import NoSuchCheckpoint, evaluate_checkpoint


def measured(step=20, **changes):
    values = {"benchmark": "sums", "step": step, "pass_at_1": 0.5, "low": 0.25, "high": 0.75}
    values |= {"problems": 4, "faults": 1, "settings": {"temperature": 1.0, "benchmark": {"samples": 8}}}
    return Evaluation(**values | changes)


@pytest.fixture
def config(tmp_path):
    values = {
        "name": "tiny",
        "folder": str(tmp_path),
        "models": {"student": "student", "teacher": "teacher"},
        "data": {"path": "nowhere.jsonl"},
        "loss": {"name": "reverse_kl"},
        "server": {"urls": ["http://127.0.0.1:1"]},
        "evaluation": {"benchmarks": [{"name": "sums", "path": "sums.jsonl", "samples": 8}]},
    }
    return RunConfig(**values)


class FakeLeader:
    """Serves any checkpoint; its students answer half of four problems right."""

    def __init__(self, config, pair, note, on_rollout, *, trains):
        assert not trains, "an evaluation has no use for the training problems"
        self.servers = self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def weight_version(self, step):
        return f"step-{step}"

    def publish_folder(self, folder, weight_version):
        self.served = (str(folder), weight_version)


def measure(leader, benchmark, step):
    assert leader.served[1] == f"step-{step}"
    graded = [2] * 4 if step else [0] * 4
    scores = ProblemScores(
        benchmark=benchmark.name, step=step, problems="digest", right=[g // 2 for g in graded], graded=graded
    )
    return Measured(pass_at_1([0.5] * 4 if step else []), 1, scores)


@pytest.fixture
def no_server(monkeypatch):
    monkeypatch.setattr(evaluation, "Leader", FakeLeader)
    monkeypatch.setattr(evaluation, "evaluate_benchmark", measure)
    monkeypatch.setattr(evaluation.Pair, "load", lambda student, teacher: None)
    monkeypatch.setattr(evaluation, "require_weights", lambda field, folder: None)


def test_other_settings_are_another_result_and_the_same_replace_it(tmp_path):
    write_evaluation(tmp_path, measured())
    write_evaluation(tmp_path, measured(pass_at_1=0.75))
    write_evaluation(tmp_path, measured(settings={"temperature": 0.0}))
    write_evaluation(tmp_path, measured(step=0, pass_at_1=None, low=None, high=None))
    (tmp_path / "evaluations" / "step-000020" / f"{UNFINISHED}sums.json").write_text('{"bench')
    found = [(e.step, e.pass_at_1, e.settings["temperature"]) for e in read_evaluations(tmp_path)]
    assert sorted(found, key=str) == [(0, None, 1.0), (20, 0.5, 0.0), (20, 0.75, 1.0)]


@pytest.mark.parametrize(
    ("text", "says"), [("", "the file: Invalid JSON"), ("{}", "benchmark: Field"), ("5", "the file: Input should be")]
)
def test_a_damaged_result_is_named(tmp_path, text, says):
    path = write_evaluation(tmp_path, measured())
    path.write_text(text)
    with pytest.raises(RecordsBroken, match=f"step-000020/{path.name}: {says}.*; remove it"):
        read_evaluations(tmp_path)


def test_the_best_the_newest_and_a_number(config, no_server):
    store = CheckpointStore(config.run_folder / "checkpoints", 1)

    def step_of(wanted):
        return [result.step for result in evaluate_checkpoint(config, wanted, lambda line: None)]

    assert step_of(None) == [0]
    with pytest.raises(NoSuchCheckpoint, match="--step: got 'best', but no checkpoint was evaluated in .*checkpoints"):
        step_of("best")
    for step in (20, 40, 60):
        with new_folder(store.path(step)):
            pass
    store.record_best(Best(40, 0.9))
    assert [step_of(wanted) for wanted in ("best", None, 20, 0)] == [[40], [60], [20], [0]]
    with pytest.raises(NoSuchCheckpoint, match=r"--step: got 30; allowed: 0, best and the checkpoints \[20, 40, 60\]"):
        step_of(30)
    kept = {(e.step, e.pass_at_1, e.problems, e.settings["student"]) for e in read_evaluations(config.run_folder)}
    assert kept == {(0, None, 0, "student"), *((step, 0.5, 4, "student") for step in (20, 40, 60))}


def test_a_full_disk_loses_no_result_that_was_measured(config, no_server, monkeypatch):
    write_evaluation(config.run_folder, measured())

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.atomic.sync", full)
    results = evaluate_checkpoint(config, 0, lambda line: None)
    assert next(results).benchmark == "sums"
    with pytest.raises(OSError, match="No space left"):
        next(results)
    assert read_evaluations(config.run_folder) == [measured()]


def test_a_step_that_is_none_is_refused_at_once(capsys):
    with pytest.raises(SystemExit):
        run(["--config", "x.yaml", "--step", "last"])
    assert "--step: got 'last'; allowed: a number of updates, or best" in capsys.readouterr().err


def test_the_report_shows_them(tmp_path):
    MetricsLog(tmp_path / "metrics.jsonl").append({"step": 20, "train/loss": math.pi})
    write_evaluation(tmp_path, measured(benchmark="<b>"))
    write_evaluation(tmp_path, measured(step=0, pass_at_1=None, low=None, high=None))
    page = write_report([tmp_path], tmp_path / "report").read_text()
    assert "Evaluated apart" in page and "n 8, temperature 1.0" in page
    assert "0.500" in page and "[0.250, 0.750]" in page and "&lt;b&gt;" in page


def test_scores_of_problems_come_back_and_damaged_ones_are_named(tmp_path):
    scores = ProblemScores(benchmark="sums", step=20, problems="digest", right=[1, 0, 0], graded=[2, 4, 0])
    assert read_scores(tmp_path, 20, "sums") is None
    write_scores(tmp_path, scores)
    assert read_scores(tmp_path, 20, "sums") == scores
    np.testing.assert_array_equal(scores.shares(), [0.5, 0.0, np.nan])
    write_scores(tmp_path, scores.model_copy(update={"right": [3, 0, 0]}))
    with pytest.raises(RecordsBroken, match="sums.json: right and graded do not belong together"):
        read_scores(tmp_path, 20, "sums")
    (tmp_path / "scores" / "step-000020" / "sums.json").write_text('{"benchmark": "su')
    with pytest.raises(RecordsBroken, match="sums.json: Invalid JSON"):
        read_scores(tmp_path, 20, "sums")

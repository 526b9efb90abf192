"""A sweep's combinations, their names, and the checkpoint that represents a run."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer.cli.sweep import run
from trainer.config.file import WrongConfig
from trainer.records import METRICS_FILE, MetricsLog
from trainer.study.sweep import Result, best, settings

MICRO = Path(__file__).resolve().parents[2] / "examples" / "micro" / "trb.yaml"
EPSILON, STEPS = "rollouts.behaviour.epsilon=[0.001, 0.05]", "rollouts.behaviour.warmup_steps=[15, 25, 50]"


def test_all_combinations_with_names_of_their_own():
    found = settings(MICRO, [EPSILON, STEPS], ["steps=3"])
    assert [s.config.name for s in found][:2] == [
        "micro-trb-epsilon-0.001-warmup-steps-15",
        "micro-trb-epsilon-0.001-warmup-steps-25",
    ]
    got = [(s.config.rollouts.behaviour.epsilon, s.config.rollouts.behaviour.warmup_steps) for s in found]
    assert got == [(e, k) for e in (0.001, 0.05) for k in (15, 25, 50)]
    assert {s.config.steps for s in found} == {3}


def test_whole_sections_can_vary():
    found = settings(MICRO, ["rollouts.behaviour=[{method: student}, {method: skd, top_k: 15}]"], [])
    assert [s.config.name for s in found] == [
        "micro-trb-behaviour-method-student",
        "micro-trb-behaviour-method-skd-top-k-15",
    ]


@pytest.mark.parametrize(
    ("varied", "says"),
    [
        ("seed", r"--vary: got 'seed'; allowed: key\.sub=\[value, value\]"),
        ("seed=3", "--vary: got 'seed=3'"),
        ("seed=[]", "--vary"),
        ("seed=[1, 1]", "twice; allowed: different values"),
        ("sed=[1]", "sed: there is no such field; did you mean seed?"),
        ("seed=[1, -1]", "seed: got -1"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_is(varied, says):
    with pytest.raises(WrongConfig, match=says):
        settings(MICRO, [varied], [])


def test_the_best_checkpoint_has_the_highest_mean(tmp_path):
    log = MetricsLog(tmp_path / METRICS_FILE)
    assert best(tmp_path) is None and best(tmp_path / "none") is None
    for step, a, b in ((0, 0.1, 0.2), (20, 0.5, 0.3), (40, 0.2, 0.8), (60, 0.9, None)):
        row = {"step": step, "eval/a/pass_at_1": a, "eval/a/pass_at_1_low": 0.9, "train/loss": 1.0}
        log.append(row | ({} if b is None else {"eval/b/pass_at_1": b}))
    assert best(tmp_path) == Result(tmp_path.name, 40, 0.5, {"a": 0.2, "b": 0.8})


def test_the_earliest_of_equals(tmp_path):
    log = MetricsLog(tmp_path / METRICS_FILE)
    for step in (0, 20):
        log.append({"step": step, "eval/a/pass_at_1": 0.5})
    assert best(tmp_path).step == 0


def test_nan_is_never_the_best(tmp_path):
    log = MetricsLog(tmp_path / METRICS_FILE)
    log.append({"step": 0, "eval/a/pass_at_1": math.nan, "eval/b/pass_at_1": 1.0})
    assert best(tmp_path) is None
    for step, score in ((20, 0.5), (40, math.nan)):
        log.append({"step": step, "eval/a/pass_at_1": score, "eval/b/pass_at_1": 0.5})
    assert best(tmp_path).step == 20


def test_a_run_with_damaged_records_costs_the_others_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trainer.cli.sweep.subprocess.run", lambda command, check: SimpleNamespace(returncode=0))
    sweep = ["--config", str(MICRO), "--vary", "seed=[0, 1]", f"folder={tmp_path}"]
    MetricsLog(tmp_path / "micro-trb-seed-1" / METRICS_FILE).append({"step": 0, "eval/a/pass_at_1": 0.5})
    MetricsLog(tmp_path / "micro-trb-seed-0" / METRICS_FILE).path.write_text("x\n")
    assert run(sweep) == 1
    said = capsys.readouterr()
    assert '{"run": "micro-trb-seed-1", "step": 0' in said.out
    assert "line 1: not a row" in said.err and "micro-trb-seed-0 failed" in said.err


def test_the_command_says_what_it_would_run(capsys):
    assert run(["--config", str(MICRO), "--vary", EPSILON, "--dry-run"]) == 0
    assert "run 2 of 2: micro-trb-epsilon-0.05" in capsys.readouterr().out
    assert run(["--config", str(MICRO), "--vary", "seed"]) == 2

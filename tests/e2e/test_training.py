"""Trainings on the real server: recorded, killed and resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sglang_trb.local_server import serving
from tests.pairs import Pair, build_pair
from trainer.checkpoints import CheckpointStore
from trainer.journal import StepJournal
from trainer.records import METRICS_FILE, curve, read_rows

ROOT = Path(__file__).resolve().parents[2]
STEPS, PROMPTS, SAMPLES = 4, 3, 2


@pytest.fixture(scope="module")
def pair() -> Pair:
    return build_pair("plain")


@pytest.fixture(scope="module")
def server(pair, tmp_path_factory):
    options = ["--model-path", str(pair.student), "--speculative-draft-model-path", str(pair.teacher)]
    log = tmp_path_factory.mktemp("server") / "server.log"
    with serving(ROOT / "server_configs" / "cpu-tiny.yaml", options, log=log) as address:
        yield address


@pytest.fixture
def config(pair, server, tmp_path):
    """The path of a configuration that trains the tiny pair in ``tmp_path/runs/tiny``."""
    problems = tmp_path / "problems.jsonl"
    lines = (json.dumps({"question": f"what is {i} + {i}", "answer": str(2 * i)}) + "\n" for i in range(20))
    problems.write_text("".join(lines))
    values = {
        "name": "tiny",
        "folder": str(tmp_path / "runs"),
        "steps": STEPS,
        "models": {"student": str(pair.student), "teacher": str(pair.teacher), "dtype": "float32"},
        "data": {"path": str(problems), "template": "raw"},
        "rollouts": {
            "behaviour": {"method": "trb", "epsilon": 0.1, "warmup_steps": 3},
            "prompts_per_step": PROMPTS,
            "samples_per_prompt": SAMPLES,
            "max_new_tokens": 12,
        },
        "loss": {"name": "reverse_kl"},
        "server": {"urls": [server], "max_in_flight": 1},  # one at a time: batches do not change the last bits
        "optimisation": {"learning_rate": 1e-3, "warmup_steps": 2, "zero_stage": 0, "micro_batch_size": 4},
        "checkpoints": {"every": 2, "keep_journals": True},
        "evaluation": {
            "every": 2,
            "max_new_tokens": 8,
            "benchmarks": [{"name": "sums", "path": str(problems), "limit": 4}],
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def train(config: Path, *overrides: str, where: str = "none", count: int = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.e2e.killable_training", where, str(count), "--config", str(config)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, *overrides], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False
    )


def curve_of(config: Path, name: str = "tiny") -> str:
    return json.dumps(curve(read_rows(config.parent / "runs" / name / METRICS_FILE)))


def check_each_prompt_once(run: Path) -> None:
    trained = []
    for step in range(STEPS):
        with StepJournal(run / "journal" / f"step-{step:06d}.rollouts") as journal:
            trained += [(r.key.prompt, r.key.sample) for r in journal.rollouts()]
            assert {r.key.step for r in journal.rollouts()} == {step}
    assert trained == [(prompt, sample) for prompt in range(STEPS * PROMPTS) for sample in range(SAMPLES)]


def test_a_run_from_start_to_end(config):
    done = train(config)
    assert done.returncode == 0, done.stderr
    run = config.parent / "runs" / "tiny"
    rows = read_rows(run / METRICS_FILE)
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    assert [row["rollout/epsilon"] for row in rows[1:]] == pytest.approx([0.1, 0.1 * 2 / 3, 0.1 / 3, 0.0])
    assert all(row["drift/mean_abs"] < 1e-4 for row in rows[1:]), "float32 on both sides"
    assert all(row["rollout/mean_kl"] <= row["rollout/epsilon"] * (1 + 1e-4) for row in rows[1:])
    assert [row["step"] for row in rows if "eval/sums/pass_at_1" in row] == [0, 2, 4]
    # The same prompts are never drawn twice, so it is the trend over four steps at a large rate that can be tested.
    assert rows[-1]["rollout/reverse_kl"] < rows[1]["rollout/reverse_kl"]
    assert [checkpoint.step for checkpoint in CheckpointStore(run / "checkpoints", 2).all()] == [2, 4]
    check_each_prompt_once(run)
    check_evaluated_again(config, rows[-1]["eval/sums/pass_at_1"])
    again = train(config)
    assert again.returncode == 0 and [row["step"] for row in read_rows(run / METRICS_FILE)] == list(range(STEPS + 1))


def check_evaluated_again(config: Path, want: float) -> None:
    """The last checkpoint's responses are all there: it is graded again, not drawn again."""
    command = [sys.executable, "-m", "sglang_trb.cli.main", "evaluate", "--config", str(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["benchmark"], result["pass_at_1"], result["problems"]) == ("sums", want, 4)
    done = subprocess.run([*command, "--step", "3"], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1 and "--step: got 3; allowed: 0 and the checkpoints [2, 4]" in done.stderr


@pytest.mark.parametrize(("where", "count"), [("update", 3), ("checkpoint", 1)])
def test_killed_after_collection_the_curve_is_bit_identical(config, where, count):
    """Killed after update 3, before it is recorded; and while a checkpoint is written."""
    killed = train(config, where=where, count=count)
    assert killed.returncode == 9, killed.stderr
    resumed = train(config)
    assert resumed.returncode == 0, resumed.stderr
    assert train(config, "name=whole").returncode == 0
    assert curve_of(config) == curve_of(config, "whole")
    check_each_prompt_once(config.parent / "runs" / "tiny")


def test_killed_during_collection_what_was_finished_is_kept(config):
    """After 4 answers of the evaluation, step 0's 6 rollouts and 5 of step 1's."""
    assert train(config, where="journal", count=15).returncode == 9
    run = config.parent / "runs" / "tiny"
    journal = run / "journal" / "step-000001.rollouts"
    finished = journal.read_bytes()
    with StepJournal(journal) as opened:
        assert len(opened.entries) == 5
    assert train(config).returncode == 0
    assert journal.read_bytes()[: len(finished)] == finished
    check_each_prompt_once(run)


def test_a_full_disk_in_a_checkpoint_stops_clearly_and_loses_nothing(config):
    full = train(config, where="disk")
    assert full.returncode == 1 and "step-000002" in full.stderr and "Traceback" not in full.stderr, full.stderr
    run = config.parent / "runs" / "tiny"
    assert not list((run / "checkpoints").iterdir())
    assert [row["step"] for row in read_rows(run / METRICS_FILE)] == [0, 1, 2]
    assert train(config).returncode == 0
    check_each_prompt_once(run)


def test_a_server_killed_during_collection_is_started_again_and_brought_to_its_weights(config, pair):
    """After 6 rollouts of step 0 and 2 of step 1; the new process holds the first weights until it is updated."""
    launch = str(ROOT / "server_configs" / "cpu-tiny.yaml")
    overrides = ["server.urls=[]", f"server.launch={launch}", "evaluation.every=0"]
    done = train(config, *overrides, where="server", count=8)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "starting it again" in done.stdout and "is back with weights tiny/step-1" in done.stdout
    run = config.parent / "runs" / "tiny"
    assert [row["step"] for row in read_rows(run / METRICS_FILE)] == list(range(1, STEPS + 1))
    check_each_prompt_once(run)


def test_replaying_a_journal_is_bit_identical(config):
    assert train(config).returncode == 0
    first = curve_of(config)
    run = config.parent / "runs" / "tiny"
    for path in (run / "checkpoints").iterdir():
        path.rename(config.parent / path.name)
    assert train(config).returncode == 0
    assert curve_of(config) == first


def test_a_wrong_field_is_named(config):
    done = train(config, "optimisation.learning_rat=1")
    assert done.returncode == 2 and "did you mean optimisation.learning_rate?" in done.stderr

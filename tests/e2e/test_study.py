"""Studies of the tiny pair on the real server: from start to end, killed at any moment, by two workers at a time."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import psutil
import pytest
import yaml

from tests.e2e.tiny_training import ROOT, end_of, environment, write_config
from trainer.records import METRICS_FILE, curve, read_rows
from trainer.rollouts.journal import StepJournal
from trainer.study.probe import read_probe

RUNS = ("vanilla-seed-0", "sft-warmup-seed-0", "sft-sft-1-seed-0")
BROKEN = {"broken": {"set": {"rollouts.behaviour": {"method": "student"}, "data.path": "nowhere.jsonl"}}}

pytestmark = pytest.mark.timeout(900)


def write_study(config: Path, name: str, steps: int = 2, **families: dict) -> Path:
    """Vanilla OPD and what else is asked for."""
    values = {
        "name": name,
        "folder": str(config.parent / "studies"),
        "base": str(config),
        "set": {"steps": steps, "checkpoints.every": 1},
        "families": {"vanilla": {}, **families},
    }
    path = config.parent / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def command(study: Path) -> list[str]:
    return [sys.executable, "-m", "sglang_trb.cli.main", "study", "--config", str(study)]


def curves(study: Path) -> dict[str, str]:
    runs = study.parent / "studies" / study.stem / "runs"
    return {name: json.dumps(curve(read_rows(runs / name / METRICS_FILE))) for name in RUNS}


def log_of(study: Path, run: str) -> str:
    return (study.parent / "studies" / study.stem / "runs" / run / "train.log").read_text()


@pytest.fixture(scope="module")
def config_of_all(pair, server, tmp_path_factory) -> Path:
    return write_config(tmp_path_factory.mktemp("study"), pair, server)


@pytest.fixture(scope="module")
def unbroken(config_of_all) -> Path:
    """A study with supervised updates before one of its runs."""
    study = write_study(config_of_all, "unbroken", sft={"sft_updates": [1]})
    done = end_of(command(study), seconds=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return study


def test_one_run_fails_and_the_others_are_made_once(config_of_all):
    study = write_study(config_of_all, "failing", steps=1, **BROKEN)
    done = end_of(command(study), seconds=600)
    assert done.returncode == 1 and "1 of 2 runs are done" in done.stdout, done.stdout + done.stderr
    assert "trb study: broken-seed-0 failed: trb train: problems: got no file in 'nowhere.jsonl'" in done.stderr
    again = end_of(command(study), seconds=600)
    assert again.returncode == 1 and again.stdout.count("begins at update") == 1, again.stdout
    assert log_of(study, "vanilla-seed-0").count("report: ") == 1, "made once"

    values = yaml.safe_load(study.read_text())
    other = study.parent / "other.yaml"
    other.write_text(yaml.safe_dump(values | {"set": {"steps": 3}}, sort_keys=False))
    refused = end_of(command(other))
    says = "got other settings of 'vanilla-seed-0' than those that were begun there"
    assert refused.returncode == 1 and says in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr


@pytest.mark.slow
def test_supervised_updates_come_before_a_run_and_all_is_reported(unbroken):
    folder = unbroken.parent / "studies" / "unbroken"
    warm, after = (json.loads((folder / "runs" / name / "run.json").read_text()) for name in RUNS[1:])
    assert warm["loss"]["name"] == "sft" and warm["rollouts"]["behaviour"]["method"] == "teacher"
    assert after["data"]["first_prompt"] == 3 and after["steps"] == 1
    assert after["models"]["student"].endswith("sft-warmup-seed-0/checkpoints/step-000001/student")
    page = end_of([sys.executable, "-m", "sglang_trb.cli.main", "report", str(folder)])
    assert page.returncode == 0, page.stderr
    with (folder / "report" / "table.csv").open() as file:
        assert [row["family"] for row in csv.DictReader(file)] == ["vanilla", "sft"]


def test_prefixes_are_probed_once(config):
    """Cut, continued and graded on the server, and kept: the next time nothing is drawn."""
    run = config.parent / "runs" / "tiny"
    probing = [sys.executable, "-m", "sglang_trb.cli.main", "probe", "--config", str(config)]
    probing += ["--lengths", "4,2", "--steps", "2"]
    done = end_of(probing)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["length"], line["continuation"]) for line in lines] == [
        (length, who) for length in (2, 4) for who in ("student", "teacher")
    ]
    found = read_probe(run)
    assert {s.source for s in found.successes} == {"behaviour", "student"}
    assert {tuple(s.graded) for s in found.successes} == {(2,) * 6}, "two samples of each of two steps' prompts"
    with StepJournal(next((run / "probe").glob("behaviour-teacher-4-*.rollouts"))) as journal:
        continued = journal.rollouts()
    with StepJournal(
        next(p for p in (run / "probe").glob("behaviour-*.rollouts") if p.name.count("-") == 1)
    ) as journal:
        whole = {rollout.key: rollout for rollout in journal.rollouts()}
    assert continued and all(
        r.prompt_ids.tolist() == [*whole[r.key].prompt_ids, *whole[r.key].token_ids_T[:4]] for r in continued
    )
    again = end_of(probing)
    counts = re.findall(r": (\d+) responses, (\d+) of them drawn before", again.stderr)
    assert again.stdout == done.stdout and len(counts) == 10 and all(wanted == had for wanted, had in counts)


@pytest.mark.slow
def test_killed_at_five_moments_it_makes_nothing_twice_and_loses_nothing(unbroken):
    study = write_study(unbroken.parent / "config.yaml", "killed", sft={"sft_updates": [1]})
    random, deadline = Random(5), time.monotonic() + 600
    for _ in range(5):
        process = subprocess.Popen(command(study), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
        time.sleep(random.uniform(3, 25))
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert psutil.wait_procs(children, timeout=60)[1] == [], "what a killed study has started ends by itself"
    while (done := end_of(command(study), seconds=600)).returncode and time.monotonic() < deadline:
        pass
    assert done.returncode == 0, done.stdout + done.stderr
    assert curves(study) == curves(unbroken)


@pytest.mark.slow
def test_two_workers_share_a_study_and_one_server_is_not_for_two(unbroken):
    study = write_study(unbroken.parent / "config.yaml", "shared", sft={"sft_updates": [1]})
    first = subprocess.Popen(command(study), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    while "begins at update" not in first.stdout.readline():
        assert first.poll() is None
    second = end_of(command(study), seconds=600)
    assert second.returncode == 1 and "where another worker trains; allowed: servers of its own" in second.stderr
    first.communicate(timeout=300)
    assert first.returncode == 0 and curves(study) == curves(unbroken)

"""Trainings on the real server: recorded, killed and resumed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import pytest
import requests
import torch
from safetensors.torch import load_file, save_file

from sglang_trb.launch.local_server import ADMIN_KEY_VARIABLE, free_port
from sglang_trb.wire.packing import unpack
from tests.e2e.tiny_training import (
    ADMIN_KEY,
    PROMPTS,
    ROOT,
    STEPS,
    check_each_prompt_once,
    curve_of,
    end_of,
    environment,
    train,
    write_config,
)
from tests.pairs import hub_cache, shard
from trainer.learner.checkpoints import CheckpointStore
from trainer.records import METRICS_FILE, read_evaluations, read_memory, read_rows, undeclared
from trainer.rollouts.journal import StepJournal


@pytest.fixture(scope="module")
def unbroken(pair, server, tmp_path_factory) -> Path:
    """The configuration of a run that went from start to end, with nothing in its way."""
    config = write_config(tmp_path_factory.mktemp("unbroken"), pair, server)
    done = train(config)
    assert done.returncode == 0, done.stderr
    return config


def test_a_run_from_start_to_end(unbroken, server):
    check_preferences_reach_other_requests(server)
    run = unbroken.parent / "runs" / "tiny"
    rows = read_rows(run / METRICS_FILE)
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    assert undeclared({name for row in rows for name in row}) == []
    assert [row["rollout/epsilon"] for row in rows[1:]] == pytest.approx([0.1, 0.1 * 2 / 3, 0.1 / 3, 0.0])
    assert all(row["drift/mean_abs"] < 1e-4 for row in rows[1:]), "float32 on both sides"
    assert all(row["rollout/mean_kl"] <= row["rollout/epsilon"] * (1 + 1e-4) for row in rows[1:])
    assert [row["step"] for row in rows if "eval/sums/pass_at_1" in row] == [0, 2, 4]
    # The same prompts are never drawn twice, so it is the trend over four steps at a large rate that can be tested.
    assert rows[-1]["rollout/reverse_kl"] < rows[1]["rollout/reverse_kl"]
    assert [checkpoint.step for checkpoint in CheckpointStore(run / "checkpoints", 2).all()] == [2, 4]
    check_each_prompt_once(run)
    check_evaluated_again(unbroken, rows)
    assert (run / "report" / "index.html").is_file()
    memory = read_memory(run)
    assert memory.predicted == memory.allocated, "what trb doctor expects of the pair is what the server took"
    again = train(unbroken)
    assert (
        again.returncode == 0
        and "all 4 updates are made" in again.stdout
        and [row["step"] for row in read_rows(run / METRICS_FILE)] == list(range(STEPS + 1))
    )


def check_preferences_reach_other_requests(server: str) -> None:
    """One that leaves them to the server is filtered; the run's own evaluation would have stopped over such a law."""
    asked = {"trb_rule": "student", "trb_return": "tokens"}
    body = {"input_ids": [40, 50, 60], "sampling_params": {"max_new_tokens": 8, "custom_params": asked}}
    trb = requests.post(f"{server}/generate", json=body, timeout=60).json()["meta_info"]["trb"]
    assert np.abs(unpack(trb["behavior_logprob"]) - unpack(trb["student_logprob"])).max() > 0.1


def check_evaluated_again(config: Path, rows: list[dict]) -> None:
    """The best checkpoint's responses are all there: it is graded again, not drawn again, and without prompts."""
    command = [sys.executable, "-m", "sglang_trb.cli.main", "evaluate", "--config", str(config), "data.path=nowhere"]
    done = subprocess.run(
        [*command, "--step", "best"], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    best = max(rows[2::2], key=lambda row: row["eval/sums/pass_at_1"])  # of equals the earliest
    step, want = best["step"], best["eval/sums/pass_at_1"]
    assert (result["benchmark"], result["pass_at_1"], result["problems"]) == ("sums", want, 4)
    (kept,) = read_evaluations(config.parent / "runs" / "tiny")
    assert (kept.step, kept.benchmark, kept.pass_at_1) == (step, "sums", want)
    done = subprocess.run([*command, "--step", "3"], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1 and "--step: got 3; allowed: 0, best and the checkpoints [2, 4]" in done.stderr


@pytest.mark.parametrize(
    ("where", "count", "kept"), [("update", 3, [2]), ("checkpoint", 1, []), ("evaluation", 3, [2, 4])]
)
def test_killed_after_collection_the_curve_is_bit_identical(config, unbroken, where, count, kept):
    """Killed after update 3, before it is recorded; while a checkpoint is written; in the last update's evaluation,
    which comes after its checkpoint.
    """
    killed = train(config, where=where, count=count)
    assert killed.returncode == 9, killed.stderr
    store = CheckpointStore(config.parent / "runs" / "tiny" / "checkpoints", 2)
    assert [checkpoint.step for checkpoint in store.all()] == kept
    resumed = train(config)
    assert resumed.returncode == 0, resumed.stderr
    assert curve_of(config) == curve_of(unbroken)
    assert store.best() == CheckpointStore(unbroken.parent / "runs" / "tiny" / "checkpoints", 2).best()
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


@pytest.mark.slow
def test_an_update_without_a_gradient_is_left_out_and_counted_across_a_restart(config):
    done = train(config, "steps=2", "evaluation.every=0", where="nan", count=2)
    assert done.returncode == 0 and "step 1: the update is skipped" in done.stdout, done.stderr + done.stdout
    assert train(config, "steps=3", "evaluation.every=0").returncode == 0
    run = config.parent / "runs" / "tiny"
    assert [row["train/skipped_updates"] for row in read_rows(run / METRICS_FILE)] == [0, 1, 1]
    assert [
        checkpoint.state()["skipped"]["in_a_row"] for checkpoint in CheckpointStore(run / "checkpoints", 2).all()
    ] == [1, 0]
    stopped = train(config, "steps=4", "evaluation.every=0", "optimisation.max_skipped=1", where="nan", count=1)
    assert stopped.returncode == 1 and "allowed: optimisation.max_skipped = 1" in stopped.stderr, stopped.stderr


def test_a_full_disk_in_a_checkpoint_stops_clearly_and_loses_nothing(config):
    full = train(config, where="disk")
    assert full.returncode == 1 and "step-000002" in full.stderr and "Traceback" not in full.stderr, full.stderr
    run = config.parent / "runs" / "tiny"
    assert not list((run / "checkpoints").iterdir())
    assert [row["step"] for row in read_rows(run / METRICS_FILE)] == [0, 1], "a row is of an update that is kept"
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
    assert b"server_args=" in (run / "server.log").read_bytes()
    holders = [file for file in run.rglob("*") if file.is_file() and ADMIN_KEY.encode() in file.read_bytes()]
    assert not holders, "the key is in a file"


@pytest.mark.parametrize("route", ["tensor", "distributed"])
def test_every_route_of_the_push_gives_the_same_curve(config, unbroken, route):
    """The weights go in several parts; killed between two of them, the next run finds the server half-way."""
    overrides = [f"push.route={route}", "push.bucket_mib=0.1"]
    killed = train(config, *overrides, where="push", count=4)
    assert killed.returncode == 9, killed.stderr
    resumed = train(config, *overrides)
    assert resumed.returncode == 0, resumed.stderr
    assert curve_of(config) == curve_of(unbroken)
    check_each_prompt_once(config.parent / "runs" / "tiny")


@pytest.mark.slow
@pytest.mark.parametrize("route", ["tensor", "distributed"])
def test_a_server_killed_in_the_middle_of_a_push_is_started_again_and_gets_all_of_it(config, route):
    launch = f"server.launch={ROOT / 'server_configs' / 'cpu-tiny.yaml'}"
    push = [f"push.route={route}", "push.bucket_mib=0.1"]
    done = train(config, "server.urls=[]", launch, *push, "evaluation.every=0", where="server_in_push", count=5)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "starting it again" in done.stdout and "is back with weights tiny/step-" in done.stdout
    check_each_prompt_once(config.parent / "runs" / "tiny")


def test_the_tensor_route_without_a_key_is_refused(config, monkeypatch):
    monkeypatch.delenv(ADMIN_KEY_VARIABLE)
    done = train(config, "push.route=tensor")
    assert done.returncode == 1 and "push.route: got 'tensor' without an admin key" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_with_another_teacher_is_refused_and_a_student_of_the_hub_evaluated(config, pair, tmp_path):
    teacher = Path(shutil.copytree(pair.teacher, tmp_path / "teacher"))
    student = Path(shutil.copytree(pair.student, tmp_path / "student"))
    shard(student, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    hub = {"HF_HUB_CACHE": str(hub_cache(tmp_path / "hub", "some/student", student)), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "sglang_trb.cli.main", "evaluate", "--config", str(config), "--step", "0"]
    command += ["models.student=some/student", f"models.teacher={teacher}"]
    done = end_of(command, hub)
    assert done.returncode == 0 and json.loads(done.stdout)["problems"] == 4, done.stderr
    weights = load_file(teacher / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, teacher / "model.safetensors")
    done = end_of(command, hub)
    assert (
        done.returncode == 1
        and f"got '{pair.teacher}', which differs from models.teacher in its weights" in done.stderr
    )


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_two_processes_train_as_one(config, unbroken, launcher, monkeypatch):
    """Sums come in another order: the same to rounding, and the same prompts. OpenMP's threads do not spin."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "VERBOSE")
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    if launcher == "deepspeed":
        launch = ["-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", str(free_port())]
        launch += ["--no_local_rank", "--module"]
    arguments = ["train", "--config", str(config), "optimisation.zero_stage=3", "evaluation.every=0"]
    if launcher == "torchrun":  # with a server of its own
        arguments += ["server.urls=[]", f"server.launch={ROOT / 'server_configs' / 'cpu-tiny.yaml'}"]
        arguments += ["data.max_prompt_tokens=30", "optimisation.micro_batch_tokens=42"]  # one or two sequences
    done = end_of([sys.executable, *launch, "sglang_trb.cli.main", *arguments])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("GOMP_SPINCOUNT = '0'") == 2, done.stderr
    check_trained_as(config, unbroken)


@pytest.mark.slow
def test_two_nodes_train_as_one(config, unbroken):
    """An agent of torchrun for each node."""
    port = free_port()
    agent = ["torch.distributed.run", "--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    run = ["sglang_trb.cli.main", "train", "--config", str(config), "optimisation.zero_stage=2", "evaluation.every=0"]
    command = [sys.executable, "-m", *agent, "--nproc-per-node", "1", "-m", *run]
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(end_of, [command, command]):
            assert done.returncode == 0, done.stderr
    check_trained_as(config, unbroken)


def check_trained_as(config: Path, unbroken: Path) -> None:
    check_each_prompt_once(config.parent / "runs" / "tiny")
    two, one = (read_rows(of.parent / "runs" / "tiny" / METRICS_FILE) for of in (config, unbroken))
    one = one[1:]  # without the evaluation at the start
    for name in ("train/loss", "train/grad_norm", "rollout/reverse_kl"):
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-4), name
    assert [row["step"] for row in two] == [row["step"] for row in one]


def test_engines_that_disagree_are_said_then_stop_the_run(config):
    """float32 on both sides still differs in its last bits."""
    tight = ["steps=2", "evaluation.every=0", "optimisation.max_drift_warn=1e-12"]
    warned = train(config, "steps=1", *tight[1:])
    assert warned.returncode == 0 and "trainer and server differ by" in warned.stdout, warned.stderr + warned.stdout
    stopped = train(config, *tight, "optimisation.max_drift_stop=1e-12")
    assert stopped.returncode == 1 and "allowed: optimisation.max_drift_stop = 1e-12" in stopped.stderr, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert "step 1: " in stopped.stderr and "are kept in step-000001.set-aside-001" in stopped.stderr
    run = config.parent / "runs" / "tiny"
    assert [row["step"] for row in read_rows(run / METRICS_FILE)] == [1]
    assert train(config, *tight).returncode == 0
    assert (run / "journal" / "step-000001.set-aside-001").is_file()
    check_each_prompt_once(config.parent / "runs" / "tiny", 2)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "", "answer": "1"}, "line 21, question: got ''"),
        ({"question": None, "answer": "1"}, "line 21, question: got None"),
        ({"question": "x " * 300, "answer": "1"}, "longer than 512 tokens"),
    ],
    ids=["empty", "not text", "too long"],
)
def test_a_poisoned_prompt(config, row, says):
    """The first two stop the run at once; a prompt that is too long is left out and the run goes on."""
    with (config.parent / "problems.jsonl").open("a") as problems:
        problems.write(json.dumps(row) + "\n")
    done = train(config, "steps=1", "evaluation.every=0", "data.max_prompt_tokens=512")
    assert says in done.stderr + done.stdout and "Traceback" not in done.stderr, done.stderr + done.stdout
    assert done.returncode == (0 if row["question"] else 1)


def test_what_the_context_has_no_room_for_is_counted_and_the_data_stays_what_it_was(config):
    """The server has 512 tokens. A benchmark's problem that is too long is a fault; other data is refused later.

    Of the step's 6 rollouts, after 3 responses of the evaluation, the second is refused; it is trained without it.
    """
    problems = config.parent / "problems.jsonl"
    rows = problems.read_text()
    problems.write_text(json.dumps({"question": "x " * 260, "answer": "1"}) + "\n" + rows)
    done = train(config, "steps=1", "data.max_prompt_tokens=100000", where="refusal", count=5)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "step 0: 1 of 6 responses could not be had" in done.stdout and "a row of NaN" in done.stdout
    assert "data: 1 of 21 prompts are left out: longer than the 498 tokens" in done.stdout, done.stdout
    assert "sums: 1 of 4 problems are longer than the 502 tokens" in done.stdout
    run = config.parent / "runs" / "tiny"
    start, row = read_rows(run / METRICS_FILE)
    assert (start["eval/sums/faults"], row["eval/sums/faults"], row["rollout/prompts_left_out"]) == (1, 1, 1)
    assert (row["rollout/refused"], row["train/skipped_updates"]) == (1, 0)
    problems.write_text(rows)
    again = train(config, "steps=2", "data.max_prompt_tokens=100000")
    assert again.returncode == 1 and "Restore the file, or give the run another name" in again.stderr, again.stderr
    assert "benchmark sums" in again.stderr or "training prompts" in again.stderr, again.stderr


def test_a_step_whose_only_problem_is_refused_is_left_out(config):
    one = ["rollouts.prompts_per_step=1", "rollouts.samples_per_prompt=1", "loss={name: tip}", "evaluation.every=0"]
    done = train(config, "steps=2", *one, where="refusal", count=1)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "step 0: the update is skipped, it has no finite gradient (1 so far)" in done.stdout
    first, second = read_rows(config.parent / "runs" / "tiny" / METRICS_FILE)
    assert [(row["rollout/refused"], row["train/skipped_updates"]) for row in (first, second)] == [(1, 1), (0, 1)]
    assert "rollout/mean_kl" not in first and second["train/grad_norm"] > 0


def test_prompts_that_are_all_too_long_stop_the_run_before_its_first_step(config):
    row = json.dumps({"question": "x " * 5000, "answer": "1"}) + "\n"
    (config.parent / "problems.jsonl").write_text(row * PROMPTS)
    done = train(config, "steps=1", "evaluation.every=0", "data.max_prompt_tokens=100000")
    assert done.returncode == 1 and "the servers' context leaves" in done.stderr and "Traceback" not in done.stderr
    assert not list((config.parent / "runs" / "tiny").glob("journal/*")), done.stderr


STUDENT = "rollouts.behaviour={method: student}"
BASELINES = {
    "vanilla": [STUDENT],
    "fixed epsilon": ["rollouts.behaviour={method: fixed_epsilon, epsilon: 0.05}"],
    "temperature warmup": ["rollouts.behaviour={method: temperature_warmup, warmup_steps: 2}"],
    "SKD": ["rollouts.behaviour={method: skd, top_k: 15, teacher_temperature: 0.6}"],
    "teacher-mixed sampling": ["rollouts.behaviour={method: mixture, alpha: 0.3}"],
    "Veto": [STUDENT, "loss={name: veto}"],
    "Veto, target to student": [STUDENT, "loss={name: veto, direction: target_to_student}"],
    "entropy-aware": [STUDENT, "loss={name: entropy_aware}"],
    "TIP": [STUDENT, "loss={name: tip}"],
    "forward KL": [STUDENT, "loss={name: forward_kl}"],
    "JSD": [STUDENT, "loss={name: jsd}"],
    "raw": [STUDENT, "loss={name: reverse_kl, normalisation: raw}"],
    "renormalised": [STUDENT, "loss={name: reverse_kl, normalisation: renormalised}"],
    "tail": [STUDENT, "loss={name: reverse_kl, normalisation: tail}"],
}


@pytest.mark.slow
@pytest.mark.parametrize("overrides", BASELINES.values(), ids=BASELINES)
def test_every_method_trains(config, overrides):
    done = train(config, "steps=2", "evaluation.every=0", *overrides)
    assert done.returncode == 0, done.stderr
    rows = read_rows(config.parent / "runs" / "tiny" / METRICS_FILE)
    assert len(rows) == 2 and all(row["train/grad_norm"] > 0 and row["drift/mean_abs"] < 1e-4 for row in rows)
    check_each_prompt_once(config.parent / "runs" / "tiny", 2)


@pytest.mark.slow
def test_sft_warmup_has_the_first_prompts_of_the_run_that_it_replaces(config):
    """The second stage takes up the prompts where the first left off, and is killed and resumed on the way."""
    first = ["name=sft", "steps=2", "rollouts.behaviour={method: teacher}", "loss={name: sft}", "evaluation.every=0"]
    assert train(config, *first).returncode == 0
    runs = config.parent / "runs"
    student = runs / "sft" / "checkpoints" / "step-000002" / "student"
    second = ["name=second", f"models.student={student}", f"data.first_prompt={2 * PROMPTS}", STUDENT, "steps=2"]
    assert train(config, *second, "evaluation.every=0", where="update", count=2).returncode == 9
    assert train(config, *second, "evaluation.every=0").returncode == 0
    assert train(config, "steps=4", "evaluation.every=0").returncode == 0
    in_two = [prompts_of(runs / name, step) for name in ("sft", "second") for step in range(2)]
    assert in_two == [prompts_of(runs / "tiny", step) for step in range(4)]


def prompts_of(run: Path, step: int) -> list[list[int]]:
    with StepJournal(run / "journal" / f"step-{step:06d}.rollouts") as journal:
        return [rollout.prompt_ids.tolist() for rollout in journal.rollouts()]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_kills_at_random_moments(config):
    """Whenever it is killed, the next run goes on, and in what survives every prompt is trained on once."""
    random = Random(0)
    command = [sys.executable, "-m", "sglang_trb.cli.main", "train", "--config", str(config)]
    metrics = config.parent / "runs" / "tiny" / METRICS_FILE
    for _ in range(20):
        with subprocess.Popen(
            [*command, "steps=1000"], cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(random.uniform(5, 20))
            process.kill()
    steps = read_rows(metrics)[-1]["step"] + 2
    done = end_of([*command, f"steps={steps}"])
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in read_rows(metrics)] == list(range(steps + 1))
    check_each_prompt_once(metrics.parent, steps)


def test_replaying_a_journal_is_bit_identical(unbroken):
    first = curve_of(unbroken)
    shutil.rmtree(unbroken.parent / "runs" / "tiny" / "checkpoints")
    assert train(unbroken).returncode == 0
    assert curve_of(unbroken) == first


def test_a_wrong_field_is_named(config):
    done = train(config, "optimisation.learning_rat=1")
    assert done.returncode == 2 and "did you mean optimisation.learning_rate?" in done.stderr

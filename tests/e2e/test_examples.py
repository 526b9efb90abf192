"""The examples and `trb generate` as a reader would run them, on the tiny pair and a real server."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sglang_trb.launch.local_server import ServerDidNotStart, free_port, serving
from tests.pairs import build_pair

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def pair():
    return build_pair("plain")


@pytest.fixture(scope="module")
def config(pair, tmp_path_factory):
    """The shipped configuration of the tiny pair, with this test's copy of it."""
    text = (ROOT / "server_configs/cpu-tiny.yaml").read_text()
    text = text.replace(".cache/tiny/student", str(pair.student)).replace(".cache/tiny/teacher", str(pair.teacher))
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(text)
    return path


def run(folder, *command, status=0):
    result = subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == status, result.stderr[-3000:]
    return result


def test_standalone(pair, tmp_path):
    output = run(tmp_path, ROOT / "examples/standalone.py", "--student", pair.student, "--teacher", pair.teacher).stdout
    blocks = re.findall(r"mean β ([\d.]+), ΣKL ([\d.]+) nats", output)
    student, blend, teacher = [(float(beta), float(kl)) for beta, kl in blocks]
    assert student == (0.0, 0.0) and teacher[0] == 1.0
    assert 0 < blend[0] < 1 and 0 < blend[1] <= 12 * 0.1
    assert output.count(" log q") == 3


def test_training_loop(tmp_path):
    problems = tmp_path / "train.jsonl"
    run(ROOT, "-m", "examples.micro.task", "--split", "train", "--count", "64", "--out", problems)
    options = ("--problems", problems, "--steps", "2", "rollouts.prompts_per_step=16")
    output = run(ROOT, ROOT / "examples/training_loop.py", *options).stdout
    divergences = [float(value) for value in re.findall(r"reverse KL ([\d.]+) nats", output)]
    assert len(divergences) == 2 and divergences[1] < divergences[0]


def test_serve_and_call(config, tmp_path):
    """Starts a server of its own; that `--base-url` finds one that runs is in the next test."""
    output = run(tmp_path, ROOT / "examples/serve_and_call.py", "--config", config, "--max-tokens", "8").stdout
    assert "ready at http://127.0.0.1:" in output
    assert "ε = 0\n" in output and "ε = 0.1\n" in output
    assert output.count("'rule': 'trust_region'") == 2 and "'mean_beta': 0.0," in output
    assert server_processes(tmp_path) == []


def test_base_url_and_the_end_of_a_server(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TRB_ADMIN_KEY", "a-key-of-its-own")
    others = psutil.Process().children(recursive=True)  # other tests' servers, torch's helpers
    with serving(config, log=tmp_path / "server.log") as address:
        output = run(tmp_path, ROOT / "examples/serve_and_call.py", "--base-url", address, "--epsilon", "0.5").stdout
        assert "'epsilon': 0.5" in output
        processes = [p for p in psutil.Process().children(recursive=True) if p not in others]
        assert any("sglang::scheduler" in " ".join(p.cmdline()) for p in processes)
        assert not any("a-key-of-its-own" in " ".join([*p.cmdline(), *p.environ().values()]) for p in processes)
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []
    assert "trb serve: stopped" in (tmp_path / "server.log").read_text()


def test_ctrl_c_while_the_models_load_leaves_nothing_behind(config, tmp_path):
    command = [
        sys.executable,
        "-m",
        "sglang_trb.cli.main",
        "serve",
        "--config",
        str(config),
        "--port",
        str(free_port()),
    ]
    process = subprocess.Popen(
        command,
        stdout=(tmp_path / "log").open("w"),
        stderr=subprocess.STDOUT,
        cwd=tmp_path,
        env=ENVIRONMENT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    try:
        while "Load weight begin" not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(60) == 0
        assert (tmp_path / "log").read_text().rstrip().endswith("trb serve: stopped")
        assert server_processes(tmp_path) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_server_that_cannot_start_says_why(config, tmp_path):
    with (
        pytest.raises(ServerDidNotStart, match=r"(?s)status 1.*sampling_defaults is 'model'"),
        serving(config, ["--sampling-defaults", "model"], log=tmp_path / "server.log", report=lambda line: None),
    ):
        pass


def test_generate_writes_a_page_and_a_record_per_rollout(pair, tmp_path):
    result = run(
        tmp_path,
        *("-m", "sglang_trb.cli.main", "generate", "--student", pair.student, "--teacher", pair.teacher),
        *("--prompt", "hello world", "--prompt", "solve", "--epsilon", "0", "0.1", "--rule", "teacher"),
        *("--n", "2", "--max-tokens", "6", "--html", "out/page.html", "--jsonl", "out/rollouts.jsonl"),
    )
    records = [json.loads(line) for line in (tmp_path / "out/rollouts.jsonl").read_text().splitlines()]
    assert len(records) == 2 * 3 * 2
    for record in records:
        length = record["summary"]["completion_tokens"]
        assert len(record["pieces"]) == len(record["beta"]) == length <= 6
        assert record["label"] != "ε = 0" or set(record["beta"]) == {0.0}
        assert record["label"] != "ε = 0.1" or max(record["kl"]) <= 0.1
    page = (tmp_path / "out/page.html").read_text(encoding="utf-8")
    assert page.count('class="text"') == len(records)
    assert "hello world" in result.stdout and "teacher" in result.stdout and "All prompts" in result.stdout


def server_processes(folder):
    """Server processes whose working directory is ``folder`` (other tests may have servers of their own)."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if process.info["cwd"] == str(folder) and "sglang" in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return found

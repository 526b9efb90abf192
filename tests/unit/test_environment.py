"""The trainer's processes set their environment before torch is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from trainer import environment
from trainer.environment import wait_passively

ROOT = Path(__file__).resolve().parents[2]
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}


def test_threads_wait_passively_on_a_cpu_unless_the_user_says_otherwise(tmp_path, monkeypatch):
    def after(version="2.13.0+cu130", **given):
        def installed(package):
            if version is None:
                raise PackageNotFoundError(package)
            return version

        monkeypatch.setattr(environment, "version", installed)
        wait_passively(given, tmp_path)
        return given

    assert after() == PASSIVE
    assert after(OMP_WAIT_POLICY="ACTIVE") == {"OMP_WAIT_POLICY": "ACTIVE"}
    (tmp_path / "nvidia0").touch()
    assert after() == after(version=None) == {}
    assert after(version="2.13.0+cpu") == PASSIVE
    assert after(CUDA_VISIBLE_DEVICES="") == {"CUDA_VISIBLE_DEVICES": ""} | PASSIVE


def environment_for(**added: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in PASSIVE}
    return inherited | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""} | added


def test_openmp_itself_has_read_it():
    """Which libgomp says of itself when it is loaded: without waiting it spins 0 times, else some 300,000."""
    command = [sys.executable, "-c", "import trainer.config.run"]
    shown = environment_for(OMP_DISPLAY_ENV="VERBOSE")
    done = subprocess.run(command, env=shown, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "GOMP_SPINCOUNT = '0'" in done.stderr


@pytest.mark.slow
def test_an_update_beside_two_busy_processes_takes_little_longer():
    """The micro student, 8 micro-batches. A fair share of two cores is half; spinning, it was 20 times as slow."""
    sizes = {"vocab": 50, "rollouts": 256, "micro-batch": 32, "prompt": 24, "response": 60, "steps": 3}
    options = [f"--{name}={size}" for name, size in sizes.items()]
    run = "import trainer; from benchmarks.training import main; main()"
    command = [sys.executable, "-c", run, "--case=ours", f"--model={ROOT}/examples/micro/pair/student", *options]

    def speed() -> float:
        done = subprocess.run(command, env=environment_for(), cwd=ROOT, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])["tokens_per_s"]

    quiet = speed()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        beside_others = speed()
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert quiet < 4 * beside_others

"""The demo's training, whole: thirty TRB steps on the micro pair and the real server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.records import METRICS_FILE, read_rows

ROOT = Path(__file__).resolve().parents[2]
SCORE = "eval/micro/pass_at_1"


@pytest.mark.timeout(900)
def test_thirty_trb_steps_raise_pass_at_1_beyond_the_interval_of_the_start(tmp_path):
    """512 problems; from about .26 to about .95, some twenty times the standard error."""
    command = [sys.executable, "-m", "examples.micro.demo", "--out", str(tmp_path)]
    command += ["evaluation.every=30", "rollouts.prompts_per_step=32"]  # half of the demo's, for the time
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = read_rows(tmp_path / "micro-trb" / METRICS_FILE)
    before, after = rows[0], rows[-1]
    assert after["step"] == 30
    assert after[f"{SCORE}_low"] > before[f"{SCORE}_high"]
    assert all(row["drift/mean_abs"] < 1e-3 for row in rows[1:])
    assert all(row["rollout/mean_kl"] <= row["rollout/epsilon"] * (1 + 1e-4) for row in rows[1:])
    assert "before" in done.stdout and "after" in done.stdout
    assert (tmp_path / "training" / "index.html").stat().st_size > 10_000

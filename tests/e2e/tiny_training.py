"""Trainings of the tiny pair: their configuration, starting them, and what any of them must leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.pairs import Pair
from trainer.records import METRICS_FILE, curve, read_rows
from trainer.rollouts.journal import StepJournal

ROOT = Path(__file__).resolve().parents[2]
STEPS, PROMPTS, SAMPLES = 4, 3, 2
ADMIN_KEY = "the-admin-key-of-these-tests"
PREFERRED = {"top_p": 0.5, "top_k": 4, "repetition_penalty": 1.5, "stop": ["e"], "logit_bias": {"7": 5.0}}
"""What the server does where a request says nothing. A trainer's requests say everything, so nothing of it shows."""


def write_config(folder: Path, pair: Pair, server: str) -> Path:
    """The path of a configuration that trains the tiny pair in ``folder/runs/tiny``."""
    problems = folder / "problems.jsonl"
    lines = (json.dumps({"question": f"what is {i} + {i}", "answer": str(2 * i)}) + "\n" for i in range(20))
    problems.write_text("".join(lines))
    values = {
        "name": "tiny",
        "folder": str(folder / "runs"),
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
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def train(config: Path, *overrides: str, where: str = "none", count: int = 0) -> subprocess.CompletedProcess:
    module = ["-m", "tests.e2e.killable_training", where, str(count)]
    return end_of([sys.executable, *module, "--config", str(config), *overrides])


def end_of(
    command: list[str], variables: dict[str, str] | None = None, seconds: float = 200
) -> subprocess.CompletedProcess:
    variables = environment() | (variables or {})
    return subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=seconds, check=False
    )


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def curve_of(config: Path) -> str:
    return json.dumps(curve(read_rows(config.parent / "runs" / "tiny" / METRICS_FILE)))


def check_each_prompt_once(run: Path, steps: int = STEPS) -> None:
    trained = []
    for step in range(steps):
        with StepJournal(run / "journal" / f"step-{step:06d}.rollouts") as journal:
            trained += [(r.key.prompt, r.key.sample) for r in journal.rollouts()]
            assert {r.key.step for r in journal.rollouts()} == {step}
    assert trained == [(prompt, sample) for prompt in range(steps * PROMPTS) for sample in range(SAMPLES)]

"""The plan of a run: Qwen3-1.7B by hand, and what --dry-run prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.cli.train import run
from trainer.config_file import load_config
from trainer.plan import journal_bytes, training_memory

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "examples" / "paper" / "trb-1.7b-8b.yaml"


@pytest.mark.parametrize(("stage", "processes", "divisors"), [(1, 4, (1, 1, 4)), (2, 4, (1, 4, 4)), (3, 4, (4, 4, 4))])
def test_memory_of_qwen3_1_7b(stage, processes, divisors):
    memory = training_memory(load_config(PAPER, [f"optimisation.zero_stage={stage}"]), processes)
    parameters = 1_720_574_976  # of Qwen3-1.7B, embeddings tied
    whole = (2 * parameters, 6 * parameters, 12 * parameters)
    want = [size // divisor for size, divisor in zip(whole, divisors, strict=True)]
    assert [memory.weights, memory.gradients, memory.optimiser] == want
    assert memory.head == 4 * 151_936 * (3 * 1024 + 2048)


def test_statistics_of_a_token():
    config = load_config(PAPER)
    assert journal_bytes(config.sampling(0)[0].returned) == 4 + 7 * 4 + 16 * 12
    config = load_config(PAPER, ["loss={name: entropy_aware}"])
    assert journal_bytes(config.sampling(0)[0].returned) == 4 + 7 * 4 + 2 * 16 * 12


def test_dry_run_prints_the_plan_and_the_configuration(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert run(["--config", "examples/micro/trb.yaml", "--dry-run", "steps=8"]) == 0
    printed = capsys.readouterr().out
    assert "8 updates, each of 256 rollouts" in printed and "epsilon 0.09" in printed
    assert "GiB (weights" in printed and "max_grad_norm: 1.0" in printed

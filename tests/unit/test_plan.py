"""The plan of a run: Qwen3-1.7B by hand, and what --dry-run prints."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sglang_trb.cli.main import main
from tests.pairs import build_pair
from trainer.cli.train import run
from trainer.config.file import load_config
from trainer.run.plan import forward_tokens, journal_bytes, training_memory

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


def test_dry_run_refuses_a_student_that_could_not_be_pushed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    student = shutil.copytree(build_pair("plain").student, tmp_path / "student")
    command = ["train", "--config", "examples/micro/trb.yaml", "--dry-run", f"models.student={student}"]
    assert main(command) == 0
    assert f"# student: {student}, 25 tensors" in capsys.readouterr().out
    weights = load_file(student / "model.safetensors")
    renamed = {name.replace("mlp.down_proj", "mlp.experts.down_proj"): w for name, w in weights.items()}
    save_file(renamed, student / "model.safetensors")
    assert main(command) == 1
    assert "model.layers.0.mlp.down_proj.weight, which its files do not hold" in capsys.readouterr().err
    (student / "model.safetensors").rename(student / "pytorch_model.bin")
    for refused in (command, ["evaluate", *command[1:3], command[-1], "--step", "0"]):
        assert main(refused) == 1
        assert "it has pytorch_model.bin" in capsys.readouterr().err


def test_a_forward_of_a_number_of_tokens():
    assert forward_tokens(load_config(PAPER)) == 2 * 8192
    assert forward_tokens(load_config(PAPER, ["optimisation.micro_batch_tokens=9000"])) == 9000


def test_dry_run_prints_the_plan_and_the_configuration(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert run(["--config", "examples/micro/trb.yaml", "--dry-run", "steps=8"]) == 0
    printed = capsys.readouterr().out
    assert "8 updates, each of 256 rollouts" in printed and "epsilon 0.09" in printed
    assert "a forward, with padding at most 70,144\n" in printed, "64 sequences of 1,024 + 72"
    assert "GiB (weights" in printed and "max_grad_norm: 1.0" in printed

"""A student with experts: transformers computes with all of a layer as one tensor, SGLang reads them one by one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from tests.e2e.test_training import ROOT, train, write_config
from tests.pairs import Pair, build_pair
from trainer.records import METRICS_FILE, read_rows


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    tiny = build_pair("plain")
    student = Path(shutil.copytree(tiny.student, tmp_path / "student"))
    (student / "model.safetensors").unlink()
    known = ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "eos_token_id")
    shared = {key: value for key, value in json.loads((student / "config.json").read_text()).items() if key in known}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen3MoeConfig(**shared, **experts, num_hidden_layers=2))
    with torch.no_grad():
        for parameter in model.parameters():  # as initialised, all laws would be flat
            parameter.mul_(20.0 if parameter.dim() > 1 else 1.0)
    model.save_pretrained(student)
    return Pair(student, tiny.teacher)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "route"), [(0, "disk"), (3, "tensor")])
def test_experts_are_trained_and_pushed(pair: Pair, tmp_path: Path, stage: int, route: str) -> None:
    config = write_config(tmp_path, pair, "")
    launch = f"server.launch={ROOT / 'server_configs' / 'cpu-tiny.yaml'}"
    options = ["steps=2", "evaluation.every=0", f"optimisation.zero_stage={stage}", f"push.route={route}"]
    done = train(config, "server.urls=[]", launch, *options)
    assert done.returncode == 0, done.stderr + done.stdout
    run = tmp_path / "runs" / "tiny"
    rows = read_rows(run / METRICS_FILE)
    assert len(rows) == 2 and all(row["drift/mean_abs"] < 1e-4 for row in rows), "before and after an update"
    before = load_file(pair.student / "model.safetensors")
    after = load_file(run / "checkpoints" / "step-000002" / "student" / "model.safetensors")
    expert = "model.layers.1.mlp.experts.3.up_proj.weight"
    assert after.keys() == before.keys() and not torch.equal(after[expert], before[expert])

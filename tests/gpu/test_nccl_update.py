"""The distributed weight route over NCCL: the trainer on one GPU, the server on another."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.pairs import build_pair
from tests.server.harness import ADMIN_KEY, serve
from tests.server.test_weights import checksums
from tests.server.trainer_side import Group, session

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs: NCCL refuses two ranks on one"),
]


def test_pushed_weights_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    pair = build_pair("wide")
    trained = tmp_path / "student"
    shutil.copytree(pair.student, trained)
    weights = {name: w * 1.01 for name, w in load_file(pair.student / "model.safetensors").items()}
    save_file(weights, trained / "model.safetensors", metadata={"format": "pt"})
    last_gpu = str(torch.cuda.device_count() - 1)
    options = {"device": "cuda", "dtype": "bfloat16", "attention_backend": "triton", "admin_api_key": ADMIN_KEY}
    options["start_seconds"] = 600  # the first start on a machine compiles kernels
    torch.cuda.set_device(0)
    with serve(pair.student, pair.teacher, os.environ | {"CUDA_VISIBLE_DEVICES": last_gpu}, **options) as server:
        teacher = checksums(server, "draft")
        with Group(server, "nccl") as group:
            assert session(server, "begin").status_code == 200
            assert group.push(weights, "nccl-1").status_code == 200
            assert session(server, "end").status_code == 200
        pushed = checksums(server, "target")
        body = {"model_path": str(trained), "weight_version": "disk-1"}
        assert server.post("/update_weights_from_disk", body, admin=True).status_code == 200
        assert checksums(server, "target") == pushed
        assert checksums(server, "draft") == teacher

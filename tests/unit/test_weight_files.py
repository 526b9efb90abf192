"""Checks of checkpoints on disk before they are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sglang_trb.weight_files import check_checkpoint, check_tensors, read_layout

WEIGHTS = {"a.weight": torch.zeros(4, 3), "b.bias": torch.zeros(5, dtype=torch.bfloat16)}


@pytest.fixture
def served(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    folder.mkdir()
    save_file(WEIGHTS, folder / "model.safetensors")
    return folder


def checkpoint(tmp_path: Path, weights: dict[str, torch.Tensor]) -> Path:
    folder = tmp_path / "new"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    return folder


def test_layout(served: Path) -> None:
    assert read_layout(served) == {"a.weight": ("F32", (4, 3)), "b.bias": ("BF16", (5,))}


def test_a_retrained_checkpoint_passes(tmp_path: Path, served: Path) -> None:
    new = checkpoint(tmp_path, {name: w + 1 for name, w in WEIGHTS.items()} | {"lm_head.weight": torch.zeros(2)})
    assert check_checkpoint(str(new), str(served)) is None


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a.weight": torch.zeros(4, 3)}, "b.bias is missing"),
        (WEIGHTS | {"c.weight": torch.zeros(1)}, "c.weight is not a tensor"),
        (WEIGHTS | {"a.weight": torch.zeros(4, 4)}, r"a.weight has shape \[4, 4\], the served model's is \[4, 3\]"),
    ],
)
def test_another_models_checkpoint_is_named(tmp_path: Path, served: Path, weights: dict, message: str) -> None:
    import re

    problem = check_checkpoint(str(checkpoint(tmp_path, weights)), str(served))
    assert problem is not None
    assert re.search(message, problem)


def test_damaged_files_are_named(tmp_path: Path, served: Path) -> None:
    new = checkpoint(tmp_path, WEIGHTS)
    file = new / "model.safetensors"
    whole = file.read_bytes()
    for damaged, message in ((whole[:-1], "incomplete"), (b"12", "not a safetensors file"), (b"\xff" * 20, "not a")):
        file.write_bytes(damaged)
        assert message in (check_checkpoint(str(new), str(served)) or "")
    file.unlink()
    assert "no .safetensors" in (check_checkpoint(str(new), str(served)) or "")
    assert "not a folder" in (check_checkpoint(str(tmp_path / "nowhere"), str(served)) or "")


def test_a_missing_shard_is_named(tmp_path: Path, served: Path) -> None:
    new = checkpoint(tmp_path, WEIGHTS)
    index = {"weight_map": {"a.weight": "model.safetensors", "b.bias": "model-2.safetensors"}}
    (new / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-2.safetensors" in (check_checkpoint(str(new), str(served)) or "")


def test_tensors_of_an_unknown_served_folder_pass(tmp_path: Path) -> None:
    assert check_tensors([("anything", (1,))], str(tmp_path)) is None

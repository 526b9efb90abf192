"""Checks of a checkpoint's files on disk: which they are, and whether they are whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sglang_trb.checkpoints.weight_files import INDEX, read_layout, require_weights
from sglang_trb.errors import InvalidParameter
from tests.pairs import shard

WEIGHTS = {"a.weight": torch.zeros(4, 3), "b.bias": torch.zeros(5, dtype=torch.bfloat16)}
WHAT = {"a.weight": ("F32", (4, 3)), "b.bias": ("BF16", (5,))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    return tmp_path


def what(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in read_layout(folder).items()}


def test_the_files_are_the_index_s_or_model_safetensors(folder: Path) -> None:
    assert what(folder) == WHAT
    save_file({"other.name": torch.zeros(2)}, folder / "consolidated.safetensors")
    assert what(folder) == WHAT, "SGLang passes over it"
    (folder / "consolidated.safetensors").unlink()
    shard(folder)
    assert what(folder) == WHAT
    save_file({"other.name": torch.zeros(2)}, folder / "adapter_model.safetensors")
    assert what(folder) == WHAT, "named by no index"
    stored = read_layout(folder)["b.bias"]
    assert (stored.file.name, stored.size) == ("model-00002-of-00002.safetensors", 10)


def test_two_sets_of_files_are_refused(folder: Path) -> None:
    save_file(WEIGHTS, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="holds adapter_model.safetensors beside model.safetensors"):
        read_layout(folder)
    (folder / "adapter_model.safetensors").unlink()
    shard(folder)
    (folder / "consolidated.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(ValueError, match="holds model.safetensors and an index of other files"):
        read_layout(folder)


def test_damaged_files_are_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for damaged, message in ((whole[:-1], "incomplete"), (b"12", "not a safetensors file"), (b"\xff" * 20, "not a")):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"model.safetensors .*{message}"):
            read_layout(folder)
    with pytest.raises(ValueError, match="is not a folder"):
        read_layout(folder / "nowhere")


def test_an_index_that_its_files_do_not_keep_is_named(folder: Path) -> None:
    for weight_map, message in (
        ({"a.weight": "model.safetensors", "b.bias": "model-2.safetensors"}, "lacks model-2.safetensors"),
        ({"a.weight": "model.safetensors", "c.bias": "model.safetensors"}, "model.safetensors lacks c.bias"),
        ({}, "lacks the tensors"),
        ([], "is not an index"),
    ):
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ValueError, match=message):
            read_layout(folder)


def test_other_formats_are_refused_with_the_remedy(folder: Path) -> None:
    assert require_weights("models.student", folder) == folder
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InvalidParameter, match=r"^models.student: .*; it has pytorch_model.bin; .*save_pretrained"):
        require_weights("models.student", folder)

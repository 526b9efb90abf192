"""What new weights of a model must bring, may bring and cannot bring, and the hub's cache that they may come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sglang_trb.checkpoints import model_tensors
from sglang_trb.checkpoints.folder import checkpoint_folder
from sglang_trb.checkpoints.model_tensors import ModelTensors, check_checkpoint, check_tensors
from sglang_trb.errors import InvalidParameter
from tests.pairs import build_pair, hub_cache, shard

HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"
MTP = "mtp.norm.weight"


@pytest.fixture
def served(tmp_path: Path) -> Path:
    return Path(shutil.copytree(build_pair("plain").student, tmp_path / "served"))


@pytest.fixture
def weights(served: Path) -> dict[str, torch.Tensor]:
    return load_file(served / "model.safetensors")


def configure(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def checkpoint(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    return folder


def test_extra_files_and_buffers_are_not_the_models(served: Path, weights: dict, tmp_path: Path) -> None:
    shard(served, **{INV_FREQ: torch.zeros(8), MTP: torch.zeros(4)})
    tensors = ModelTensors.of(served)
    assert tensors.problem is None and tensors.required.keys() == weights.keys()
    assert tensors.optional == {MTP: (4,)}
    assert check_checkpoint(checkpoint(tmp_path / "new", weights), str(served)) is None
    with_buffers = weights | {"model.rotary_emb.inv_freq": torch.zeros(3), MTP: torch.zeros(4)}
    assert check_checkpoint(checkpoint(tmp_path / "new", with_buffers), str(served)) is None
    assert check_tensors([(INV_FREQ, (1,))], str(served)) is None


def test_another_models_checkpoint_is_named(served: Path, weights: dict, tmp_path: Path) -> None:
    norm = "model.norm.weight"
    for changes, message in (
        ({norm: None}, f"{norm} is missing"),
        ({HEAD: None}, f"{HEAD} is missing"),
        ({"c.weight": torch.zeros(1)}, "c.weight is not a tensor"),
        ({norm: torch.zeros(4, 4)}, f"{norm} has shape [4, 4], the served model's is [64]"),
    ):
        new = {name: tensor for name, tensor in (weights | changes).items() if tensor is not None}
        assert message in (check_checkpoint(checkpoint(tmp_path / "new", new), str(served)) or "")


def test_a_tied_head_may_be_there_or_not(served: Path, weights: dict, tmp_path: Path) -> None:
    configure(served, tie_word_embeddings=True)
    tied = {name: tensor for name, tensor in weights.items() if name != HEAD}
    for of_served in (weights, tied):
        checkpoint(served, of_served)
        model_tensors._served.cache_clear()
        assert ModelTensors.of(served).required.keys() == tied.keys()
        for new in (weights, tied):
            assert check_checkpoint(checkpoint(tmp_path / "new", new), str(served)) is None
        assert check_tensors([(HEAD, (3, 3))], str(served)) is not None


@pytest.mark.parametrize("unknown", [{"model_type": "no-such-model"}, {"quantization_config": {"quant_method": "fp8"}}])
def test_what_transformers_cannot_build_has_what_its_files_hold(served: Path, weights: dict, unknown: dict) -> None:
    shard(served, **{MTP: torch.zeros(4), INV_FREQ: torch.zeros(4)})
    configure(served, **unknown)
    tensors = ModelTensors.of(served)
    assert next(iter(unknown)) in (tensors.problem or "")
    assert tensors.required.keys() == weights.keys() | {MTP} and not tensors.optional


def test_a_served_model_without_files_here_passes_everything(served: Path) -> None:
    (served / "model.safetensors").unlink()
    assert check_tensors([("anything", (1,))], str(served)) is None


def test_an_id_of_the_hub_is_its_snapshot(served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi, constants
    from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub_cache(tmp_path / "hub", "some/student", served)))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = checkpoint_folder("some/student")
    assert folder.is_relative_to(tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "repo_info", lambda *_, **__: pytest.fail("the hub was asked"))
    assert checkpoint_folder("some/student", download=False) == folder
    listed = dict.fromkeys(("config.json", "never-fetched.json"), TreeCacheEntry(size=1, blob_id="0" * 40))
    write_tree_cache(str(folder.parents[1]), folder.name, listed)
    assert checkpoint_folder("some/student", download=False) == folder, "what is missing, its reader names"
    assert check_checkpoint(served, "some/student") is None
    assert "not a tensor" in (check_tensors([("c", (1,))], "some/student") or "")
    with pytest.raises(InvalidParameter, match="'some/other'; allowed: a checkpoint folder, or a Hugging Face id"):
        checkpoint_folder("some/other", download=False)

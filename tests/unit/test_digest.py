"""A copy of a checkpoint has its digest, wherever and however it lies; another model has not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sglang_trb.checkpoints.digest import ModelDigest
from tests.pairs import build_pair, hub_cache, shard
from trainer.rollouts.teacher import ExpectedTeacher, OtherTeacher


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return Path(shutil.copytree(build_pair("plain").teacher, tmp_path / "copy"))


def test_copies_are_equal(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    digest = ModelDigest.of(build_pair("plain").teacher)
    assert None not in (digest.config, digest.weights)
    shard(teacher)
    config = json.loads((teacher / "config.json").read_text()) | {"transformers_version": "6"}
    (teacher / "config.json").write_text(json.dumps(dict(reversed(config.items()))))
    assert ModelDigest.of(str(teacher)) == digest
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub_cache(tmp_path / "hub", "some/teacher", teacher)))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert ModelDigest.of("some/teacher") == digest
    assert ModelDigest.of("some/other") == ModelDigest(None, None)
    assert ModelDigest.from_wire(json.loads(json.dumps(digest.to_wire()))) == digest


@pytest.mark.parametrize("change", ["last element", "name", "shape", "config"])
def test_another_teacher_is_named(teacher: Path, change: str) -> None:
    weights = load_file(teacher / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    if change == "last element":
        weights[name][-1, -1] += 1
    elif change == "name":
        weights["other"] = weights.pop(name)
    elif change == "shape":
        weights[name] = weights[name].T.contiguous()
    save_file(weights, teacher / "model.safetensors")
    if change == "config":
        config = json.loads((teacher / "config.json").read_text()) | {"rope_theta": 5.0}
        (teacher / "config.json").write_text(json.dumps(config))
    notes: list[str] = []
    expected = ExpectedTeacher(str(build_pair("plain").teacher), notes.append)
    part = "config" if change == "config" else "weights"
    with pytest.raises(OtherTeacher, match=rf"got '{teacher}', which differs from models.teacher in its {part}"):
        expected.check("http://a", served(teacher))
    expected.check("http://a", served(Path(shutil.copytree(build_pair("plain").teacher, teacher / "again"))))
    assert not notes


def test_without_its_weights_here_the_configuration_is_compared(teacher: Path) -> None:
    whole = served(teacher)
    (teacher / "model.safetensors").unlink()
    notes: list[str] = []
    expected = ExpectedTeacher(str(teacher), notes.append)
    assert "config.json alone" in notes[0]
    expected.check("http://a", whole)
    with pytest.raises(OtherTeacher, match="in its config"):
        expected.check("http://a", served(build_pair("plain").student))


def served(teacher: Path) -> dict:
    return {"teacher": str(teacher), "teacher_digest": ModelDigest.of(teacher).to_wire()}

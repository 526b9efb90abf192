"""A changed byte of a model is found, wherever it is; an untouched model has one hash."""

from __future__ import annotations

import pytest
import torch

from sglang_trb.engine.worker import seal
from sglang_trb.engine.worker.seal import Seal


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, "PIECE_BYTES", 24)


def model(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 7), torch.nn.BatchNorm1d(7)).to(dtype)
    return module.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_changed_byte_is_found(dtype: torch.dtype) -> None:
    module = model(dtype)
    sealed = Seal(module)
    assert (sealed.broken(), len(sealed.hash), Seal(model(dtype)).hash) == (None, 64, sealed.hash)
    for name, tensor in module.state_dict().items():
        data = tensor.reshape(-1).view(torch.uint8)
        for index in range(len(data)):
            for bit in (0, 7):
                data[index] ^= 1 << bit
                assert sealed.broken() == name
                data[index] ^= 1 << bit
    assert sealed.broken() is None


def test_swapped_words_are_found() -> None:
    module = model()
    sealed = Seal(module)
    weight = module.state_dict()["0.weight"].reshape(-1)
    weight[:4] = weight[[2, 3, 0, 1]].clone()
    assert sealed.broken() == "0.weight"


def test_a_few_pieces_at_a_time_come_round() -> None:
    module = model()
    sealed = Seal(module)
    module.state_dict()["1.weight"][-1] += 1
    for limit in (1, 50):
        found = [sealed.broken(limit) for _ in range(20)]
        assert 1 <= found.count("1.weight") < 20
        assert set(found) == {None, "1.weight"}
    assert sealed.broken(2**20) == "1.weight", "all of it"


def test_a_tensor_that_is_gone_is_found() -> None:
    module = model()
    sealed = Seal(module)
    module[0].bias = None
    assert sealed.broken() == "0.bias"

"""The CPU platform: when it is active, its paged allocator, and the torchvision shim."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from sglang_trb.engine.cpu import platform as cpu_platform
from sglang_trb.engine.cpu.allocator import TorchPagedAllocator


def allocator(page_size, pages):
    return TorchPagedAllocator(
        pages * page_size, page_size, dtype=torch.float32, device="cpu", kvcache=SimpleNamespace(), need_sort=False
    )


def extend(pool, slots, lengths):
    """Grow request i from ``len(slots[i])`` to ``lengths[i]`` tokens, as SGLang's scheduler does."""
    old, new = torch.tensor([len(s) for s in slots]), torch.tensor(lengths)
    last = torch.tensor([s[-1] if s else -1 for s in slots])
    given = pool.alloc_extend(old, old, new, new, last, int((new - old).sum()))
    if given is not None:
        for request, part in zip(slots, given.split((new - old).tolist()), strict=True):
            request += part.tolist()
    return given


def decode(pool, slots):
    new = torch.tensor([len(s) + 1 for s in slots])
    given = pool.alloc_decode(new, new, torch.tensor([s[-1] for s in slots]))
    if given is not None:
        for request, slot in zip(slots, given.tolist(), strict=True):
            request.append(slot)
    return given


def assert_paged(slots, page_size):
    """Position t of a request lies at t mod page_size of a page, and no page holds two requests or 0, the dummy."""
    owners = {}
    for i, request in enumerate(slots):
        for t, slot in enumerate(request):
            assert slot % page_size == t % page_size
            assert owners.setdefault(slot // page_size, (i, t // page_size)) == (i, t // page_size)
    assert 0 not in owners


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_allocations_keep_pages_whole_and_apart(page_size):
    generator = torch.Generator().manual_seed(page_size)
    pool = allocator(page_size, pages=400)
    slots = [[] for _ in range(5)]
    for _ in range(6):
        grow = torch.randint(1, 23, (len(slots),), generator=generator).tolist()
        assert extend(pool, slots, [len(s) + g for s, g in zip(slots, grow, strict=True)]) is not None
        for _ in range(3):
            assert decode(pool, slots) is not None
    assert_paged(slots, page_size)
    used = sum(-(-len(s) // page_size) for s in slots)
    assert pool.available_size() == (400 - used) * page_size
    pool.free(torch.tensor([slot for request in slots for slot in request]))
    assert pool.available_size() == 400 * page_size


def test_short_pool_gives_nothing_and_takes_nothing():
    pool, slots = allocator(page_size=4, pages=3), [[], []]
    assert extend(pool, slots, [4, 8]) is not None
    assert pool.available_size() == 0
    assert decode(pool, slots) is None  # both need a page
    assert extend(pool, slots, [5, 8]) is None
    assert pool.available_size() == 0
    assert [len(s) for s in slots] == [4, 8]


def test_inactive_beside_an_accelerator_and_beside_sglangs_own_cpu_engine(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert cpu_platform.activate() == "sglang_trb.engine.cpu.platform:PlainCpuPlatform"
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert cpu_platform.activate() is None
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert cpu_platform.activate() is None


@pytest.mark.skipif(torch.accelerator.is_available(), reason="SGLang takes the accelerator's platform")
def test_sglang_takes_the_platform_in_a_fresh_process():
    check = (
        "import sys; assert 'torch' not in sys.modules\n"  # the start-up file must stay cheap
        "from sglang.srt.platforms import current_platform as p\n"
        "assert type(p).__name__ == 'PlainCpuPlatform', p\n"
        "assert p.is_out_of_tree() and p.get_dispatch_key_name() == 'native' and not p.is_pin_memory_available()\n"
        "import torchvision; from transformers.image_utils import load_image\n"
    )
    environment = os.environ | {"SGLANG_USE_CPU_ENGINE": "0"}
    done = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

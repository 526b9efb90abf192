"""The chunked head against all logits at once, in float64, aligned by `align_eos`."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from sglang_trb import align_eos
from sglang_trb.blend.types import StopAlignment
from trainer.log_probs import Vocabulary, gathered_log_probs

SIZE, HIDDEN, ROWS = 40, 8, 11
ALIGNMENTS = {
    "one stop": StopAlignment((3,), (3,), 3),
    "moved": StopAlignment((3,), (5,), 3),
    "several": StopAlignment((3, 7), (5, 7, 9), 7),
}


def inputs(seed=0, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator, dtype=torch.float64) * scale
    weight = torch.randn(SIZE + 4, HIDDEN, generator=generator, dtype=torch.float64)  # four rows of padding
    ids = torch.stack([torch.randperm(SIZE, generator=generator)[:16] for _ in range(ROWS)])
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), ids


def naive(hidden, weight, ids, alignment):
    logits = (hidden.double() @ weight.double().t())[:, :SIZE]
    options = {"canonical_id": alignment.canonical_id, "masked_ids": alignment.masked_ids}
    log_probs = align_eos(logits.log_softmax(1), own_ids=alignment.student_ids, **options)
    entropy = torch.special.entr(log_probs.exp()).sum(1)
    return log_probs.gather(1, ids), entropy


@pytest.mark.parametrize("name", ALIGNMENTS)
@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_values_and_gradients_are_those_of_all_logits_at_once(name, chunk, dtype, tolerance):
    alignment = ALIGNMENTS[name]
    hidden, weight, ids = inputs(dtype=dtype)
    log_probs, entropy = gathered_log_probs(hidden, weight, ids, Vocabulary(SIZE, alignment), chunk)
    want, want_entropy = naive(hidden, weight, ids, alignment)
    on = want.isfinite()
    assert torch.equal(log_probs.isfinite(), on) and not entropy.requires_grad
    assert (~on).any() == bool(alignment.masked_ids)
    torch.testing.assert_close(log_probs[on].double(), want[on], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(entropy.double(), want_entropy, rtol=tolerance, atol=tolerance)

    upstream = torch.randn(int(on.sum()), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = torch.autograd.grad((log_probs[on] * upstream.to(dtype)).sum(), (hidden, weight))
    expected = torch.autograd.grad((want[on] * upstream).sum(), (hidden, weight))
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=100 * tolerance, atol=100 * tolerance)
    assert got[1][SIZE:].count_nonzero() == 0, "padding rows get no gradient"


def test_gradients_are_those_of_finite_differences():
    hidden, weight, ids = inputs()
    ids[:, 0] = 7  # the canonical id, whose event has two ids
    vocabulary = Vocabulary(SIZE, ALIGNMENTS["several"])

    def allowed(hidden, weight):
        log_probs, _ = gathered_log_probs(hidden, weight, ids, vocabulary, 3)
        return log_probs[~torch.isin(ids, torch.tensor([3, 5, 9]))]

    assert torch.autograd.gradcheck(allowed, (hidden, weight))


def test_masked_ids_poison_nothing():
    hidden, weight, ids = inputs(dtype=torch.float32)
    ids[:, 0] = 5
    log_probs, _ = gathered_log_probs(hidden, weight, ids, Vocabulary(SIZE, ALIGNMENTS["moved"]))
    log_probs.exp().sum().backward()
    assert log_probs[:, 0].isneginf().all()
    assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e-3, 50.0])
def test_flat_and_peaked_rows(scale):
    hidden, weight, ids = inputs(dtype=torch.float32, scale=scale)
    log_probs, entropy = gathered_log_probs(hidden, weight, ids, Vocabulary(SIZE, ALIGNMENTS["one stop"]))
    want, want_entropy = naive(hidden, weight, ids, ALIGNMENTS["one stop"])
    # float32 logits of size L have errors of L * 2^-23 a term; L is some 50 * 8 here.
    torch.testing.assert_close(log_probs.double(), want, rtol=1e-5, atol=1e-6 * max(scale, 1) * 10)
    torch.testing.assert_close(entropy.double(), want_entropy, rtol=1e-4, atol=1e-5 * max(scale, 1))


def test_no_positions_at_all():
    hidden, weight, ids = inputs(dtype=torch.float32)
    log_probs, entropy = gathered_log_probs(hidden[:0], weight, ids[:0], Vocabulary(SIZE, ALIGNMENTS["moved"]))
    assert log_probs.shape == (0, 16) and entropy.shape == (0,)
    log_probs.sum().backward()
    assert weight.grad.count_nonzero() == 0


def test_memory_of_a_long_response_over_a_large_vocabulary():
    """7,168 × 151,936 logits would take 4.1 GiB; the issue allows 1 GiB over the weights, with their gradient."""
    out = subprocess.run([sys.executable, "-c", _LONG], check=True, capture_output=True, text=True)
    assert float(out.stdout) < 1.0, f"{out.stdout} GiB"


_LONG = """
import resource, torch
from sglang_trb.blend.types import StopAlignment
from trainer.log_probs import Vocabulary, gathered_log_probs
tokens, size, hidden_size = 512, 151_936, 128
torch.set_num_threads(1)
hidden = torch.randn(7168, hidden_size, requires_grad=True)
weight = torch.randn(size, hidden_size, requires_grad=True)
ids = torch.randint(0, size, (7168, 17))
weight.grad, hidden.grad = torch.zeros_like(weight), torch.zeros_like(hidden)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
# Two chunks have the peak of all of them; the rest would only take time.
log_probs, _ = gathered_log_probs(hidden[:tokens], weight, ids[:tokens], Vocabulary(size, StopAlignment((3,), (5,), 3)))
log_probs.sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""

"""The chunked head against all logits at once, in float64, aligned by `align_eos`."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from sglang_trb import align_eos
from sglang_trb.pair.alignment import StopAlignment
from sglang_trb.pair.pair import Pair
from trainer.learner.log_probs import gathered_log_probs

SIZE, HIDDEN, ROWS = 40, 8, 11
ALIGNMENTS = {
    "one stop": StopAlignment((3,), (3,), 3),
    "moved": StopAlignment((3,), (5,), 3),
    "several": StopAlignment((3, 7), (5, 7, 9), 7),
}


def pair_of(alignment):
    return Pair("student", "teacher", SIZE, alignment)


def inputs(seed=0, dtype=torch.float64, scale=1.0, rows=ROWS, hidden_size=HIDDEN, asked=16):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, hidden_size, generator=generator, dtype=torch.float64) * scale
    weight = torch.randn(SIZE + 4, hidden_size, generator=generator, dtype=torch.float64)  # four rows of padding
    ids = torch.stack([torch.randperm(SIZE, generator=generator)[:asked] for _ in range(rows)])
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
    log_probs, entropy = gathered_log_probs(hidden, weight, ids, pair_of(alignment), chunk)
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
    hidden, weight, ids = inputs(rows=3, hidden_size=2, asked=3)
    ids[:, 0] = 7  # the canonical id, whose event has two ids
    vocabulary = Pair("student", "teacher", SIZE, ALIGNMENTS["several"])

    def allowed(hidden, weight):
        log_probs, _ = gathered_log_probs(hidden, weight, ids, vocabulary, 2)
        return log_probs[~torch.isin(ids, torch.tensor([3, 5, 9]))]

    assert torch.autograd.gradcheck(allowed, (hidden, weight))


@pytest.mark.parametrize("upstream", [1.0, float("nan"), float("-inf")])
def test_ids_without_probability_poison_nothing(upstream):
    hidden, weight, ids = inputs()
    ids[ids == 5], ids[:, 0], ids[:, 1] = 6, 5, SIZE + 1  # masked; beyond the vocabulary
    log_probs, _ = gathered_log_probs(hidden, weight, ids, pair_of(ALIGNMENTS["moved"]))
    assert log_probs[:, :2].isneginf().all() and log_probs[:, 2:].isfinite().all()
    gradient = torch.ones_like(log_probs)
    gradient[:, :2] = upstream
    got = torch.autograd.grad(log_probs, (hidden, weight), gradient, retain_graph=True)
    want = torch.autograd.grad(log_probs[:, 2:].sum(), (hidden, weight))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, want, strict=True))


def test_bfloat16_weights_have_float32_logits():
    hidden, weight, ids = inputs(dtype=torch.bfloat16)
    alignment = ALIGNMENTS["several"]
    log_probs, entropy = gathered_log_probs(hidden, weight, ids, pair_of(alignment), 4)
    want, want_entropy = naive(hidden, weight, ids, alignment)
    on = want.isfinite()
    assert log_probs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(log_probs[on].double(), want[on], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), want_entropy, rtol=1e-5, atol=1e-5)
    upstream = torch.linspace(-1, 1, int(on.sum()))
    got = torch.autograd.grad((log_probs[on] * upstream).sum(), (hidden, weight))
    expected = torch.autograd.grad((want[on] * upstream).sum(), (hidden, weight))
    for ours, theirs in zip(got, expected, strict=True):
        # bfloat16 rounds by 2^-9 at most: the result, and for hidden states the gradient of the logits before that.
        assert ours.dtype == torch.bfloat16
        assert (ours - theirs).norm() < 2 * 2**-9 * theirs.norm()


def test_positions_without_ids_are_noticed():
    hidden, weight, ids = inputs()
    with pytest.raises(AssertionError, match="11 positions, ids for 1"):
        gathered_log_probs(hidden, weight, ids[:1], pair_of(ALIGNMENTS["moved"]))


@pytest.mark.parametrize("scale", [1e-3, 50.0])
def test_flat_and_peaked_rows(scale):
    hidden, weight, ids = inputs(dtype=torch.float32, scale=scale)
    log_probs, entropy = gathered_log_probs(
        hidden, weight, ids, Pair("student", "teacher", SIZE, ALIGNMENTS["one stop"])
    )
    want, want_entropy = naive(hidden, weight, ids, ALIGNMENTS["one stop"])
    # float32 logits of size L have errors of L * 2^-23 a term; L is some 50 * 8 here.
    torch.testing.assert_close(log_probs.double(), want, rtol=1e-5, atol=1e-6 * max(scale, 1) * 10)
    torch.testing.assert_close(entropy.double(), want_entropy, rtol=1e-4, atol=1e-5 * max(scale, 1))


def test_no_positions_at_all():
    hidden, weight, ids = inputs(dtype=torch.float32)
    log_probs, entropy = gathered_log_probs(
        hidden[:0], weight, ids[:0], Pair("student", "teacher", SIZE, ALIGNMENTS["moved"])
    )
    assert log_probs.shape == (0, 16) and entropy.shape == (0,)
    log_probs.sum().backward()
    assert weight.grad.count_nonzero() == 0


@pytest.mark.parametrize("tokens", [512, pytest.param(7168, marks=pytest.mark.slow)])
def test_memory_of_a_long_response_over_a_large_vocabulary(tokens):
    """7,168 × 151,936 logits would take 4.1 GiB; allowed is 1 GiB over the weights with their gradient.

    Two chunks have the peak of all of them.
    """
    out = subprocess.run([sys.executable, "-c", _LONG, str(tokens)], check=True, capture_output=True, text=True)
    assert float(out.stdout) < 1.0, f"{out.stdout} GiB"


_LONG = """
import resource, sys, torch
from sglang_trb.pair.alignment import StopAlignment
from trainer.learner.log_probs import gathered_log_probs
from sglang_trb.pair.pair import Pair
tokens, size, hidden_size = int(sys.argv[1]), 151_936, 128
torch.set_num_threads(1)
hidden = torch.randn(tokens, hidden_size, requires_grad=True)
weight = torch.randn(size, hidden_size, requires_grad=True)
ids = torch.randint(0, size, (tokens, 17))
weight.grad, hidden.grad = torch.zeros_like(weight), torch.zeros_like(hidden)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
log_probs, _ = gathered_log_probs(hidden, weight, ids, Pair("student", "teacher", size, StopAlignment((3,), (5,), 3)))
log_probs.sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""

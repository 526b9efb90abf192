"""Micro-batches: every rollout once, the same count for every process, tensors that line up token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.rollout_answers import make_rollout
from trainer.learner.batches import Weighted, collate, shard_by_tokens, shard_rollouts
from trainer.rollouts.rollout import RolloutKey


def make(lengths, teacher_support=False):
    rollouts = [make_rollout(RolloutKey(0, i, 0), n, teacher_support=teacher_support) for i, n in enumerate(lengths)]
    return [Weighted(r, np.arange(len(r), dtype=np.float32)) for r in rollouts]


@pytest.mark.parametrize(("sequences", "processes", "size"), [(7, 1, 2), (7, 2, 2), (256, 8, 4), (1, 4, 3), (9, 2, 16)])
def test_every_rollout_is_dealt_once_and_nobody_gets_more_than_fits(sequences, processes, size):
    weighted = make([1 + i % 60 for i in range(sequences)])
    shards = shard_rollouts(weighted, processes, size)
    assert len(shards) == processes and len({len(shard) for shard in shards}) == 1
    assert all(len(part) <= size for shard in shards for part in shard)
    keys = sorted(w.rollout.key for shard in shards for part in shard for w in part)
    assert keys == [w.rollout.key for w in weighted]
    shuffled = [weighted[i] for i in np.random.default_rng(0).permutation(sequences)]
    again = shard_rollouts(shuffled, processes, size)
    assert [[[w.rollout.key for w in part] for part in shard] for shard in again] == [
        [[w.rollout.key for w in part] for part in shard] for shard in shards
    ], "whatever order they finished in"


def test_like_lengths_come_together():
    shards = shard_rollouts(make([1, 30, 2, 29, 3, 28]), 1, 2)
    assert [sorted(len(w.rollout) for w in part) for part in shards[0]] == [[29, 30], [3, 28], [1, 2]]


@pytest.mark.parametrize("processes", [1, 2])
def test_micro_batch_mean_counts_every_micro_batch_by_its_sequences(processes):
    """Five sequences of 8, 1, 2, 5, 4 tokens, two in a micro-batch: of T = 20 tokens one counts T s / (S t)."""
    weighted = [Weighted(w.rollout, np.ones(len(w.rollout), np.float32)) for w in make([8, 1, 2, 5, 4])]
    shards = shard_rollouts(weighted, processes, 2, "micro_batch_mean")
    found = [[[len(w.rollout) for w in part] for part in shard] for shard in shards]
    assert found == {1: [[[8, 1], [2, 5], [4]]], 2: [[[8, 2], [4]], [[1, 5], []]]}[processes]
    for part in (part for shard in shards for part in shard):
        tokens = sum(len(w.rollout) for w in part)
        for w in part:
            np.testing.assert_array_equal(w.position_weight_T, np.float32(20 * len(part) / (5 * tokens)))
    total = sum(w.position_weight_T.sum(dtype=np.float64) for shard in shards for part in shard for w in part)
    assert total == pytest.approx(20), "as many as of the token mean"


@pytest.mark.parametrize("processes", [1, 3])
def test_micro_batches_of_a_number_of_tokens(processes):
    """Every rollout once with its own weights, in whatever order they finished; no prompt is forgotten."""
    weighted = make([1 + 7 * i % 60 for i in range(40)])
    shards = shard_by_tokens(weighted, processes, 100)
    parts = [part for shard in shards for part in shard]
    assert sorted(w.rollout.key for part in parts for w in part) == [w.rollout.key for w in weighted]
    for part in parts:
        batch = collate(part)
        assert batch.input_ids_BT.numel() == len(part) * max(w.length for w in part) <= 100
        assert batch.padding == sum(max(w.length for w in part) - w.length for w in part)
    shuffled = [weighted[i] for i in np.random.default_rng(0).permutation(40)]
    assert shard_by_tokens(shuffled, processes, 100) == shards


def test_tensors_line_up_token_by_token():
    shard = make([3, 5], teacher_support=True)
    batch = collate(shard, teacher_support=True)
    first, second = (w.rollout for w in shard)
    assert batch.input_ids_BT.shape == (2, 8) and batch.input_ids_BT.dtype == torch.int64
    assert batch.input_ids_BT[0, :6].tolist() == [*first.prompt_ids, *first.token_ids_T]
    assert batch.prompt_lengths_B.tolist() == [3, 3] and batch.response_lengths_B.tolist() == [3, 5]
    assert batch.padding == 2
    assert batch.token_ids_N.tolist() == [*first.token_ids_T, *second.token_ids_T]
    assert batch.position_weight_N.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    for tensor, name in [(batch.support_ids_NK, "ids"), (batch.teacher_logprob_NK, "teacher_logprob")]:
        assert np.array_equal(
            tensor.numpy(), np.concatenate([getattr(first.support, name), getattr(second.support, name)])
        )
    assert np.array_equal(
        batch.teacher_own_logprob_NK.numpy(),
        np.concatenate([r.teacher_support.teacher_logprob for r in (first, second)]),
    )
    assert len(batch.rollout_logprob_N) == len(batch.teacher_entropy_N) == 8


def test_a_micro_batch_of_nothing_has_no_positions():
    assert collate([], teacher_support=True).teacher_ids_NK.shape == (0, 16)
    batch = collate([])
    assert batch.input_ids_BT.shape == (1, 1) and batch.response_lengths_B.tolist() == [0]
    assert batch.token_ids_N.shape == (0,) and batch.support_ids_NK.shape == (0, 16) and batch.teacher_ids_NK is None

"""Micro-batches of a number of tokens, whatever the lengths, the processes and the limit are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.learner.grouping import MAX_PADDING, deal_by_tokens

LENGTHS = st.lists(st.integers(1, 300), max_size=80).map(lambda lengths: sorted(lengths, reverse=True))


def computed(lengths, group):
    return len(group) * max((lengths[i] for i in group), default=0)


def padding(lengths, shards):
    """Share of all processes' tokens."""
    total = sum(computed(lengths, group) for shard in shards for group in shard)
    return 1 - sum(lengths) / total


@given(LENGTHS, st.integers(1, 9), st.integers(1, 1500))
def test_whatever_comes(lengths, processes, limit):
    shards = deal_by_tokens(lengths, processes, limit)
    groups = [group for shard in shards for group in shard]
    assert sorted(i for group in groups for i in group) == list(range(len(lengths))), "every sequence exactly once"
    assert len(shards) == processes and len({len(shard) for shard in shards}) == 1, "the same number on every process"
    for group in groups:
        tokens = computed(lengths, group)
        assert tokens <= limit or len(group) == 1
    assert not lengths or padding(lengths, shards) <= MAX_PADDING
    empty = sum(not group for group in groups)
    assert empty < processes and (empty == 0 or len(groups) - empty == len(lengths)), "only where all are alone"
    for shard in shards:
        assert [computed(lengths, g) for g in shard] == sorted((computed(lengths, g) for g in shard), reverse=True)
    sums = [sum(computed(lengths, group) for group in shard) for shard in shards]
    rounds = [[computed(lengths, group) for group in together] for together in zip(*shards, strict=True)]
    assert max(sums) - min(sums) <= max((max(r) - min(r) for r in rounds), default=0), "balanced"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("processes", [1, 4, 8])
def test_real_lengths_leave_little_padding_and_little_to_wait_for(processes, seed):
    """256 responses whose lengths are log-normal, cut at 7,168 tokens."""
    rng = np.random.default_rng(seed)
    responses = np.minimum(np.exp(rng.normal(np.log(1200), 0.9, 256)), 7168)
    lengths = sorted((rng.integers(60, 400, 256) + responses).astype(int).tolist(), reverse=True)
    shards = deal_by_tokens(lengths, processes, 16_384)
    assert padding(lengths, shards) < 0.05
    sums = [sum(computed(lengths, group) for group in shard) for shard in shards]
    assert max(sums) < 1.06 * sum(sums) / processes
    assert len(shards[0]) <= 1.25 * sum(lengths) / (processes * 16_384) + 1


def test_like_lengths_share_a_micro_batch_that_is_as_large_as_the_others():
    """40 tokens hold four sequences of ten. Two micro-batches are needed, so each takes three."""
    assert deal_by_tokens([10] * 6, 1, 40) == [[range(0, 3), range(3, 6)]]
    assert deal_by_tokens([10] * 6, 2, 40) == [[range(0, 3)], [range(3, 6)]]


def test_a_sequence_beyond_the_limit_is_alone():
    assert deal_by_tokens([50, 10, 10], 1, 20) == [[range(0, 1), range(1, 3)]]


def test_an_empty_one_only_where_every_sequence_is_alone():
    assert deal_by_tokens([9, 9, 9], 2, 9) == [[range(0, 1), range(2, 3)], [range(1, 2), range(0)]]
    assert deal_by_tokens([9, 9, 9, 9], 3, 36) == [[range(2, 4)], [range(0, 1)], [range(1, 2)]]
    assert deal_by_tokens([], 2, 9) == [[], []]

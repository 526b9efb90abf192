"""Which sequences go through a forward together where its tokens are limited, from their lengths alone.

A micro-batch of n sequences, the longest of L tokens, computes n L tokens; what belongs to no sequence is padding.
Sequences are taken longest first, so a micro-batch is a range of them.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence

MAX_PADDING = 0.1
"""Share of a step's tokens that may be padding."""


def deal_by_tokens(lengths: Sequence[int], processes: int, limit: int) -> list[list[range]]:
    """Each process's micro-batches, as many as every other's and of about as many tokens.

    Args:
        lengths: tokens of each sequence, the longest first.
        limit: tokens that a micro-batch may compute; a longer sequence is one by itself.

    Returns:
        [processes][micro-batches], ranges of positions in ``lengths``; the largest micro-batches come first. There are
        as few as limit and `MAX_PADDING` allow, rounded up to the processes, and as even ones as their number allows.
        Some are empty where there are fewer sequences than micro-batches.
    """
    assert all(before >= after for before, after in itertools.pairwise(lengths)), "longest first"
    wanted = math.ceil(len(_fill(lengths, limit)) / processes) * processes
    evenly = 1 + bisect.bisect_left(range(1, limit), True, key=lambda tokens: len(_fill(lengths, tokens)) <= wanted)
    groups = _split(lengths, _fill(lengths, evenly), wanted)
    return _deal(lengths, groups, processes)


def _fill(lengths: Sequence[int], limit: int) -> list[range]:
    """Each micro-batch takes sequences until the limit, or the padding of all so far, forbids the next."""
    groups: list[range] = []
    start = sequences = before = 0
    for position, length in enumerate(lengths):
        sequences += length
        computed = (position + 1 - start) * lengths[start]
        padding = before + computed - sequences
        if position > start and (computed > limit or padding > MAX_PADDING * (before + computed)):
            before += (position - start) * lengths[start]
            groups.append(range(start, position))
            start = position
    return [*groups, range(start, len(lengths))] if lengths else []


def _split(lengths: Sequence[int], groups: list[range], wanted: int) -> list[range]:
    """Halve the largest until there are enough; where every sequence is alone already, add empty ones."""
    while len(groups) < wanted and len(groups) < len(lengths):
        largest = max((group for group in groups if len(group) > 1), key=lambda group: _tokens(lengths, group))
        groups.remove(largest)
        middle = len(largest) // 2
        groups += [largest[:middle], largest[middle:]]
    return groups + [range(0)] * (wanted - len(groups))


def _deal(lengths: Sequence[int], groups: Sequence[range], processes: int) -> list[list[range]]:
    """Rounds of one micro-batch a process, all of like size: the largest goes where the fewest tokens are so far."""
    ordered = sorted(groups, key=lambda group: (-_tokens(lengths, group), group.start))
    shards: list[list[range]] = [[] for _ in range(processes)]
    tokens = [0] * processes
    for first in range(0, len(ordered), processes):
        lightest_first = sorted(range(processes), key=tokens.__getitem__)
        for group, process in zip(ordered[first : first + processes], lightest_first, strict=True):
            shards[process].append(group)
            tokens[process] += _tokens(lengths, group)
    return shards


def _tokens(lengths: Sequence[int], group: range) -> int:
    """That a micro-batch computes, padding included."""
    return len(group) * lengths[group.start] if group else 0

"""The token of a row (Triton): the inverse of the cumulative weights at the uniform number of the row's key.

The key is hashed as in `sglang_trb.blend.draw`. Weights are float32 and summed in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from sglang_trb.blend.fused.moments import LIMIT
from sglang_trb.blend.fused.rows import NEVER, load_tiles
from sglang_trb.blend.fused.search import tilted


class Policy(NamedTuple):
    """The behaviour policy of a row: the student's (mode 0), the teacher's (1), or mu_beta on S (2)."""

    mode: tl.tensor
    beta: tl.tensor
    log_normaliser: tl.tensor
    peak_q: tl.tensor  # the teacher's, float32
    total: tl.tensor  # the sum of the weights that `weigh` gives


@triton.jit
def uniform(seed, position):
    """A number in [0, 1) with 53 random bits, float64: SplitMix64 of the key, main stream."""
    bits = _mix(_mix(_mix(seed.to(tl.uint64)) + position.to(tl.uint64)))
    return (bits >> 11).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def _mix(bits):
    bits = bits + 0x9E3779B97F4A7C15
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB
    return bits ^ (bits >> 31)


@triton.jit
def weigh(s, t, family, policy):
    """The logarithms of the weights of a tile, float32; -inf where the policy cannot draw."""
    can_p, can_q = (s - family.peak) * family.scale > -LIMIT, (t - policy.peak_q) * family.scale > -LIMIT
    inside = tl.where(policy.mode == 0, can_p, tl.where(policy.mode == 1, can_q, can_p & can_q))
    if policy.mode == 2:
        if family.wide:
            logs = tilted(s, t, family, policy.beta, policy.log_normaliser, True).to(tl.float32)
        else:
            logs = tilted(s, t, family, policy.beta, policy.log_normaliser, False)
    else:
        logs = tl.where(policy.mode == 1, t - policy.peak_q, s - family.peak) * family.scale
    return tl.where(inside, logs, NEVER)


@triton.jit
def draw(
    pair, family, policy, number,
    TILE: tl.constexpr, FORBIDS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The first token whose cumulative weight exceeds ``number`` times the total; int32, -1 if there is none."""
    columns = tl.arange(0, TILE)
    threshold, before = number * policy.total, tl.zeros((), tl.float64)
    token, last = tl.full((), -1, tl.int32), tl.full((), -1, tl.int32)
    start = tl.zeros((), tl.int32)
    while (start < pair.size) & (token < 0):
        s, t = load_tiles(pair, start, TILE, FORBIDS, MASKED)
        weights = tl.exp(weigh(s, t, family, policy)).to(tl.float64)
        mass = tl.sum(weights)
        if mass > 0.0:
            last = tl.max(tl.where(weights > 0.0, start + columns, -1))
        if before + mass > threshold:
            exceeds = (tl.cumsum(weights, 0) + before > threshold) & (weights > 0.0)
            first = tl.min(tl.where(exceeds, start + columns, pair.size))
            token = tl.where(first < pair.size, first, last)
        before += mass
        start += TILE
    return tl.where(token < 0, last, token)  # the total is right to 1e-6 only


@triton.jit
def likeliest(pair, family, policy, TILE: tl.constexpr, FORBIDS: tl.constexpr, MASKED: tl.constexpr):
    """The token of the largest weight, the lowest id of several; int32. In float64: near ties are not made equal."""
    columns = tl.arange(0, TILE)
    best, token = tl.full((), NEVER, tl.float64), tl.full((), -1, tl.int32)
    for start in range(0, pair.size, TILE):
        s, t = load_tiles(pair, start, TILE, FORBIDS, MASKED)
        inside = weigh(s, t, family, policy) > NEVER
        logs = tl.where(inside, s, 0.0).to(tl.float64)
        if policy.mode == 1:
            logs = tl.where(inside, t, 0.0).to(tl.float64)
        if policy.mode == 2:
            finite_t = tl.where(inside, t, 0.0)
            logs = tilted(tl.where(inside, s, 0.0), finite_t, family, policy.beta, policy.log_normaliser, True)
        logs = tl.where(inside, logs, NEVER)
        top = tl.max(logs)
        if top > best:
            token = tl.min(tl.where(logs == top, start + columns, pair.size))
            best = top
    return token


@triton.jit
def store_policy(
    pair, family, policy, width, target,
    TILE: tl.constexpr, FORBIDS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Write log mu to ``target``, float32 [width], -inf off the support."""
    log_total = tl.log(policy.total).to(tl.float32)
    for start in range(0, width, TILE):
        s, t = load_tiles(pair, start, TILE, FORBIDS, MASKED)
        columns = start + tl.arange(0, TILE)
        tl.store(target + columns, weigh(s, t, family, policy) - log_total, mask=columns < width)

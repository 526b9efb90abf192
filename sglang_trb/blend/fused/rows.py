"""Tiles of a row of raw logits, with masks and stop ids folded into the load (Triton).

A row is one model's logits at one prefix, a tile is TILE of its columns as float32, -inf where a token is forbidden.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

NEVER: tl.constexpr = tl.constexpr(float("-inf"))
LOWEST: tl.constexpr = tl.constexpr(-3.0e38)

GROUP: tl.constexpr = tl.constexpr(128)
"""Columns of which the largest logit is kept for the supports."""


class Stops(NamedTuple):
    """The pair's stop ids: all of them lie from ``lowest`` to ``highest``; ``masked`` points to int32 ids."""

    masked: tl.tensor
    canonical: tl.tensor
    lowest: tl.tensor
    highest: tl.tensor


class Row(NamedTuple):
    """Where one model's row lies: its logits, the bytes that forbid (other than 0), the logit of its stop event."""

    logits: tl.tensor
    forbidden: tl.tensor
    stop: tl.tensor


class Pair(NamedTuple):
    """Both models' rows at one prefix; ids from ``size`` on are padding."""

    p: Row
    q: Row
    stops: Stops
    size: tl.tensor


@triton.jit
def load_tiles(pair, start, TILE: tl.constexpr, FORBIDS: tl.constexpr, MASKED: tl.constexpr):
    """The student's and the teacher's tile from column ``start`` on."""
    s = load_tile(pair.p, pair.stops, start, pair.size, TILE, FORBIDS, MASKED)
    return s, load_tile(pair.q, pair.stops, start, pair.size, TILE, FORBIDS, MASKED)


@triton.jit
def load_tile(row, stops, start, size, TILE: tl.constexpr, FORBIDS: tl.constexpr, MASKED: tl.constexpr):
    """The tile from column ``start`` on; -inf from column ``size`` on.

    FORBIDS: whether ``row.forbidden`` is to be read. MASKED: how many ids the alignment masks; -1 where it changes
    nothing.
    """
    columns = start + tl.arange(0, TILE)
    tile = tl.load(row.logits + columns, mask=columns < size, other=NEVER).to(tl.float32)
    if FORBIDS:
        tile = tl.where(tl.load(row.forbidden + columns, mask=columns < size, other=1) != 0, NEVER, tile)
    if MASKED >= 0:  # known while it compiles  # noqa: SIM102
        if (stops.lowest < start + TILE) & (stops.highest >= start):
            tile = tl.where(columns == stops.canonical, row.stop, tile)
            for i in tl.static_range(MASKED):
                tile = tl.where(columns == tl.load(stops.masked + i), NEVER, tile)
    return tile


@triton.jit
def row_of(logits, forbidden, ids, inverse, COUNT: tl.constexpr, FORBIDS: tl.constexpr):
    """The row whose stop event is the log-sum-exp of the ``COUNT`` ids at ``ids`` (Eq. 7), at 1 / T = ``inverse``."""
    peak = _load_one(logits, forbidden, tl.load(ids), FORBIDS)
    for i in tl.static_range(1, COUNT):
        peak = tl.maximum(peak, _load_one(logits, forbidden, tl.load(ids + i), FORBIDS))
    stop = peak
    if COUNT > 1:
        total = tl.zeros((), tl.float64)
        for i in tl.static_range(COUNT):
            below = _load_one(logits, forbidden, tl.load(ids + i), FORBIDS) - tl.maximum(peak, LOWEST)
            total += tl.exp(below * inverse)
        stop = tl.where(total > 0.0, peak + tl.log(tl.maximum(total, 1e-300)) / inverse, peak)
    return Row(logits, forbidden, stop.to(tl.float32))


@triton.jit
def logit_of(row, stops, token, MASKED: tl.constexpr):
    """The float64 logit of a token that alignment does not mask."""
    logit = tl.load(row.logits + token).to(tl.float64)
    if MASKED >= 0:
        logit = tl.where(token == stops.canonical, row.stop.to(tl.float64), logit)
    return logit


@triton.jit
def lost_mass(row, ids, peak, total, COUNT: tl.constexpr):
    """The probability of ``COUNT`` ids that alignment masks; ``total`` sums e^(logit - peak) over what remains."""
    lost = tl.zeros((), tl.float64)
    for i in tl.static_range(COUNT):
        lost += tl.exp(tl.load(row.logits + tl.load(ids + i)).to(tl.float64) - peak)
    return lost / (lost + total)


@triton.jit
def _load_one(logits, forbidden, column, FORBIDS: tl.constexpr):
    logit = tl.load(logits + column).to(tl.float64)
    if FORBIDS:
        logit = tl.where(tl.load(forbidden + column) != 0, NEVER, logit)
    return logit


@triton.jit
def row_peak(row, stops, size, TILE: tl.constexpr, FORBIDS: tl.constexpr, MASKED: tl.constexpr):
    """The largest logit of a row; +inf if there is one, or a NaN."""
    peak = tl.full((TILE,), NEVER, tl.float32)
    for start in range(0, size, TILE):
        tile = load_tile(row, stops, start, size, TILE, FORBIDS, MASKED)
        peak = tl.maximum(peak, tl.where(tile == tile, tile, float("inf")))
    return tl.max(peak)

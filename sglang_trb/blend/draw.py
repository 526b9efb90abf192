"""Draws that depend on nothing but the row's distribution and its key (seed, position, stream).

The key is hashed with int64 torch operations, so it gives the same uniform number on every device, in every batch and
on every rank. Seeds are read from device memory: a captured CUDA graph draws anew at every replay.

Legend: _B rows, _V vocabulary.
"""

from __future__ import annotations

import torch

from sglang_trb.blend.distribution import cumulative

MAIN, TEACHER_REPLACEMENT = 0, 1
"""Streams: the token itself; the teacher's draw of rule ``skd``. Draws of different streams are independent."""

_GOLDEN, _MIX_1, _MIX_2 = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""SplitMix64's constants, as signed integers."""


def uniform(seed_B: torch.Tensor, position_B: torch.Tensor, stream: int) -> torch.Tensor:
    """A number in [0, 1) for each key, float64 [B] with 53 random bits.

    Args:
        seed_B, position_B: int64 [B].
        stream: a small integer, such as `MAIN`.
    """
    return _shift(_mix(_mix(_mix(seed_B) + position_B.long()) + stream), 11).double() * 2.0**-53


def draw(weights_BV: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative weights; a token of weight 0 is never drawn.

    Args:
        weights_BV: float64 [B, V], >= 0; they need not sum to 1. A row of zeros gives a meaningless id.
        uniform_B: float64 [B] in [0, 1).

    Returns:
        int64 ids [B].
    """
    cumulative_BV = cumulative(weights_BV)
    total_B1 = cumulative_BV[:, -1:]
    below_total_B1 = torch.nextafter(total_B1, torch.zeros_like(total_B1))
    threshold_B1 = torch.minimum(uniform_B[:, None] * total_B1, below_total_B1)
    # The first id whose cumulative weight exceeds the threshold has itself added some.
    ids_B1 = torch.searchsorted(cumulative_BV, threshold_B1, right=True).clamp(max=weights_BV.shape[1] - 1)
    # A device's parallel scan may round two sums of the same terms differently: once in 1e11 draws, a weight of 0.
    return torch.where(weights_BV.gather(1, ids_B1) > 0, ids_B1, weights_BV.argmax(1, keepdim=True)).squeeze(1)


def _mix(value: torch.Tensor) -> torch.Tensor:
    """SplitMix64 (Steele, Lea and Flood 2014) on int64, whose products wrap around."""
    value = value + _GOLDEN
    value = (value ^ _shift(value, 30)) * _MIX_1
    value = (value ^ _shift(value, 27)) * _MIX_2
    return value ^ _shift(value, 31)


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """A logical right shift; torch's own keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)

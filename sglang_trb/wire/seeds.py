"""One 64-bit key per sampled sequence, from the user's seed and the index of the sample."""

from __future__ import annotations

_MASK = (1 << 64) - 1


def sample_seed(seed: int, sample_index: int) -> int:
    """The key of the ``sample_index``-th of a request's n samples.

    Args:
        seed: the request's seed, any integer (reduced modulo 2**64).
        sample_index: 0 <= index < n.

    Returns:
        A signed 64-bit integer; distinct indices give distinct keys, index 0 too is mixed.
    """
    key = _splitmix64(_splitmix64(seed & _MASK) + sample_index)
    return key - (1 << 64) if key >> 63 else key


def _splitmix64(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64-bit integers."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)

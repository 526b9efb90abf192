"""How much memory a step takes, and how many of its rows go together because of it. Needs no torch."""

from __future__ import annotations

CPU_GROUP_ELEMENTS = (1 << 16) - 1
"""Rows × vocabulary of a group on a CPU: half a MB per float64 matrix stays in the cache. torch sums 32,768 entries or
more in parallel pieces when they are one row, but not when they are several; such a row must always be alone, or its
last bit depends on the batch."""

GROUP_BYTES = 5 << 30
"""Temporaries of a group on a device: 147 rows of 151,936 tokens. Each group is 2,600 operations to launch, so few
large ones are better than many."""

RUNNING_REQUESTS = 128
"""``max-running-requests`` where a configuration leaves it open; SGLang would derive up to 4,096 from the KV pool."""

SORT_MATRICES = 3
"""What a device's sort takes by itself; it is not seen as a tensor."""

GROUP_MATRICES = 27 + SORT_MATRICES
"""Float64 matrices [rows, V] alive at once in a group of `blend_step`, with every rule, filter, mask and support in one
batch; tests/unit/test_step_costs.py counts them."""

ROW_BYTES = 4 + 4 + 4 + 1 + 1 + 4 + 4 + 4
"""Bytes for each vocabulary entry of each row, whatever the groups: the student's logits in float32, the teacher's
copy, the student's with penalties and masks, what the model and what the request rules out, SGLang's sum of penalties
and its biases, the returned policy."""


def group_rows(vocab: int, device: str) -> int:
    """Rows of a group: on a CPU as many as stay in the cache, elsewhere as many as GROUP_BYTES allow.

    Args:
        vocab: width of the rows.
        device: torch's name of the kind of device, such as ``cpu`` or ``cuda``.
    """
    if device == "cpu":
        return max(1, CPU_GROUP_ELEMENTS // vocab)
    return max(1, GROUP_BYTES // (8 * GROUP_MATRICES * vocab))


def group_bytes(rows: int, vocab: int, device: str) -> int:
    """Bytes of temporaries of a step of ``rows`` rows: those of its largest group."""
    return min(rows, group_rows(vocab, device)) * vocab * 8 * GROUP_MATRICES


def step_bytes(rows: int, vocab: int, device: str) -> int:
    """Bytes that a step of ``rows`` requests takes at most, beside weights, KV pool and the models' own forward."""
    return rows * vocab * ROW_BYTES + group_bytes(rows, vocab, device)

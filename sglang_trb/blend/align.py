"""Stop-id alignment: base and post-trained checkpoints end a text with different ids, the blend compares one event.

Legend: _B rows, _V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

NEG_INF = float("-inf")


def align_eos(
    log_probs_BV: torch.Tensor, *, own_ids: Sequence[int], canonical_id: int, masked_ids: Sequence[int]
) -> torch.Tensor:
    """Move a model's stop probability to one id, mask the other stop ids, renormalise (App. D, Eq. 7).

    Args:
        log_probs_BV: a model's log-probabilities [B, V], any float dtype, -inf where forbidden.
        own_ids: E_M, the model's stop ids.
        canonical_id: where the stop event lives; it is the student's primary stop id.
        masked_ids: (E_S | E_T) without ``canonical_id``.

    Returns:
        Aligned log-probabilities, a new tensor; ``log_probs_BV`` itself where alignment is the identity. A row without
        any probability stays so. No host synchronisation and no data-dependent shape: safe in a CUDA graph.
    """
    aligned_BV, _ = align_with_mass(log_probs_BV, own_ids, canonical_id, masked_ids)
    return aligned_BV


def align_with_mass(
    log_probs_BV: torch.Tensor, own_ids: Sequence[int], canonical_id: int, masked_ids: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `align_eos`, and the probability [B] that the mask dropped: that of masked ids which are not the model's own.

    Eq. 7 moves the mass of E_M. An id that only the other model stops with keeps its mass there, and is masked here.
    """
    if not masked_ids and tuple(own_ids) == (canonical_id,):
        return log_probs_BV, log_probs_BV.new_zeros(log_probs_BV.shape[0])
    own = _index(tuple(own_ids), log_probs_BV.device)
    emptied = _index(tuple(sorted({*masked_ids, canonical_id})), log_probs_BV.device)
    stop_B1 = torch.logsumexp(log_probs_BV[:, own], dim=1, keepdim=True)
    aligned_BV = log_probs_BV.index_fill(1, emptied, NEG_INF)
    aligned_BV[:, canonical_id : canonical_id + 1] = stop_B1
    strangers = tuple(sorted({*masked_ids, canonical_id} - {*own_ids}))
    if not strangers:
        return aligned_BV, log_probs_BV.new_zeros(log_probs_BV.shape[0])
    dropped_B = log_probs_BV[:, _index(strangers, log_probs_BV.device)].exp().sum(1)
    return normalised(aligned_BV), dropped_B


def normalised(log_weights_BV: torch.Tensor) -> torch.Tensor:
    """Log-softmax that leaves a row of -inf as it is (torch's gives NaN)."""
    total_B1 = torch.logsumexp(log_weights_BV, dim=1, keepdim=True)
    return log_weights_BV - total_B1.masked_fill(total_B1 == NEG_INF, 0.0)


@lru_cache(maxsize=64)
def _index(ids: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.long, device=device)

"""Stop-id alignment: base and post-trained checkpoints end a text with different ids, the blend compares one event.

Legend: _B rows, _V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from sglang_trb.blend.distribution import NEVER, Distribution


def align_eos(
    log_probs_BV: torch.Tensor, *, own_ids: Sequence[int], canonical_id: int, masked_ids: Sequence[int]
) -> torch.Tensor:
    """Move a model's stop probability to one id, mask the other stop ids, renormalise (App. D, Eq. 7).

    Args:
        log_probs_BV: a model's log-probabilities [B, V], any float dtype, -inf where forbidden, no NaN.
        own_ids: E_M, the model's stop ids.
        canonical_id: where the stop event lives; it is the student's primary stop id.
        masked_ids: (E_S | E_T) without ``canonical_id``.

    Returns:
        Aligned log-probabilities of the same dtype; ``log_probs_BV`` itself where alignment is the identity. A row
        without any probability stays so. No host synchronisation and no data-dependent shape: safe in a CUDA graph.
    """
    if _is_identity(own_ids, canonical_id, masked_ids):
        return log_probs_BV
    distribution = Distribution.from_logits(log_probs_BV.double())
    return aligned(distribution, own_ids, canonical_id, masked_ids)[0].log_probs().to(log_probs_BV.dtype)


def aligned(
    distribution: Distribution, own_ids: Sequence[int], canonical_id: int, masked_ids: Sequence[int]
) -> tuple[Distribution, torch.Tensor]:
    """As `align_eos` on a normalised distribution, and the probability [B] that the mask dropped.

    Eq. 7 moves the mass of E_M. Where a masked id, or the canonical one, is a stop of the other model only, its mass
    here is an ordinary token's; it has nowhere to go and is dropped.
    """
    weights_BV, log_weights_BV = distribution.weights_BV, distribution.log_weights_BV
    if _is_identity(own_ids, canonical_id, masked_ids):
        return distribution, weights_BV.new_zeros(weights_BV.shape[0])
    device = weights_BV.device
    own = _index(tuple(own_ids), device)
    emptied = _index(tuple(sorted({*masked_ids, canonical_id})), device)
    stop_B1 = torch.logsumexp(log_weights_BV[:, own], dim=1, keepdim=True)
    moved_BV = log_weights_BV.index_fill(1, emptied, NEVER)
    moved_BV[:, canonical_id : canonical_id + 1] = stop_B1
    moved_weights_BV = weights_BV.index_fill(1, emptied, 0.0)
    moved_weights_BV[:, canonical_id : canonical_id + 1] = weights_BV[:, own].sum(1, keepdim=True)
    strangers = _index(tuple(sorted({*masked_ids, canonical_id} - {*own_ids})), device)
    dropped_B = weights_BV[:, strangers].sum(1)
    remaining_B = torch.where(distribution.empty(), 1.0, moved_weights_BV.sum(1))
    log_remaining_B1 = remaining_B.clamp(min=torch.finfo(torch.float64).tiny).log()[:, None]
    moved_weights_BV = moved_weights_BV / remaining_B.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    return Distribution(moved_BV - log_remaining_B1, moved_weights_BV, distribution.log_total_B), dropped_B


def _is_identity(own_ids: Sequence[int], canonical_id: int, masked_ids: Sequence[int]) -> bool:
    return not masked_ids and tuple(own_ids) == (canonical_id,)


@lru_cache(maxsize=64)
def _index(ids: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.long, device=device)

"""Stop-id alignment: base and post-trained checkpoints end a text with different ids, the blend compares one event.

Legend: _B rows, _V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from sglang_trb.blend.distribution import NEVER, Distribution, softmax


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
    return aligned(log_probs_BV.double(), own_ids, canonical_id, masked_ids)[0].log_probs().to(log_probs_BV.dtype)


def aligned(
    logits_BV: torch.Tensor, own_ids: Sequence[int], canonical_id: int, masked_ids: Sequence[int]
) -> tuple[Distribution, torch.Tensor]:
    """As `align_eos` on float64 logits without NaN or +inf, and the probability [B] that the mask dropped.

    Eq. 7 moves the mass of E_M. Where a masked id, or the canonical one, is a stop of the other model only, its mass
    here is an ordinary token's; it has nowhere to go and is dropped. What remains is normalised from its own largest
    logit: at a low temperature the dropped mass may be all but 1e-300.
    """
    if _is_identity(own_ids, canonical_id, masked_ids):
        return Distribution.from_logits(logits_BV), torch.zeros_like(logits_BV[:, 0])
    device = logits_BV.device
    own = _index(tuple(own_ids), device)
    emptied = _index(tuple(sorted({*masked_ids, canonical_id})), device)
    strangers = _index(tuple(sorted({*masked_ids, canonical_id} - {*own_ids})), device)
    moved_BV = logits_BV.index_fill(1, emptied, NEVER)
    moved_BV[:, canonical_id : canonical_id + 1] = logits_BV[:, own].logsumexp(1, keepdim=True)
    distribution, log_sum_B = softmax(moved_BV)
    return distribution, torch.sigmoid(logits_BV[:, strangers].logsumexp(1) - log_sum_B)


def _is_identity(own_ids: Sequence[int], canonical_id: int, masked_ids: Sequence[int]) -> bool:
    return not masked_ids and tuple(own_ids) == (canonical_id,)


@lru_cache(maxsize=64)
def _index(ids: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.long, device=device)

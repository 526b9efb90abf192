"""Stop-id alignment: base and post-trained checkpoints end a text with different ids, the blend compares one event.

Legend: _B rows, _V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sglang_trb.blend.distribution import Distribution, softmax


def align_eos(
    log_probs_BV: torch.Tensor, *, own_ids: Sequence[int], canonical_id: int, masked_ids: Sequence[int]
) -> torch.Tensor:
    """Move a model's stop probability to one id, mask the other stop ids, renormalise (App. D, Eq. 7).

    Args:
        log_probs_BV: a model's log-probabilities [B, V] in nats, any float dtype, -inf where forbidden, no NaN.
        own_ids: E_M, the model's stop ids.
        canonical_id: where the stop event lives; it is the student's primary stop id.
        masked_ids: (E_S | E_T) without ``canonical_id``.

    Returns:
        Aligned log-probabilities of the same dtype, computed in float64; ``log_probs_BV`` itself where alignment is the
        identity. A row without any probability stays so. Differentiable. No host synchronisation and no data-dependent
        shape: safe in a CUDA graph.
    """
    if _is_identity(own_ids, canonical_id, masked_ids):
        return log_probs_BV
    moved_BV = _moved(log_probs_BV.double(), own_ids, canonical_id, masked_ids)
    log_sum_B1 = moved_BV.logsumexp(1, keepdim=True)
    return (moved_BV - log_sum_B1.masked_fill(log_sum_B1.isneginf(), 0.0)).to(log_probs_BV.dtype)


def aligned(
    logits_BV: torch.Tensor, own_ids: Sequence[int], canonical_id: int, masked_ids: Sequence[int]
) -> tuple[Distribution, torch.Tensor]:
    """As `align_eos` on float64 logits without NaN or +inf, and the probability [B] that the mask dropped.

    Eq. 7 moves the mass of E_M. Where a masked id, or the canonical one, is a stop of the other model only, its mass
    here is an ordinary token's; it has nowhere to go and is dropped. What remains is normalised from its own largest
    logit: at a low temperature the dropped mass may be all but 1e-300.
    """
    strangers = sorted({*masked_ids, canonical_id} - {*own_ids})
    if not strangers:
        moved_BV = logits_BV
        if not _is_identity(own_ids, canonical_id, masked_ids):
            moved_BV = _moved(logits_BV, own_ids, canonical_id, masked_ids)
        return Distribution.from_logits(moved_BV), torch.zeros_like(logits_BV[:, 0])
    distribution, log_sum_B = softmax(_moved(logits_BV, own_ids, canonical_id, masked_ids))
    return distribution, torch.sigmoid(_log_sum(logits_BV, strangers).squeeze(1) - log_sum_B)


def _moved(
    logits_BV: torch.Tensor, own_ids: Sequence[int], canonical_id: int, masked_ids: Sequence[int]
) -> torch.Tensor:
    """The logits with one stop id, not normalised."""
    moved_BV = logits_BV.clone()
    for masked in masked_ids:  # a handful; ids on the host need no copy to the device, which a graph could not hold
        moved_BV[:, masked] = float("-inf")
    moved_BV[:, canonical_id] = _log_sum(logits_BV, own_ids).squeeze(1)
    return moved_BV


def _log_sum(logits_BV: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    return torch.cat([logits_BV[:, i : i + 1] for i in ids], dim=1).logsumexp(1, keepdim=True)


def _is_identity(own_ids: Sequence[int], canonical_id: int, masked_ids: Sequence[int]) -> bool:
    return not masked_ids and tuple(own_ids) == (canonical_id,)

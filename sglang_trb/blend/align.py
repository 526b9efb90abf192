"""Stop-id alignment: base and post-trained checkpoints end a text with different ids, the blend compares one event.

Legend: _B rows, _V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sglang_trb.blend.distribution import Distribution, below_peak, softmax


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
    moved_BV = _move_(log_probs_BV.double().clone(), own_ids, canonical_id, masked_ids)
    log_sum_B1 = moved_BV.logsumexp(1, keepdim=True)
    return (moved_BV - log_sum_B1.masked_fill(log_sum_B1.isneginf(), 0.0)).to(log_probs_BV.dtype)


def aligned(
    logits_BV: torch.Tensor,
    own_ids: Sequence[int],
    canonical_id: int,
    masked_ids: Sequence[int],
    temperature_B: torch.Tensor | None = None,
) -> tuple[Distribution, torch.Tensor]:
    """As `align_eos` on float64 logits without NaN or +inf, and the probability [B] that the mask dropped.

    Eq. 7 moves the mass of E_M. Where a masked id, or the canonical one, is a stop of the other model only, its mass
    here is an ordinary token's; it has nowhere to go and is dropped. What remains is divided by the temperature, and
    normalised, from its own largest logit: the dropped mass may be all but 1e-300, and a logit of 9,000 at 1e-5 has an
    ulp of 1e-7.
    """
    strangers = sorted({*masked_ids, canonical_id} - {*own_ids})
    remaining_BV = logits_BV
    if strangers:
        remaining_BV = logits_BV.clone()
        _forbid_(remaining_BV, strangers)
    identity = _is_identity(own_ids, canonical_id, masked_ids)
    if temperature_B is None and identity:
        return Distribution.from_logits(remaining_BV), torch.zeros_like(logits_BV[:, 0])
    remaining_BV, peak_B1 = below_peak(remaining_BV)
    scale_B1 = torch.ones_like(peak_B1) if temperature_B is None else temperature_B.double()[:, None]
    if temperature_B is not None:
        remaining_BV.div_(scale_B1)
    if not identity:
        _move_(remaining_BV, own_ids, canonical_id, masked_ids)
    distribution, log_sum_B = softmax(remaining_BV)
    if not strangers:
        return distribution, torch.zeros_like(log_sum_B)
    lost_BK = (_columns(logits_BV, strangers) - peak_B1) / scale_B1
    return distribution, torch.sigmoid(lost_BK.logsumexp(1) - log_sum_B)


def _move_(
    logits_BV: torch.Tensor, own_ids: Sequence[int], canonical_id: int, masked_ids: Sequence[int]
) -> torch.Tensor:
    """The model's stop probability at one id, the other stop ids masked; in place, not normalised."""
    log_sum_B = _columns(logits_BV, own_ids).logsumexp(1)
    _forbid_(logits_BV, masked_ids)
    logits_BV[:, canonical_id] = log_sum_B
    return logits_BV


def _forbid_(logits_BV: torch.Tensor, ids: Sequence[int]) -> None:
    for i in ids:  # a handful; ids on the host need no copy to the device, which a graph could not hold
        logits_BV[:, i] = float("-inf")


def _columns(logits_BV: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    return torch.cat([logits_BV[:, i : i + 1] for i in ids], dim=1)


def _is_identity(own_ids: Sequence[int], canonical_id: int, masked_ids: Sequence[int]) -> bool:
    return not masked_ids and tuple(own_ids) == (canonical_id,)

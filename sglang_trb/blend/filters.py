"""Top-k, top-p and min-p with the meaning they have in SGLang's pytorch backend.

Legend: _B rows, _V vocabulary.
"""

from __future__ import annotations

import torch

from sglang_trb.blend.distribution import Distribution, cumulative, needed
from sglang_trb.blend.types import TOP_K_OFF


def filtered(
    distribution: Distribution,
    top_k_B: torch.Tensor,
    top_p_B: torch.Tensor,
    min_p_B: torch.Tensor,
    apply_B: torch.Tensor,
) -> Distribution:
    """Keep the most likely tokens and renormalise.

    On the probabilities sorted in descending order (ties: lower id first), each filter by itself drops: ranks from
    ``top_k`` on; tokens with more than ``top_p`` before them; tokens below ``min_p`` times the largest.

    Args:
        distribution: normalised rows.
        top_k_B, top_p_B, min_p_B: int32, float32, float32 [B].
        apply_B: bool [B]; other rows, and those whose filters are all off, pass bit for bit.

    Returns:
        The filtered rows. Safe in a CUDA graph.
    """
    active_B = apply_B & ((top_k_B < TOP_K_OFF) | (top_p_B < 1.0) | (min_p_B > 0.0))
    if not needed(active_B):
        return distribution
    order_BV = _descending(distribution)
    probs_BV = distribution.weights_BV.gather(1, order_BV)
    before_BV = cumulative(probs_BV) - probs_BV
    keep_BV = _ranks(probs_BV) < top_k_B[:, None]
    keep_BV &= (before_BV <= top_p_B[:, None]) | (top_p_B >= 1.0)[:, None]  # rounding may exceed 1
    keep_BV &= probs_BV >= probs_BV[:, :1] * min_p_B[:, None]
    kept_BV = torch.zeros_like(keep_BV).scatter_(1, order_BV, keep_BV)
    return distribution.where(active_B, distribution.keeping(kept_BV)[0])


def in_top_k(distribution: Distribution, top_k_B: torch.Tensor) -> torch.Tensor:
    """Whether each token is among a row's ``top_k_B`` most likely (ties: lower id first); bool [B, V]."""
    order_BV = _descending(distribution)
    kept_BV = _ranks(order_BV) < top_k_B[:, None]
    return torch.zeros_like(order_BV, dtype=torch.bool).scatter_(1, order_BV, kept_BV.expand_as(order_BV))


def _descending(distribution: Distribution) -> torch.Tensor:
    """Ids from the most likely on; logarithms still tell apart what underflows as a probability."""
    return torch.sort(distribution.log_weights_BV, dim=1, descending=True, stable=True).indices


def _ranks(rows_BV: torch.Tensor) -> torch.Tensor:
    return torch.arange(rows_BV.shape[1], device=rows_BV.device)[None, :]

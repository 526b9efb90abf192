"""Top-k, top-p and min-p with the meaning they have in SGLang's pytorch backend.

Legend: _B rows, _V vocabulary.
"""

from __future__ import annotations

import torch

from sglang_trb.blend.align import NEG_INF, normalised


def filtered(
    log_probs_BV: torch.Tensor,
    top_k_B: torch.Tensor,
    top_p_B: torch.Tensor,
    min_p_B: torch.Tensor,
    apply_B: torch.Tensor,
) -> torch.Tensor:
    """Keep the most likely tokens and renormalise.

    On the probabilities sorted in descending order (ties: lower id first), each filter by itself drops: ranks from
    ``top_k`` on; tokens with more than ``top_p`` before them; tokens below ``min_p`` times the largest.

    Args:
        log_probs_BV: normalised log-probabilities [B, V].
        top_k_B, top_p_B, min_p_B: int32, float32, float32 [B].
        apply_B: bool [B]; other rows pass bit for bit.

    Returns:
        Log-probabilities [B, V], -inf where dropped. Safe in a CUDA graph.
    """
    sorted_BV, order_BV = torch.sort(log_probs_BV, dim=1, descending=True, stable=True)
    probs_BV = sorted_BV.exp()
    before_BV = probs_BV.cumsum(1) - probs_BV
    rank_V = torch.arange(log_probs_BV.shape[1], device=log_probs_BV.device)
    drop_BV = rank_V >= top_k_B[:, None]
    drop_BV |= before_BV > top_p_B[:, None]
    drop_BV |= probs_BV < probs_BV[:, :1] * min_p_B[:, None]
    dropped_BV = torch.zeros_like(drop_BV).scatter_(1, order_BV, drop_BV)
    return torch.where(
        apply_B[:, None], normalised(log_probs_BV.masked_fill(dropped_BV, NEG_INF)), log_probs_BV
    )


def in_top_k(log_probs_BV: torch.Tensor, top_k_B: torch.Tensor) -> torch.Tensor:
    """Whether each token is among a row's ``top_k_B`` most likely (ties: lower id first); bool [B, V]."""
    order_BV = torch.sort(log_probs_BV, dim=1, descending=True, stable=True).indices
    rank_V = torch.arange(log_probs_BV.shape[1], device=log_probs_BV.device)
    kept_BV = rank_V < top_k_B[:, None]
    return torch.zeros_like(kept_BV).scatter_(1, order_BV, kept_BV)

"""TIP: which positions of a global batch are trained on.

Legend: _M response positions of the global batch.
"""

from __future__ import annotations

import numpy as np

_CLIP_QUANTILE = 0.98


def tip_weights(student_entropy_M: np.ndarray, reverse_kl_M: np.ndarray, share: float) -> np.ndarray:
    """1 at the share of positions with the highest score s = h + d - h d, else 0.

    h and d are the student's entropy and the reverse KL, clipped at their 98% quantile over the batch and scaled to
    [0, 1]; one that is constant counts 0. Ties at the threshold: earlier positions first.

    Args:
        student_entropy_M, reverse_kl_M: nats, at rollout time.
        share: rho in (0, 1]; at least one position is kept.

    Returns:
        float32 [M].
    """
    h_M, d_M = _scaled(student_entropy_M), _scaled(reverse_kl_M)
    score_M = h_M + d_M - h_M * d_M
    kept = np.argsort(-score_M, kind="stable")[: max(1, round(share * len(score_M)))]
    weights_M = np.zeros(len(score_M), np.float32)
    weights_M[kept] = 1.0
    return weights_M


def _scaled(values_M: np.ndarray) -> np.ndarray:
    clipped_M = np.minimum(values_M.astype(np.float64), np.quantile(values_M, _CLIP_QUANTILE))
    low, high = clipped_M.min(), clipped_M.max()
    return np.zeros_like(clipped_M) if high == low else (clipped_M - low) / (high - low)

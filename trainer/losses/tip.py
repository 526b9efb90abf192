"""TIP: reverse KL on the positions of a global batch that say most.

Legend: _M response positions of the global batch, _T of one rollout, _N of a micro-batch, _K the ids of a support.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from trainer.losses.loss import Loss, LossInputs, RolloutStatistics
from trainer.losses.reverse_kl import Normalisation, reverse_kl
from trainer.losses.support import LOG_PROB_FLOOR

_CLIP_QUANTILE = 0.98


class TIP(Loss):
    """Reverse KL on the share of positions with the highest score of entropy and divergence."""

    name: Literal["tip"]
    normalisation: Normalisation = Field("surrogate", description="form of the reverse KL")
    share: float = Field(0.5, gt=0, le=1, description="rho, of the response tokens of a global batch")

    def per_position(self, inputs: LossInputs, step: int) -> torch.Tensor:
        return reverse_kl(inputs.student_logprob_NK, inputs.teacher_logprob_NK, self.normalisation)

    def position_weights(self, rollouts: Sequence[RolloutStatistics]) -> list[np.ndarray]:
        if not rollouts:
            return []
        entropy_M = np.concatenate([rollout.student_entropy_T for rollout in rollouts])
        divergence_M = np.concatenate([_reverse_kl_then(rollout) for rollout in rollouts])
        ends = np.cumsum([len(rollout.student_entropy_T) for rollout in rollouts])[:-1]
        return np.split(tip_weights(entropy_M, divergence_M, self.share), ends)


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


def _reverse_kl_then(rollout: RolloutStatistics) -> np.ndarray:
    """Over the support at rollout time, unnormalised; float64 [T], nats."""
    log_p_TK = rollout.student_logprob_TK.astype(np.float64)
    log_q_TK = np.maximum(rollout.teacher_logprob_TK.astype(np.float64), LOG_PROB_FLOOR)
    with np.errstate(invalid="ignore"):
        terms_TK = np.exp(log_p_TK) * (log_p_TK - log_q_TK)
    return np.where(np.isneginf(log_p_TK), 0.0, terms_TK).sum(1)

"""Supervised fine-tuning: the warm-up on the teacher's responses (Table 4)."""

from __future__ import annotations

from typing import Literal

import torch

from trainer.losses.loss import Loss, LossInputs


class SFT(Loss):
    """Negative log-likelihood of the drawn tokens: SFT warmup, on the teacher's responses (Table 4)."""

    name: Literal["sft"]

    def per_position(self, inputs: LossInputs, step: int) -> torch.Tensor:
        return -inputs.token_logprob_N

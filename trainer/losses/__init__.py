"""Losses: pure functions of a micro-batch's log-probabilities (METHODS section 3)."""

from trainer.losses.compute import compute_loss
from trainer.losses.selection import tip_weights
from trainer.losses.settings import LossSettings, ReverseKL
from trainer.losses.types import LossInputs, LossOutput

__all__ = ["LossInputs", "LossOutput", "LossSettings", "ReverseKL", "compute_loss", "tip_weights"]

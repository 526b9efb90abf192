"""What a loss is: settings of a configuration, a value per response position, and what each position counts.

Legend: _N response positions of a micro-batch, _T of one rollout, _K the ids of a support.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

Aggregation = Literal["token_mean", "micro_batch_mean"]


@dataclasses.dataclass(frozen=True)
class LossInputs:
    """One micro-batch. Log-probabilities are nats over the whole vocabulary, aligned, at temperature 1.

    Attributes:
        student_logprob_NK: the student's now, at its top-16 of rollout time; with gradient. -inf where p = 0.
        teacher_logprob_NK: the teacher's at the same ids.
        token_logprob_N: the student's now, of the drawn token; with gradient.
        student_entropy_N, teacher_entropy_N: of the whole distributions, nats.
        position_weight_N: float32 >= 0; 1, or what the loss's `Loss.position_weights` says.
        teacher_support_student_logprob_NK: the student's now, at the teacher's top-16; with gradient. Or None.
        teacher_support_teacher_logprob_NK: the teacher's own there. Or None.
    """

    student_logprob_NK: torch.Tensor
    teacher_logprob_NK: torch.Tensor
    token_logprob_N: torch.Tensor
    student_entropy_N: torch.Tensor
    teacher_entropy_N: torch.Tensor
    position_weight_N: torch.Tensor
    teacher_support_student_logprob_NK: torch.Tensor | None = None
    teacher_support_teacher_logprob_NK: torch.Tensor | None = None


@dataclasses.dataclass(frozen=True)
class RolloutStatistics:
    """What the server said of one rollout's positions, for a loss that selects some.

    Attributes:
        student_entropy_T: float32 nats.
        student_logprob_TK, teacher_logprob_TK: float32 nats, both models' at the student's top-16.
    """

    student_entropy_T: np.ndarray
    student_logprob_TK: np.ndarray
    teacher_logprob_TK: np.ndarray


class Loss(BaseModel, abc.ABC):
    """A loss with its knobs; the defaults are the paper's where it states one.

    A subclass in a module of this package is a value of ``loss`` in a configuration: it is told from the others by its
    ``name``, and its fields are what a user may set.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    needs_teacher_support: ClassVar[bool] = False
    """Whether the rollouts must bring the teacher's top-16 too."""

    name: str
    aggregation: Aggregation = Field(
        "token_mean",
        description="token_mean: every response token of the global batch counts the same; micro_batch_mean: the mean "
        "of the micro-batches' token means, each counted by its sequences, as in the code that the paper builds on",
    )

    @abc.abstractmethod
    def per_position(self, inputs: LossInputs, step: int) -> torch.Tensor:
        """The loss of each position.

        Args:
            inputs: of one micro-batch, any number of positions.
            step: k >= 0, completed updates, for losses with a schedule.

        Returns:
            [N] nats, with gradient; before the position weights.
        """

    def position_weights(self, rollouts: Sequence[RolloutStatistics]) -> list[np.ndarray]:
        """What each position of a step's rollouts counts; unless a loss says otherwise, 1.

        Args:
            rollouts: all of the global batch.

        Returns:
            float32 [T] >= 0 for each rollout.
        """
        return [np.ones(len(rollout.student_entropy_T), np.float32) for rollout in rollouts]

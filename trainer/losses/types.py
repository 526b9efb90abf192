"""What a loss sees and says.

Legend: _N response positions of a micro-batch, _K the 16 ids of a support.
"""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True)
class LossInputs:
    """One micro-batch. Log-probabilities are nats over the whole vocabulary, aligned, at temperature 1.

    Attributes:
        student_logprob_NK: the student's now, at its top-16 of rollout time; with gradient. -inf where p = 0.
        teacher_logprob_NK: the teacher's at the same ids.
        token_logprob_N: the student's now, of the drawn token; with gradient.
        student_entropy_N, teacher_entropy_N: of the whole laws, nats.
        position_weight_N: float32 >= 0; 1, or what a selection of positions says.
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
class LossOutput:
    """Sums over the micro-batch's positions: whoever knows the global number of tokens divides.

    Attributes:
        loss_sum: scalar with gradient.
        metric_sums: ``reverse_kl`` (over the support, unnormalised), ``support_mass_student``,
            ``support_mass_teacher``, ``student_entropy``, ``teacher_entropy``, ``floored`` (log-probabilities that
            count as `divergences.LOG_PROB_FLOOR`, since they are below it).
    """

    loss_sum: torch.Tensor
    metric_sums: dict[str, float]

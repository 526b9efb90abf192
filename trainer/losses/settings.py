"""Which loss, and its knobs (METHODS section 3); the defaults are the paper's where it states one."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Normalisation = Literal["surrogate", "raw", "renormalised", "tail"]
Aggregation = Literal["token_mean", "micro_batch_mean"]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    needs_teacher_support: ClassVar[bool] = False
    """Whether the rollouts must bring the teacher's top-16 too."""

    aggregation: Aggregation = Field(
        "token_mean",
        description="token_mean: every response token of the global batch counts the same; micro_batch_mean: the mean "
        "of the micro-batches' token means, each counted by its sequences, as in the code that the paper builds on",
    )


class ReverseKL(_Settings):
    """Sum over the student's support of p (log p - log q), in one of four forms."""

    name: Literal["reverse_kl"] = "reverse_kl"
    normalisation: Normalisation = Field("surrogate", description="the paper's code line: surrogate")


class Veto(_Settings):
    """KL between p and the target Q ∝ q sg(p)^beta, both over the support (App. A.2)."""

    name: Literal["veto"]
    beta_start: float = Field(0.4, ge=0, description="falls linearly to 0; the paper sweeps 0.2, 0.4, 0.6, 0.8")
    warmup_steps: int = Field(25, ge=1, description="beta is 0 from here on")
    direction: Literal["student_to_target", "target_to_student"] = Field(
        "student_to_target", description="KL(p || Q) or KL(Q || p)"
    )


class EntropyAware(_Settings):
    """Reverse KL plus alpha times the forward KL on the teacher's top-16 where the teacher is uncertain."""

    name: Literal["entropy_aware"]
    normalisation: Normalisation = Field("surrogate", description="form of the reverse KL")
    alpha: float = Field(1.0, ge=0, description="weight of the forward KL")
    entropy_threshold: float = Field(0.8, ge=0, description="tau_H, nats")

    needs_teacher_support: ClassVar[bool] = True


class TIP(_Settings):
    """Reverse KL on the share of positions with the highest score of entropy and divergence."""

    name: Literal["tip"]
    normalisation: Normalisation = Field("surrogate", description="form of the reverse KL")
    share: float = Field(0.5, gt=0, le=1, description="rho, of the response tokens of a global batch")


class ForwardKL(_Settings):
    """KL(q || p) on the student's support, both renormalised over it (GKD)."""

    name: Literal["forward_kl"]


class JSD(_Settings):
    """Generalised Jensen-Shannon divergence on the student's support, both renormalised over it (GKD)."""

    name: Literal["jsd"]
    mixture: float = Field(0.5, gt=0, lt=1, description="weight of the teacher in the mixture")


class SFT(_Settings):
    """Negative log-likelihood of the drawn tokens: SFT warmup, on the teacher's responses (Table 4)."""

    name: Literal["sft"]


LossSettings = Annotated[
    ReverseKL | Veto | EntropyAware | TIP | ForwardKL | JSD | SFT,
    Field(discriminator="name"),
]

"""How the rollouts of a run are drawn, step by step: the methods of the paper and its baselines.

A method is a section of the configuration with ``at(k)``, the behaviour policy of step k. The defaults are the paper's
where it states a value.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sglang_trb.wire.params import MAX_TEMPERATURE, MIN_TEMPERATURE, BlendParams, Return, Rule
from trainer import schedules
from trainer.config.section import Section

Budget = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Steps = Annotated[int, Field(ge=1)]


class TrustRegion(Section):
    """TRB: sample from mu with a budget that is annealed to 0 (Eq. 1 to 3)."""

    method: Literal["trb"] = "trb"
    epsilon: Budget = Field(0.01, description="epsilon_0, nats a token; the paper sweeps 0.001 to 0.05")
    warmup_steps: Steps = Field(25, description="K: the budget reaches 0 here; the paper sweeps 15, 25, 50")

    def at(self, step: int) -> tuple[BlendParams, float]:
        """The rule and the temperature of step k."""
        return _blend(schedules.trust_region_budget(self.epsilon, self.warmup_steps, step)), 1.0


class FixedEpsilon(Section):
    """The same blend with one budget for the whole run (App. A.2)."""

    method: Literal["fixed_epsilon"]
    epsilon: Budget = Field(0.01, description="nats a token; the paper sweeps 0.001 to 0.05")

    def at(self, step: int) -> tuple[BlendParams, float]:
        """The rule and the temperature of step k."""
        return _blend(self.epsilon), 1.0


class Student(Section):
    """Vanilla OPD: the student's own rollouts."""

    method: Literal["student"]

    def at(self, step: int) -> tuple[BlendParams, float]:
        """The rule and the temperature of step k."""
        return _blend(0.0), 1.0


class TemperatureWarmup(Section):
    """The student at a temperature that rises to 1 (App. A.2)."""

    method: Literal["temperature_warmup"]
    initial_temperature: float = Field(
        0.9, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, description="tau_0; the paper sweeps 0.8, 0.9, 0.95"
    )
    warmup_steps: Steps = Field(25, description="the temperature is 1 from here on; the paper sweeps 15, 25")

    def at(self, step: int) -> tuple[BlendParams, float]:
        """The rule and the temperature of step k."""
        return _blend(0.0), schedules.rollout_temperature(self.initial_temperature, self.warmup_steps, step)


class InterleavedTeacher(Section):
    """SKD: the student's token if it is in the teacher's top K, else the teacher's draw (App. A.2, gamma = 1)."""

    method: Literal["skd"]
    top_k: int = Field(25, ge=1, description="K; the paper sweeps 15, 25, 50")
    teacher_temperature: float = Field(
        1.0,
        ge=MIN_TEMPERATURE,
        le=MAX_TEMPERATURE,
        description="tau_T of the replacement; the paper sweeps 0.2, 0.6, 1",
    )

    def at(self, step: int) -> tuple[BlendParams, float]:
        """The rule and the temperature of step k."""
        return BlendParams(Rule.SKD, self.top_k, self.teacher_temperature, returned=Return.SUPPORT), 1.0


class TeacherMixed(Section):
    """Each token from (1 - alpha) p + alpha q: the teacher-mixed sampling of Gu et al. (2023), MiniLLM."""

    method: Literal["mixture"]
    alpha: float = Field(0.2, ge=0, le=1, description="the teacher's share; 0.2 is MiniLLM's")

    def at(self, step: int) -> tuple[BlendParams, float]:
        """The rule and the temperature of step k."""
        return BlendParams(Rule.MIXTURE, self.alpha, returned=Return.SUPPORT), 1.0


class Teacher(Section):
    """The teacher's own responses: the data of SFT warmup (Table 4)."""

    method: Literal["teacher"]

    def at(self, step: int) -> tuple[BlendParams, float]:
        """The rule and the temperature of step k."""
        return BlendParams(Rule.TEACHER, returned=Return.SUPPORT), 1.0


Behaviour = Annotated[
    TrustRegion | FixedEpsilon | Student | TemperatureWarmup | InterleavedTeacher | TeacherMixed | Teacher,
    Field(discriminator="method"),
]
"""Who picks the tokens of the rollouts; ``at(k)`` gives the rule and the temperature of step k."""


def _blend(epsilon: float) -> BlendParams:
    if epsilon == 0.0:
        return BlendParams(Rule.STUDENT, returned=Return.SUPPORT)
    return BlendParams(Rule.TRUST_REGION, epsilon, returned=Return.SUPPORT)

"""The table of backends: who finds the largest feasible beta of each row, for the server's step and the public call.

A backend solves rows that it is given as distributions; each is tested against `reference`. One that has a ``step``
also draws whole rows from raw logits, and leaves to its ``solve`` those that the step does not know.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch

from sglang_trb.blend import reference, solver
from sglang_trb.blend.distribution import Distribution
from sglang_trb.blend.solver import Blend
from sglang_trb.blend.types import RowControls, StepLogits, StepOutput
from sglang_trb.errors import InvalidParameter
from sglang_trb.pair.alignment import StopAlignment

AUTO = "auto"


class Solve(Protocol):
    """Blends rows of ``p`` and ``q`` [B, V] within ``epsilon_B`` nats, as `solver.solve` says."""

    def __call__(self, p: Distribution, q: Distribution, epsilon_B: torch.Tensor, *, any_small: bool) -> Blend: ...


class Step(Protocol):
    """Draws rows from raw logits, as `fused.step.fused_step` says."""

    def __call__(
        self, logits: StepLogits, controls: RowControls, alignment: StopAlignment, *, need_log_mu: bool
    ) -> StepOutput: ...


@dataclasses.dataclass(frozen=True)
class Backend:
    """How the rows of a step are blended."""

    solve: Solve
    step: Step | None = None


def _torch(p: Distribution, q: Distribution, epsilon_B: torch.Tensor, *, any_small: bool) -> Blend:
    return solver.solve(p, q, epsilon_B, any_small=any_small)


def _reference(p: Distribution, q: Distribution, epsilon_B: torch.Tensor, *, any_small: bool) -> Blend:
    return reference.solve(p, q, epsilon_B)


def _fused(logits: StepLogits, controls: RowControls, alignment: StopAlignment, *, need_log_mu: bool) -> StepOutput:
    from sglang_trb.blend.fused.step import fused_step  # needs Triton

    return fused_step(logits, controls, alignment, need_log_mu=need_log_mu)


BACKENDS = {"torch": Backend(_torch), "reference": Backend(_reference), "triton": Backend(_torch, _fused)}
"""By name."""

FASTEST = {"cpu": "torch", "cuda": "torch"}
"""What ``auto`` takes on each type of device; ``torch`` on others."""


def find(name: str, device: torch.device) -> Backend:
    """The backend of that name for tensors on a device.

    Raises:
        InvalidParameter: no backend has this name.
    """
    if name == AUTO:
        name = FASTEST.get(device.type, "torch")
    if name not in BACKENDS:
        raise InvalidParameter("backend", name, "one of " + ", ".join((AUTO, *BACKENDS)))
    return BACKENDS[name]

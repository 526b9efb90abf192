"""The table of solvers: who finds the largest feasible beta of each row, for the server's step and for the public call.

A solver takes what `solver.solve` takes and returns its `Blend`; each is tested against `reference`.
"""

from __future__ import annotations

from typing import Protocol

import torch

from sglang_trb.blend import reference, solver
from sglang_trb.blend.distribution import Distribution
from sglang_trb.blend.solver import Blend
from sglang_trb.errors import InvalidParameter

AUTO = "auto"


class Solver(Protocol):
    """Blends rows of ``p`` and ``q`` [B, V] within ``epsilon_B`` nats, as `solver.solve` says."""

    def __call__(self, p: Distribution, q: Distribution, epsilon_B: torch.Tensor, *, any_small: bool) -> Blend: ...


def _torch(p: Distribution, q: Distribution, epsilon_B: torch.Tensor, *, any_small: bool) -> Blend:
    return solver.solve(p, q, epsilon_B, any_small=any_small)


def _reference(p: Distribution, q: Distribution, epsilon_B: torch.Tensor, *, any_small: bool) -> Blend:
    return reference.solve(p, q, epsilon_B)


SOLVERS: dict[str, Solver | None] = {"torch": _torch, "reference": _reference, "triton": None}
"""By name; None is a name that is reserved."""

FASTEST = {"cpu": "torch", "cuda": "torch"}
"""What ``auto`` takes on each type of device; ``torch`` on others."""


def find(name: str, device: torch.device) -> Solver:
    """The solver of that name for tensors on a device.

    Raises:
        InvalidParameter: no solver has this name, or this version does not contain it.
    """
    if name == AUTO:
        name = FASTEST.get(device.type, "torch")
    if name not in SOLVERS:
        raise InvalidParameter("backend", name, "one of " + ", ".join((AUTO, *SOLVERS)))
    found = SOLVERS[name]
    if found is None:
        present = " or ".join(sorted(other for other, solve in SOLVERS.items() if solve))
        raise InvalidParameter("backend", name, f"{present}: this version has no {name.capitalize()} kernel")
    return found

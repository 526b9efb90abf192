"""The methods that a study compares: each a small change of one base run, with the settings that are swept.

The grids are the paper's (App. A.2) where it has one. A method that is missing here can be written in a study's file,
with the same two parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Method:
    """One family of a table.

    Attributes:
        title: as tables and pictures call it.
        set: fields of the base run (dotted names) and the values that make the method.
        grid: fields, and the values that are tried; all combinations are.
        sft_updates: supervised updates that come before; ordinary training goes on at that step of the prompts.
    """

    title: str
    set: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    sft_updates: Sequence[int] = ()


BEHAVIOUR, LOSS = "rollouts.behaviour", "loss"
STUDENT = {BEHAVIOUR: {"method": "student"}}
EPSILONS = (0.001, 0.005, 0.01, 0.02, 0.05)


def _loss(name: str, **fields: Any) -> dict[str, Any]:
    """The student's own rollouts under another loss."""
    return STUDENT | {LOSS: {"name": name, **fields}}


METHODS: dict[str, Method] = {
    "vanilla": Method("Vanilla OPD", STUDENT),
    "trb": Method(
        "TRB",
        {BEHAVIOUR: {"method": "trb"}},
        {f"{BEHAVIOUR}.epsilon": EPSILONS, f"{BEHAVIOUR}.warmup_steps": (15, 25, 50)},
    ),
    "fixed_epsilon": Method("Fixed ε", {BEHAVIOUR: {"method": "fixed_epsilon"}}, {f"{BEHAVIOUR}.epsilon": EPSILONS}),
    "skd": Method(
        "SKD",
        {BEHAVIOUR: {"method": "skd"}},
        {f"{BEHAVIOUR}.top_k": (15, 25, 50), f"{BEHAVIOUR}.teacher_temperature": (0.2, 0.6, 1.0)},
    ),
    "veto": Method("Veto", _loss("veto"), {f"{LOSS}.beta_start": (0.2, 0.4, 0.6, 0.8)}),
    "temperature": Method(
        "Temperature warm-up",
        {BEHAVIOUR: {"method": "temperature_warmup"}},
        {f"{BEHAVIOUR}.initial_temperature": (0.8, 0.9, 0.95), f"{BEHAVIOUR}.warmup_steps": (15, 25)},
    ),
    "sft": Method("SFT warm-up", STUDENT, sft_updates=(15, 25, 50)),
    "mixture": Method("Teacher-mixed sampling", {BEHAVIOUR: {"method": "mixture"}}, {f"{BEHAVIOUR}.alpha": (0.2,)}),
    "entropy_aware": Method("Entropy-aware OPD", _loss("entropy_aware")),
    "tip": Method("TIP", _loss("tip")),
    "forward_kl": Method("Forward KL", _loss("forward_kl")),
    "jsd": Method("JSD", _loss("jsd")),
}
"""By the name that a study's file uses."""

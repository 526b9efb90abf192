"""Does a teacher answer like a trained model? One that is broken can look alive: finite logits, and nothing in them.

Zeroed or never loaded weights, as after a failed wake-up, give nearly the same distribution whatever the prefix, most
often nearly the uniform one. Loads without torch and without sglang.

Legend: _N positions.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

MIN_POSITIONS = 64
"""Fewer say nothing about a spread."""

UNIFORM_SUSPECT, UNIFORM_BROKEN = 0.9, 0.98
"""Mean entropy as a share of ln V. Zeroed weights have 1; the micro pair's teacher .06, the tests' random pairs .35."""

CONSTANT_SUSPECT, CONSTANT_BROKEN = 0.01, 0.002
"""Standard deviation of the entropy over the positions as a share of its mean. A random initialisation has below .001
at a real vocabulary, zeroed weights 0; the micro pair's teacher 1.2, the tests' random pairs .33."""

UNIFORM, CONSTANT = "uniform teacher", "constant teacher"
"""The names of the conditions."""


@dataclasses.dataclass(frozen=True)
class TeacherHealth:
    """What the teacher's entropies say.

    Attributes:
        entropy_mean, entropy_spread: nats; mean and standard deviation over the positions.
        condition: its name, or None.
        broken: beyond doubt; else the condition is a suspicion.
    """

    entropy_mean: float
    entropy_spread: float
    condition: str | None = None
    broken: bool = False

    def explained(self) -> str:
        """For people; empty without a condition."""
        if self.condition is None:
            return ""
        return (
            f"{self.condition}: its entropy is {self.entropy_mean:.4g} nats with a spread of {self.entropy_spread:.2g} "
            "over the positions, as of a model without (these) weights"
        )


def look_at(entropy_N: np.ndarray, vocab_size: int) -> TeacherHealth:
    """Judge the teacher by the entropies of its distributions at different prefixes.

    Args:
        entropy_N: nats, finite, at least one.
        vocab_size: V, of the ids that can be drawn.
    """
    values_N = entropy_N.astype(np.float64)
    mean, spread = float(values_N.mean()), float(values_N.std())
    if len(values_N) < MIN_POSITIONS:
        return TeacherHealth(mean, spread)
    uniform, constant = mean / math.log(vocab_size), spread / mean if mean > 0 else 0.0
    if uniform > UNIFORM_BROKEN or constant < CONSTANT_BROKEN:
        return TeacherHealth(mean, spread, UNIFORM if uniform > UNIFORM_BROKEN else CONSTANT, broken=True)
    if uniform > UNIFORM_SUSPECT or constant < CONSTANT_SUSPECT:
        return TeacherHealth(mean, spread, UNIFORM if uniform > UNIFORM_SUSPECT else CONSTANT)
    return TeacherHealth(mean, spread)

"""Schedules: pure functions of the optimisation step (docs/methods.md, "Schedules").

``step`` is k, the number of completed optimiser updates: the first rollouts are drawn, and the first update is made,
at k = 0.
"""

from __future__ import annotations

import math


def linear(start: float, end: float, steps: int, step: int) -> float:
    """From ``start`` at step 0 to ``end`` at step ``steps``, and ``end`` from then on.

    Args:
        start, end: the values at both ends.
        steps: K > 0, how long the way is.
        step: k >= 0.

    Example:
        >>> [linear(0.5, 0.0, 4, k) for k in (0, 1, 4, 9)]
        [0.5, 0.375, 0.0, 0.0]
    """
    share = min(step / steps, 1.0)
    return end if share == 1.0 else start + (end - start) * share


def trust_region_budget(initial: float, warmup_steps: int, step: int) -> float:
    """epsilon_k = epsilon_0 (1 - k/K) for k <= K, then 0 (Eq. 3); nats."""
    return linear(initial, 0.0, warmup_steps, step)


def rollout_temperature(initial: float, warmup_steps: int, step: int) -> float:
    """From tau_0 linearly to 1 (App. A.2, temperature warmup)."""
    return linear(initial, 1.0, warmup_steps, step)


def veto_beta(initial: float, warmup_steps: int, step: int) -> float:
    """From beta_start linearly to 0 (App. A.2, Veto)."""
    return linear(initial, 0.0, warmup_steps, step)


def learning_rate_factor(warmup_steps: int, step: int) -> float:
    """Factor of the learning rate at update ``step``: a rising half cosine, then 1 (Table 2).

    The first update is not wasted on a rate of 0: update k takes the cosine at (k + 1) / ``warmup_steps``, so update
    ``warmup_steps`` - 1 is the first at the full rate. ``warmup_steps`` = 0 is no warm-up.
    """
    if step + 1 >= warmup_steps:
        return 1.0
    return 0.5 * (1.0 - math.cos(math.pi * (step + 1) / warmup_steps))

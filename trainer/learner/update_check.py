"""Whether a run may go on after an update: was its gradient finite, do trainer and server give tokens the same
probabilities?

Every process comes to the same verdict, from the update's global numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from trainer.config.run import Optimisation
from trainer.errors import TrainerError
from trainer.learner.engine import Update


class NotFinite(TrainerError, ArithmeticError):
    """There was no finite gradient too often."""


class EnginesDisagree(TrainerError, RuntimeError):
    """Trainer and server give the same tokens different probabilities: what is trained is not what was sampled."""


@dataclasses.dataclass(frozen=True)
class Skips:
    """Updates of a run that were skipped, because they had no finite gradient: the student stayed as it was.

    Attributes:
        total: so far.
        in_a_row: up to the last update.
    """

    total: int = 0
    in_a_row: int = 0

    def after(self, applied: bool) -> Skips:
        """The count after one more update."""
        return Skips(self.total, 0) if applied else Skips(self.total + 1, self.in_a_row + 1)


def check_update(update: Update, skips: Skips, settings: Optimisation, step: int, note: Callable[[str], None]) -> Skips:
    """Count a skipped update, and compare the engines.

    Args:
        update: of step k.
        skips: before it.
        settings: the limits.
        step: k.
        note: called with a line for people.

    Returns:
        The count after it.

    Raises:
        NotFinite: more updates were skipped than the settings allow.
        EnginesDisagree: the step's rollouts are of another student than the trainer's, or one of both computes wrongly.
    """
    skips = skips.after(update.applied)
    if not update.applied:
        note(f"step {step}: the update is skipped, it has no finite gradient ({skips.total} so far)")
        _check_skips(skips, settings, step)
    drift = update.drift_mean
    said = f"step {step}: trainer and server differ by {drift:.2e} nats a token on average"
    if drift > settings.max_drift_stop or (math.isnan(drift) and update.applied):
        raise EnginesDisagree(f"{said}; allowed: optimisation.max_drift_stop = {settings.max_drift_stop:g}")
    if drift > settings.max_drift_warn:
        note(f"{said} (optimisation.max_drift_warn: {settings.max_drift_warn:g})")
    return skips


def _check_skips(skips: Skips, settings: Optimisation, step: int) -> None:
    limits = {"max_skipped_in_a_row": settings.max_skipped_in_a_row, "max_skipped": settings.max_skipped}
    for (name, limit), count in zip(limits.items(), (skips.in_a_row, skips.total), strict=True):
        if count > limit:
            raise NotFinite(
                f"step {step}: there is no finite gradient, and {count} updates were skipped for that; allowed: "
                f"optimisation.{name} = {limit}. The last checkpoint is from before it"
            )

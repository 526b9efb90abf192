"""Losses, one to a file: pure functions of a micro-batch's log-probabilities (docs/methods.md, "Losses").

Whatever subclass of `Loss` a module of this package holds is a value of ``loss`` in a configuration.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Annotated, Union, get_args

from pydantic import Field

from trainer.losses.compute import LossOutput, compute_loss
from trainer.losses.loss import Aggregation, Loss, LossInputs, RolloutStatistics

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

LOSSES: dict[str, type[Loss]] = {
    get_args(loss.model_fields["name"].annotation)[0]: loss for loss in Loss.__subclasses__()
}
"""Every loss by its name in a configuration."""

if TYPE_CHECKING:
    LossSettings = Loss
else:
    LossSettings = Annotated[Union[tuple(LOSSES.values())], Field(discriminator="name")]  # noqa: UP007

__all__ = [
    "LOSSES",
    "Aggregation",
    "Loss",
    "LossInputs",
    "LossOutput",
    "LossSettings",
    "RolloutStatistics",
    "compute_loss",
]

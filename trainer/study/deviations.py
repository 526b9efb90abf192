"""Where a run's settings are not the paper's, which are the configuration's defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.config.run import RunConfig
from trainer.run.folder import MAY_CHANGE

_PROTOCOL = ("steps", "evaluation.every", "evaluation.temperature", "evaluation.max_new_tokens")
_OWN = ("name", "seed", "loss", "rollouts.behaviour", *(name for name in MAY_CHANGE if name not in _PROTOCOL))
"""Of the place or of a method, not of the protocol; the loss is named by itself."""
_PAIR = ("models.student", "models.teacher", "data.path", "data.repo")


def deviations(config: RunConfig) -> list[tuple[str, str, str]]:
    """(field, here, the paper's) of each setting that differs; the pair and the data are always among them."""
    own = {"name": config.name, "data": config.data, "loss": config.loss, "server": config.server}
    pair = {"student": config.models.student, "teacher": config.models.teacher}
    paper = dict(_flat(RunConfig(**own, models=pair).model_dump(mode="json")))
    here = dict(_flat(config.model_dump(mode="json")))
    return [
        (name, str(value), "–" if name in _PAIR else str(paper[name]))
        for name, value in here.items()
        if (name in _PROTOCOL or not _is_own(name)) and name in paper
        if value != paper[name] or (name in _PAIR and value is not None)
    ]


def _is_own(name: str) -> bool:
    return any(name == own or name.startswith(f"{own}.") for own in _OWN)


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value

"""Reads a configuration: a YAML file, then ``key.sub=value`` overrides, then every check."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from sglang_trb.launch.server_config import UNREADABLE, StrictLoader
from trainer.config.run import RunConfig
from trainer.errors import TrainerError

_VARIANTS = ("behaviour", "loss")
"""Sections that are one of several, told apart by a field of their own."""


class WrongConfig(TrainerError, ValueError):
    """The configuration cannot be used; the message has a line for each wrong field."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read, override and check a configuration.

    Args:
        path: YAML file.
        overrides: ``optimisation.learning_rate=1e-3``; the value is YAML, and null deletes nothing but sets null.

    Raises:
        WrongConfig: with every wrong field: its dotted name, what came, what is allowed.
    """
    try:
        return RunConfig.model_validate(read_yaml(path, overrides))
    except ValidationError as error:
        raise WrongConfig("\n".join(explained(error, RunConfig))) from None


def dump_config(config: BaseModel) -> str:
    """The whole configuration as YAML, defaults filled in; `load_config` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_yaml(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A file's values with the overrides in their place, not checked.

    Raises:
        WrongConfig: the file cannot be read as a mapping, or an override as one.
    """
    values = _mapping(path)
    for override in overrides:
        _apply(values, override)
    return values


def _mapping(path: str | Path) -> dict[str, Any]:
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise WrongConfig(f"--config: got {str(path)!r}; allowed: a YAML file ({error.strerror})") from None
    except UnicodeDecodeError:
        raise WrongConfig(f"--config: got {str(path)!r}; allowed: a YAML file in UTF-8") from None
    except UNREADABLE as error:
        raise WrongConfig(f"--config: got {str(path)!r}; allowed: a YAML file ({_on_a_line(error)})") from None
    if not isinstance(values, dict):
        raise WrongConfig(f"{path}: got {type(values).__name__}; allowed: a mapping of the configuration's fields")
    return values


def _on_a_line(error: Exception) -> str:
    return " ".join(str(error).split())


class _Loader(StrictLoader):
    """YAML 1.1 reads 1e-5 as text; people mean a number."""


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).replace("_", ""))


_Loader.add_constructor("!exponent", _number)
_Loader.add_implicit_resolver(
    "!exponent", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _apply(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not all(name.split(".")):
        raise WrongConfig(f"override: got {override!r}; allowed: key.sub=value")
    try:
        value = yaml.load(text, _Loader)
    except UNREADABLE as error:
        shown = text if len(text) < 100 else text[:100] + "…"
        raise WrongConfig(f"{name}: got {shown!r}; allowed: a YAML value ({_on_a_line(error)})") from None
    *sections, last = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise WrongConfig(f"override: got {override!r}; allowed: a field below {section!r}, which is a plain value")
    values[last] = value


def explained(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    """A line for each wrong field of a configuration: its dotted name, what came, what is allowed.

    Args:
        error: of a validation.
        model: that the values were for.
    """
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        # pydantic names the chosen variant too, as in rollouts.behaviour.trb.epsilon
        path = [part for above, part in pairwise(["", *path]) if above not in _VARIANTS]
        name = ".".join(path)
        if problem["type"] == "extra_forbidden":
            yield f"{name}: there is no such field{_suggestion(model, path)}"
        elif problem["type"] == "missing":
            yield f"{name}: a value is required"
        elif problem["type"] == "value_error":  # our own checks, which say themselves what came
            yield f"{name}: {problem['ctx']['error']}" if name else str(problem["ctx"]["error"])
        else:
            allowed = problem["msg"].replace("a valid tuple", "a list")
            yield f"{name or 'configuration'}: got {problem['input']!r}; allowed: {allowed}"


def _suggestion(model: type[BaseModel], path: Sequence[str]) -> str:
    fields = _fields_at(model, path[:-1])
    close = difflib.get_close_matches(path[-1], fields, n=1)
    if close:
        return f"; did you mean {'.'.join([*path[:-1], close[0]])}?"
    return f"; there are: {', '.join(fields)}" if fields else ""


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    there: Any = model
    for part in path:
        field = getattr(there, "model_fields", {}).get(part)
        if field is None:
            return []
        there = field.annotation
    return list(getattr(there, "model_fields", {}))

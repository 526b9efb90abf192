"""The page of a run's configuration: every field, from the classes that read it."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

from mkdocs.structure.files import File, Files
from pydantic import BaseModel

from trainer.config.run import RunConfig

_INTRODUCTION = """# Configuration of a run

One YAML file, read by `trb train --config FILE`; `key.sub=value` after it overrides a field. A field that is not listed
here is refused, with the nearest name. `trb train --config FILE --dry-run` prints the whole configuration, with its
defaults.
"""


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """mkdocs's event: adds the page."""
    files.append(File.generated(config, "configuration.md", content=page()))
    return files


def page() -> str:
    """The page as Markdown."""
    return _INTRODUCTION + "\n".join(_section("", RunConfig))


def _section(name: str, model: type[BaseModel]) -> Iterator[str]:
    title = f"`{name}`" if name else "At the top"
    about = (model.__doc__ or "").strip().split("\n")[0]
    yield f"\n## {title}\n\n{about}\n\n| field | default | meaning |\n|---|---|---|"
    deeper: list[tuple[str, type[BaseModel]]] = []
    for field_name, field in model.model_fields.items():
        full = f"{name}.{field_name}" if name else field_name
        inner = [option for option in _options(field.annotation) if _is_section(option)]
        variants = len(inner) > 1
        deeper += [(f"{full} ({_tag(option)})" if variants else full, option) for option in inner]
        default = "required" if field.is_required() else _shown(field.get_default(call_default_factory=True))
        yield f"| `{field_name}` | {default} | {(field.description or '').replace('|', '&#124;')} |"
    for path, option in deeper:
        yield from _section(path, option)


def _options(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, typing.Annotated, tuple, list):
        return [inner for argument in typing.get_args(annotation) for inner in _options(argument)]
    return [annotation]


def _is_section(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, BaseModel)


def _tag(option: type[BaseModel]) -> str:
    field = option.model_fields.get("method") or option.model_fields.get("name")
    return str(typing.get_args(field.annotation)[0]) if field is not None else option.__name__


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "see below"
    return (
        "`null`"
        if value is None
        else "none"
        if value == ()
        else f"`{value}`".lower()
        if isinstance(value, bool)
        else f"`{value}`"
    )

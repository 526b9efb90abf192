"""No public name without a docstring, its own or the one of what it overrides."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest

import sglang_trb
import trainer


def modules() -> list[str]:
    packages = (sglang_trb, trainer)
    found = [m.name for p in packages for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")]
    return [p.__name__ for p in packages] + [name for name in found if not name.rpartition(".")[2].startswith("_")]


def undocumented(module: ModuleType) -> Iterator[str]:
    """Public classes, functions and methods that the module defines and nobody describes."""
    if not module.__doc__:
        yield module.__name__
    for name, item in vars(module).items():
        own = getattr(item, "__module__", None) == module.__name__
        if name.startswith("_") or not own or not (inspect.isclass(item) or inspect.isfunction(item)):
            continue
        if not inspect.getdoc(item) or not item.__doc__:
            yield f"{module.__name__}.{name}"
        if inspect.isclass(item):
            yield from undocumented_members(item)


def undocumented_members(owner: type) -> Iterator[str]:
    for name, member in vars(owner).items():
        described = getattr(member, "__func__", member)  # class and static methods
        callable_or_property = inspect.isfunction(described) or isinstance(described, property)
        if not name.startswith("_") and callable_or_property and not inspect.getdoc(getattr(owner, name)):
            yield f"{owner.__module__}.{owner.__name__}.{name}"


@pytest.mark.parametrize("name", modules())
def test_every_public_name_is_described(name):
    assert list(undocumented(importlib.import_module(name))) == []


def test_a_missing_docstring_is_found():
    module = ModuleType("made_up", "Here.")
    exec("class A:\n    def b(self): ...\n    @property\n    def c(self): ...\ndef d(): ...", vars(module))
    assert [*undocumented(module)] == ["made_up.A", "made_up.A.b", "made_up.A.c", "made_up.d"]

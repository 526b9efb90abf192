"""The table of touch points is whole, and the installed SGLang is the one that it was checked against."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest

import sglang_trb.engine
from sglang_trb.engine.touch_points.checked import CHECKED_SGLANG, DIGESTS, FILE, described
from sglang_trb.engine.touch_points.page import page
from sglang_trb.engine.touch_points.points import How, TouchPoint
from sglang_trb.engine.touch_points.source import Sources
from sglang_trb.engine.touch_points.table import TOUCH_POINTS

ROOT = Path(sglang_trb.__file__).parents[1]
ENGINE = Path(sglang_trb.engine.__file__).parent
HOW = "give it a line in touch_points/table.py; then run touch_points.checked and touch_points.page, as their heads say"
BY_OURS = [pytest.param(point, id=point.name) for point in TOUCH_POINTS if point.how is not How.USED]


@pytest.fixture(scope="module")
def sources() -> Sources:
    installed = Sources.installed()
    assert installed is not None
    return installed


def imports(file: Path) -> Iterator[tuple[str, ast.ImportFrom | ast.Import]]:
    """What a file imports from SGLang, by full name, with the statement."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sglang":
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names if alias.name.split(".")[0] == "sglang")


def engine_modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(sglang_trb.engine.__path__, "sglang_trb.engine."):
        yield importlib.import_module(found.name)


def subclasses() -> Iterator[tuple[type, type]]:
    """Our classes below SGLang's, each with the nearest of those."""
    for module in engine_modules():
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ == module.__name__:
                for base in cls.__bases__:
                    above = next((b for b in base.__mro__ if b.__module__.startswith("sglang.")), None)
                    if above is not None:
                        yield cls, above


def leaned_on(cls: type) -> set[str]:
    """What a class defines, and what its methods take from ``self``, ``super()`` or a name for the base."""
    (node,) = ast.parse(dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    functions = (s.name for s in node.body if isinstance(s, ast.FunctionDef | ast.AsyncFunctionDef))
    assigned = (target for s in node.body if isinstance(s, ast.Assign) for target in s.targets)
    annotated = (s.target for s in node.body if isinstance(s, ast.AnnAssign))
    names = {*functions, *(target.id for target in (*assigned, *annotated) if isinstance(target, ast.Name))}
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute):
            holder = part.value
            name = holder.id if isinstance(holder, ast.Name) else ""
            through_super = isinstance(holder, ast.Call) and getattr(holder.func, "id", "") == "super"
            if name in ("self", "cls", "_base") or through_super:
                names.add(part.attr)
    return names


def test_the_installed_sglang_is_the_checked_one(sources: Sources) -> None:
    assert described(sources) == FILE.read_text(encoding="utf-8"), "see touch_points/checked.py"


def test_every_import_has_an_entry() -> None:
    imported = {name for file in ENGINE.rglob("*.py") for name, _ in imports(file)}
    assert len(imported) > 50
    assert imported - DIGESTS.keys() == set(), HOW


def test_every_member_that_ours_lean_on_has_an_entry(sources: Sources) -> None:
    found = list(subclasses())
    assert len(found) > 20
    covered, missing = {sources.find(name) for name in DIGESTS}, set()
    for cls, base in found:
        targets = [point.target for point in TOUCH_POINTS if point.target.endswith(f".{base.__name__}")]
        assert targets, f"{cls.__name__} is a subclass of {base.__name__}, which has no entry"
        for name in leaned_on(cls):
            if (definition := sources.find(f"{targets[0]}.{name}")) is not None and definition not in covered:
                missing.add(f"{targets[0]}.{name}")
    assert missing == set(), HOW


@pytest.mark.parametrize("point", BY_OURS)
def test_ours_is_what_the_entry_says(point: TouchPoint) -> None:
    ours: Any = point.replacement()
    theirs = pkgutil.resolve_name(point.target)
    if point.how in (How.REPLACED, How.SUBCLASSED):
        assert issubclass(ours, theirs)
    else:
        assert callable(ours) and callable(theirs)


def test_what_uses_an_object_is_there() -> None:
    for point in TOUCH_POINTS:
        assert point.reason and point.proof
        if point.how is How.USED:
            assert isinstance(point.replacement(), ModuleType), point.name


def test_only_the_engine_imports_sglang() -> None:
    others = {
        file.relative_to(ROOT): name
        for package in ("sglang_trb", "trainer")
        for file in (ROOT / package).rglob("*.py")
        if ENGINE not in file.parents
        for name, _ in imports(file)
    }
    assert others == {}


def test_proofs_name_files_that_are_there() -> None:
    named = {path for point in TOUCH_POINTS for path in re.findall(r"tests/[\w/]+\.py", point.proof)}
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).is_file()] == []


VERSION = re.compile(r"sglang(?:`|\]\([^)]*\))?(?:==| |-)(\d+\.\d+\.\d+)", re.IGNORECASE)
HISTORY = ("CHANGELOG.md", "docs/sglang_versions.md", "docs/decisions.md")
"""What speaks of other versions."""


def test_the_version_is_the_same_wherever_it_stands() -> None:
    patterns = ("*.md", "*.toml", "*.cff", "docs/**/*.md", "requirements/*", "scripts/*", "*.py", "sglang_trb/**/*.py")
    files = {file for pattern in patterns for file in ROOT.glob(pattern)} - {ROOT / name for name in HISTORY}
    mentions = {(file.name, version) for file in files for version in VERSION.findall(file.read_text(encoding="utf-8"))}
    assert {"pyproject.toml", "cpu.lock", "cpu-no-deps.in", "README.md"} <= {name for name, _ in mentions}
    assert {version for _, version in mentions} == {CHECKED_SGLANG}, mentions


def test_the_page_is_written_from_the_table() -> None:
    assert (ROOT / "docs" / "touch_points.md").read_text(encoding="utf-8") == page()

"""The rooms of both packages: who imports whom, what each says of itself, and the pictures and pages about them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import import_graph

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("sglang_trb", "trainer")


def test_imports_keep_their_contracts():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "Contracts: 5 kept, 0 broken." in done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_every_arrow_goes_down(package):
    row = {room: i for i, rooms in enumerate(import_graph.layers(package)) for room in rooms}
    arrows = [(room, other) for room, below in import_graph.imports(package).items() for other in below]
    assert arrows and all(row[room] < row[other] for room, other in arrows)


def test_the_picture_is_current():
    assert import_graph.PICTURE.read_text(encoding="utf-8") == import_graph.drawing(), "run scripts/import_graph.py"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_map_has_every_room_and_its_sentence(package):
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    for room in (room for rooms in import_graph.layers(package) for room in rooms):
        line = re.search(rf"^\| `{package}[/.]{room}[^`]*` \| (.+) \|$", page, re.M)
        assert line, f"docs/architecture.md: no row for {package}/{room}"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_map_names_files_that_are_there(package):
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(rf"`({package}/[\w/]+(?:\.py|/))`", page))
    assert named and all((ROOT / path).exists() for path in named), [p for p in named if not (ROOT / p).exists()]


def test_every_room_says_what_it_is_for():
    for package in PACKAGES:
        for path in (ROOT / package).rglob("__init__.py"):
            assert ast.get_docstring(ast.parse(path.read_text())), path

"""Draws docs/pictures/rooms.svg: the rooms of both packages, and who imports whom.

    python scripts/import_graph.py [--check]

The rows are the layers of import-linter's contracts in pyproject.toml, so every arrow goes down. An arrow that follows
from others is left out, and so are those to `errors`, which all may import. ``--check`` says whether the picture is
current, and writes nothing.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs/pictures/rooms.svg"
WIDTH, COLUMN, ROW, BOX = 1240, 620, 84, 46
COLOURS = {"sglang_trb": "#dbe7f6", "trainer": "#e3f1de"}


def layers(package: str) -> list[list[str]]:
    """The rooms of a package, a list a row, from top to bottom."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    contract = next(c for c in settings["contracts"] if c.get("containers") == [package])
    return [re.split(r" [|:] ", layer) for layer in contract["layers"]]


def imports(package: str) -> dict[str, set[str]]:
    """Of each room of a package, the rooms that it imports; those that follow from others are left out."""
    graph = grimp.build_graph(package)
    rooms = [room for row in layers(package) for room in row]
    direct: dict[str, set[str]] = {room: set() for room in rooms}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            ours, theirs = (name.removeprefix(f"{package}.").split(".")[0] for name in (module, imported))
            if ours != theirs and ours in direct and theirs in direct:
                direct[ours].add(theirs)
    return {room: below - {far for near in below for far in reached(direct, near)} for room, below in direct.items()}


def reached(direct: dict[str, set[str]], room: str) -> set[str]:
    """All rooms below one."""
    return set().union(*({near} | reached(direct, near) for near in direct[room]))


def purpose(package: str, room: str) -> str:
    """The first sentence of what a room says of itself."""
    path = ROOT / package / room / "__init__.py"
    text = ast.get_docstring(ast.parse((path if path.is_file() else ROOT / package / f"{room}.py").read_text())) or ""
    return re.split(r"(?<=[.:]) ", text.split("\n\n")[0].replace("\n", " ").replace("`", ""))[0].rstrip(".:")


def places(package: str, left: int) -> dict[str, tuple[int, int, int]]:
    """Of each room its x, y and width."""
    found = {}
    for row, rooms in enumerate(layers(package)):
        width = min(190, (COLUMN - 30) // len(rooms) - 10)
        start = left + (COLUMN - len(rooms) * (width + 10) + 10) // 2
        for i, room in enumerate(rooms):
            found[room] = (start + i * (width + 10), 60 + row * ROW, width)
    return found


def drawing() -> str:
    """The picture as SVG."""
    height = 60 + ROW * max(len(layers(package)) for package in COLOURS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="14" fill="#1d2733"><defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#66788a"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for column, (package, colour) in enumerate(COLOURS.items()):
        left = column * COLUMN
        parts.append(f'<text x="{left + COLUMN // 2}" y="34" text-anchor="middle" font-size="19">{package}</text>')
        at = places(package, left)
        for room, below in imports(package).items():
            x, y, width = at[room]
            for other in sorted(below - {"errors"}):
                to_x, to_y, to_width = at[other]
                start, end = (x + width // 2, y + BOX), (to_x + to_width // 2, to_y - 2)
                middle = (start[1] + end[1]) // 2
                parts.append(
                    f'<path d="M{start[0]} {start[1]}C{start[0]} {middle} {end[0]} {middle} {end[0]} {end[1]}" '
                    'fill="none" stroke="#66788a" marker-end="url(#tip)"/>'
                )
        for room, (x, y, width) in at.items():
            parts.append(
                f"<g><title>{escape(purpose(package, room))}</title>"
                f'<rect x="{x}" y="{y}" width="{width}" height="{BOX}" rx="7" fill="{colour}" stroke="#66788a"/>'
                f'<text x="{x + width // 2}" y="{y + 28}" text-anchor="middle">{room}</text></g>'
            )
    return "\n".join([*parts, "</svg>", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the picture is current")
    arguments = parser.parse_args()
    picture = drawing()
    if arguments.check:
        current = PICTURE.is_file() and PICTURE.read_text(encoding="utf-8") == picture
        print(f"{PICTURE.relative_to(ROOT)} is {'current' if current else 'old: run scripts/import_graph.py'}")
        return 0 if current else 1
    PICTURE.write_text(picture, encoding="utf-8")
    print(f"wrote {PICTURE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Definitions are found in sources that are never imported, and digests say when one has changed."""

from __future__ import annotations

import ast
import zipfile
from pathlib import Path
from textwrap import dedent

import pytest

from sglang_trb.engine.touch_points.source import Definition, Sources, digest

FILES = {
    "sglang/__init__.py": "",
    "sglang/base.py": """
        class Base:
            limit: int = 3

            def __init__(self):
                self.first, self.pair = 1, (2, 3)
                self.first = 4

            def kept(self): ...
        """,
    "sglang/part/__init__.py": """
        from .thing import Thing as Renamed
        from .thing import *
        """,
    "sglang/part/thing.py": """
        from sglang.base import Base
        from sglang.part import Looping

        try:
            import fast
        except ImportError:
            SPEED = "slow"

        @decorated
        class Thing(Base):
            '''A thing.'''

            def own(self):
                return self.pair

        def function(): ...
        """,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path, text in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(dedent(text))
    return tmp_path


def of(text: str) -> str:
    """The digest of the one statement of a text."""
    return digest(ast.parse(dedent(text)).body[0])


@pytest.mark.parametrize(
    ("name", "path", "line"),
    [
        ("sglang.part.thing", "sglang/part/thing.py", 1),
        ("sglang.part.thing.SPEED", "sglang/part/thing.py", 8),
        ("sglang.part.Renamed.own", "sglang/part/thing.py", 14),
        ("sglang.part.function", "sglang/part/thing.py", 17),
        ("sglang.part.Thing.kept", "sglang/base.py", 9),
        ("sglang.part.Thing.limit", "sglang/base.py", 3),
        ("sglang.part.Thing.first", "sglang/base.py", 6),
        ("sglang.part.Thing.pair", "sglang/base.py", 6),
    ],
)
def test_a_definition_is_found(folder: Path, name: str, path: str, line: int) -> None:
    found = Sources.at(folder).find(name)
    assert found is not None and (found.path, found.line) == (path, line)


@pytest.mark.parametrize(
    "name", ["sglang.nowhere", "sglang.part.Thing.gone", "sglang.part.Looping", "sglang.part.function.inner", "other.x"]
)
def test_what_is_not_there_is_none(folder: Path, name: str) -> None:
    assert Sources.at(folder).find(name) is None


def test_a_wheel_reads_as_its_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    wheel = tmp_path_factory.mktemp("wheels") / "sglang-1.2.3-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in FILES:
            archive.write(folder / path, path)
    found = Sources.at(wheel)
    assert found.version == "1.2.3"
    assert isinstance(found.find("sglang.part.function"), Definition)
    assert found.find("sglang.part.Thing") == Sources.at(folder).find("sglang.part.Thing")


def test_a_folder_without_sglang_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no sglang/__init__\.py"):
        Sources.at(tmp_path)


PLAIN = """
    def f(a, b: int = 2, *, c="x"):
        if a:
            return f"{a!r:>{b}} of {c}"
        return (yield b)
"""


def test_formatting_comments_and_docstrings_are_no_change() -> None:
    formatted = """
    def f(
        a,
        b: int = 2,
        *,
        c='x',  # a comment
    ):
        '''What it does.'''
        if a:
            return (
                f"{a!r:>{b}}"
                f" of {c}"
            )
        'a text that stands alone'
        return (yield (b))
    """
    assert of(formatted) == of(PLAIN)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("= 2", "= 3"),
        ("= 2", "= 2.0"),
        ('"x"', 'b"x"'),
        ("if a", "if not a"),
        ("*, c", "c"),
        ("b: int", "b"),
        ("!r", "!s"),
        (" of ", " Of "),
        ("def f", "async def f"),
        ("def f", "def g"),
        ("    def", "    @cached\n    def"),
    ],
)
def test_a_change_of_meaning_is_a_change(old: str, new: str) -> None:
    assert PLAIN.count(old) >= 1
    assert of(PLAIN.replace(old, new)) != of(PLAIN)


def test_a_class_is_its_fields_not_its_methods() -> None:
    plain = "class C(B):\n    x: int = 1\n    def f(self): return 1\n"
    assert of(plain) == of(plain.replace("return 1", "return 2")) == of(plain + "    def g(self): ...\n")
    for change in (("(B)", ""), ("= 1\n", "= 2\n"), ("class", "@frozen\nclass"), ("    x: int = 1\n", "")):
        assert of(plain.replace(*change)) != of(plain)


def test_digests_are_the_same_on_every_python() -> None:
    """Pinned, so that each Python that runs the tests shows it: syntax trees differ from version to version."""
    tricky = """
    def f(a: T, /, *rest, **named) -> "T":
        match a:
            case {"k": [1, *_]} if (n := len(rest)): return f'{n=} {named["k"]!r:{n}.{n}f}' "x" f"{{}}"
        return [*rest], {**named}, lambda *, k=-1: ..., a[1:2, ::3], 1e-9j, b"\\0", not None
    """
    assert of(tricky) == "5b3c12ef501e9ce9"

"""SGLang's sources, read and never imported: where an object is defined, and a digest of its definition.

Needs the standard library alone, so that `trb doctor` can compare versions of SGLang that are not installed.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

PACKAGE = "sglang"

_DIGEST_DIGITS = 16

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Definition = _Function | ast.ClassDef | ast.Assign | ast.AnnAssign
_Place = tuple["_Module", _Definition]


@dataclasses.dataclass(frozen=True, slots=True)
class Definition:
    """Where an object is defined, and what its definition says.

    Attributes:
        path: the file, from the package's folder on.
        line: from 1.
        digest: equal for definitions that differ in formatting, comments and docstrings alone, on every Python from
            3.11 on. Of a class: its decorators, bases, fields and constants; its methods have digests of their own.
    """

    path: str
    line: int
    digest: str


class Sources:
    """The Python files of one SGLang: installed, unpacked, or in a wheel.

    Args:
        version: what it is called in a report.
        read: the text of a file, given its path from the package's folder on; None where there is no such file.
    """

    def __init__(self, version: str, read: Callable[[str], str | None]) -> None:
        self.version = version
        self._read = read
        self._modules: dict[str, _Module | None] = {}

    @classmethod
    def installed(cls) -> Sources | None:
        """The SGLang of this environment; None where there is none."""
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            return None
        return cls(importlib.metadata.version(PACKAGE), _reader(Path(spec.submodule_search_locations[0]).parent))

    @classmethod
    def at(cls, path: Path) -> Sources:
        """Of a wheel, or of the folder that one was unpacked into.

        Raises:
            ValueError: SGLang is not there.
        """
        if path.is_file() and zipfile.is_zipfile(path):
            found = cls(_version_in(path.name), _wheel_reader(zipfile.ZipFile(path)))
        else:
            described = next(path.glob(f"{PACKAGE}-*.dist-info"), path)
            found = cls(_version_in(described.name), _reader(path))
        if found.module(PACKAGE) is None:
            raise ValueError(f"{path} holds no {PACKAGE}/__init__.py")
        return found

    def find(self, name: str) -> Definition | None:
        """The definition of a module's function, class or constant, or of a class's method or attribute.

        Args:
            name: with dots, ``sglang.srt.managers.scheduler.Scheduler.abort_request``. Re-exports and base classes are
                followed; an attribute that is set on ``self`` counts as defined there. A module has no digest.
        """
        parts = name.split(".")
        whole = self.module(name)
        if whole is not None:
            return Definition(whole.path, 1, "")
        for count in range(len(parts) - 1, 0, -1):
            module = self.module(".".join(parts[:count]))
            if module is not None:
                place = module.resolve(parts[count:])
                if place is None:
                    return None
                holder, node = place
                return Definition(holder.path, node.lineno, digest(node))
        return None

    def module(self, name: str) -> _Module | None:
        """A module by its dotted name."""
        if name not in self._modules:
            stem = name.replace(".", "/")
            self._modules[name] = None
            for path in (f"{stem}.py", f"{stem}/__init__.py"):
                text = self._read(path)
                if text is not None:
                    self._modules[name] = _Module(self, name, path, text)
                    break
        return self._modules[name]


class _Module:
    """One file, parsed when it is first asked."""

    def __init__(self, sources: Sources, name: str, path: str, text: str) -> None:
        self.sources, self.name, self.path, self._text = sources, name, path, text

    @cached_property
    def _body(self) -> list[ast.stmt]:
        return list(_unconditional(ast.parse(self._text).body))

    def resolve(self, parts: list[str], seen: frozenset[tuple[str, str]] = frozenset()) -> _Place | None:
        """The module that defines what ``parts`` name here, and the defining statement."""
        first, *rest = parts
        if (self.name, first) in seen:
            return None
        seen |= {(self.name, first)}
        node = _defined(self._body, first)
        if node is not None:
            return self._member(node, rest, seen) if rest else (self, node)
        for statement in self._body:
            if isinstance(statement, ast.ImportFrom):
                for alias in statement.names:
                    if alias.name == "*" or (alias.asname or alias.name) == first:
                        name = first if alias.name == "*" else alias.name
                        source = self.sources.module(self._absolute(statement))
                        place = source and source.resolve([name, *rest], seen)
                        if place:
                            return place
        return None

    def _member(self, node: _Definition, rest: list[str], seen: frozenset[tuple[str, str]]) -> _Place | None:
        if not isinstance(node, ast.ClassDef):
            return None
        first, *deeper = rest
        own = _defined(list(_unconditional(node.body)), first) or _set_on_self(node, first)
        if own is not None:
            return self._member(own, deeper, seen) if deeper else (self, own)
        for base in node.bases:
            if isinstance(base, ast.Name):
                place = self.resolve([base.id, *rest], seen)
                if place:
                    return place
        return None

    def _absolute(self, statement: ast.ImportFrom) -> str:
        if not statement.level:
            return statement.module or ""
        package = self.name.split(".")
        up = statement.level - self.path.endswith("/__init__.py")
        return ".".join(filter(None, [*package[: len(package) - up], statement.module]))


def digest(node: ast.AST) -> str:
    """Of a definition; see `Definition`."""
    if isinstance(node, ast.ClassDef):
        fields = [statement for statement in node.body if not isinstance(statement, _Function)]
        node = ast.ClassDef(node.name, node.bases, node.keywords, fields, node.decorator_list)
    return hashlib.sha256(_canonical(node).encode()).hexdigest()[:_DIGEST_DIGITS]


def _canonical(value: object) -> str:
    """A text for what a syntax tree says; `ast.dump` differs from one Python to the next, this does not.

    Fields that are empty are left out: later versions add such (``type_params``). An f-string's constant parts are
    joined, which the parsers split differently.
    """
    if isinstance(value, ast.Constant):
        return f"{type(value.value).__name__}:{value.value!r}"
    if isinstance(value, ast.JoinedStr):
        return f"JoinedStr({''.join(_joined(value.values))})"
    if isinstance(value, ast.AST):
        names = [name for name in value._fields if name not in ("ctx", "kind", "type_comment")]
        fields = ((name, _canonical(getattr(value, name, None))) for name in names)
        return f"{type(value).__name__}({','.join(f'{name}={text}' for name, text in fields if text)})"
    if isinstance(value, list):
        items = [_canonical(item) or "-" for item in value if not _is_docstring(item)]
        return f"[{','.join(items)}]" if items else ""
    return "" if value is None else repr(value)


def _joined(values: Iterable[ast.expr]) -> Iterator[str]:
    constant = ""
    for value in values:
        if isinstance(value, ast.Constant):
            constant += str(value.value)
        else:
            yield from (repr(constant),) * bool(constant)
            constant = ""
            yield _canonical(value)
    yield from (repr(constant),) * bool(constant)


def _is_docstring(item: object) -> bool:
    """Also of an attribute: a text that stands alone does nothing."""
    return isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str)


def _unconditional(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """A body's statements, those under ``if`` and ``try`` too."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            yield from _unconditional([*statement.body, *statement.orelse])
            for handler in getattr(statement, "handlers", ()):
                yield from _unconditional(handler.body)


def _defined(body: list[ast.stmt], name: str) -> _Definition | None:
    """The statement that gives the name its value; of several functions the last, which overloads come before."""
    functions = [s for s in body if isinstance(s, _Function | ast.ClassDef) and s.name == name]
    if functions:
        return functions[-1]
    return next((s for s in body if isinstance(s, ast.Assign | ast.AnnAssign) and name in _targets(s)), None)


def _targets(statement: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _set_on_self(node: ast.ClassDef, name: str) -> ast.Assign | ast.AnnAssign | None:
    """Where a method first sets an attribute of its instance."""
    for statement in ast.walk(node):
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            if any(_is_own(part, name) for target in targets for part in ast.walk(target)):
                return statement
    return None


def _is_own(target: ast.AST, name: str) -> bool:
    """Whether it is ``self.NAME``, set and not read."""
    return (
        isinstance(target, ast.Attribute)
        and isinstance(target.ctx, ast.Store)
        and isinstance(target.value, ast.Name)
        and (target.value.id, target.attr) == ("self", name)
    )


def _reader(folder: Path) -> Callable[[str], str | None]:
    def read(path: str) -> str | None:
        file = folder / path
        return file.read_text(encoding="utf-8") if file.is_file() else None

    return read


def _wheel_reader(wheel: zipfile.ZipFile) -> Callable[[str], str | None]:
    names = frozenset(wheel.namelist())
    return lambda path: wheel.read(path).decode() if path in names else None


def _version_in(name: str) -> str:
    """Of a wheel's or a distribution's name, ``sglang-VERSION-…``; the name itself where it holds none."""
    parts = name.removesuffix(".dist-info").split("-")
    return parts[1] if len(parts) > 1 and parts[0] == PACKAGE else name

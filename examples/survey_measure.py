"""Measuring Python source: one file, and all of them together."""

from __future__ import annotations

import ast
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: Where statements stand inside of statements.
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")

_FOREIGN = {"site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class LongestFunction:
    """A function's qualified name and its number of lines."""

    name: str
    lines: int


@dataclass(frozen=True)
class Measurement:
    """What there is to say of one file. ``problem`` is why it couldn't be parsed, if so."""

    file: str
    lines: int
    functions: int = 0
    classes: int = 0
    longest: LongestFunction | None = None
    imports: frozenset[str] = frozenset()
    problem: str | None = None


@dataclass(frozen=True)
class Package:
    """The files of one folder of the library; the single modules count as one package."""

    name: str
    files: int
    lines: int


@dataclass(frozen=True)
class Survey:
    """All measurements together, the largest first wherever there is an order."""

    python: str
    files: int
    lines: int
    functions: int
    classes: int
    packages: list[Package]
    longest: list[tuple[str, LongestFunction]]
    imported: dict[str, int]
    unparsed: list[Measurement]
    sizes: list[int] = field(repr=False)


def list_files(root: str, limit: int | None) -> list[str]:
    """Return the source files below ``root``, or ``limit`` of them, spread evenly."""
    paths = (path.relative_to(root) for path in Path(root).rglob("*.py"))
    files = sorted(path.as_posix() for path in paths if not _FOREIGN & set(path.parts))
    if limit is None or limit >= len(files):
        return files
    return [files[index * len(files) // limit] for index in range(limit)]


def measure_file(root: str, file: str) -> Measurement:
    """Parse and measure ``file``; one that can't be parsed has lines and a problem."""
    source = Path(root, file).read_bytes()
    lines = len(source.splitlines())
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        return Measurement(file, lines, problem=f"{type(error).__name__}: {reason}")
    functions, classes, imports = 0, 0, set[str]()
    longest: LongestFunction | None = None
    for statement, name in _statements(tree):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            functions += 1
            length = (statement.end_lineno or statement.lineno) - statement.lineno + 1
            if longest is None or length > longest.lines:
                longest = LongestFunction(name, length)
        elif isinstance(statement, ast.ClassDef):
            classes += 1
        elif isinstance(statement, ast.Import):
            imports |= {alias.name.partition(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            imports.add(statement.module.partition(".")[0])
    return Measurement(file, lines, functions, classes, longest, frozenset(imports))


def _statements(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Yield every statement below ``tree``, with the qualified name of where it stands."""
    waiting: list[tuple[ast.AST, str]] = [(tree, "")]
    while waiting:
        node, name = waiting.pop()
        yield node, name
        for block in _BLOCKS:
            for inner in getattr(node, block, ()):
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    waiting.append((inner, f"{name}.{inner.name}" if name else inner.name))
                else:
                    waiting.append((inner, name))


def aggregate(measurements: Sequence[Measurement]) -> Survey:
    """Return everything that the report and the picture show."""
    files, lines, imported = Counter[str](), Counter[str](), Counter[str]()
    for each in measurements:
        folder, separator, _ = each.file.partition("/")
        package = folder if separator else "single modules"
        files[package] += 1
        lines[package] += each.lines
        imported.update(each.imports)
    longest = [(each.file, each.longest) for each in measurements if each.longest is not None]
    longest.sort(key=lambda pair: (-pair[1].lines, pair[0]))
    return Survey(
        python=platform.python_version(),
        files=len(measurements),
        lines=sum(lines.values()),
        functions=sum(each.functions for each in measurements),
        classes=sum(each.classes for each in measurements),
        packages=[Package(name, files[name], count) for name, count in _ranked(lines)],
        longest=longest[:10],
        imported=dict(_ranked(imported)[:15]),
        unparsed=[each for each in measurements if each.problem is not None],
        sizes=sorted((each.lines for each in measurements), reverse=True),
    )


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))

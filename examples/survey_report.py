"""What a survey looks like: a page of Markdown, and a picture as SVG and PNG."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from survey_measure import Survey

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAR, _INK, _FAINT = "#3b6ea5", "#22303c", "#8795a1"


def write_report(survey: Survey, output: str) -> str:
    """Write ``report.md`` into the folder ``output``; return its path."""
    path = Path(output, "report.md")
    _replace(path, lambda temporary: temporary.write_text(_report(survey), encoding="utf-8"))
    return str(path)


def _report(survey: Survey) -> str:
    parts = [
        f"# The standard library of Python {survey.python}",
        f"{survey.files:,} files with {survey.lines:,} lines, {survey.functions:,} functions and "
        f"{survey.classes:,} classes. {len(survey.unparsed)} of the files can't be parsed.",
        "![Lines by package, imports, and lengths of files](survey.svg)",
        "## Largest packages",
        _table(
            ("package", "files", "lines"),
            [(each.name, f"{each.files:,}", f"{each.lines:,}") for each in survey.packages[:15]],
        ),
        "## Longest functions",
        _table(
            ("function", "lines", "file"),
            [(f"`{each.name}`", f"{each.lines:,}", file) for file, each in survey.longest],
        ),
        "## Most imported modules",
        _table(
            ("module", "imported by files"),
            [(f"`{name}`", f"{count:,}") for name, count in survey.imported.items()],
        ),
        "## Files that can't be parsed",
        _table(
            ("file", "lines", "why"),
            [(each.file, f"{each.lines:,}", each.problem or "") for each in survey.unparsed],
        )
        if survey.unparsed
        else "None.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def draw_picture(survey: Survey, output: str) -> list[str]:
    """Draw ``survey.svg`` and ``survey.png`` into the folder ``output``; return their paths."""
    # Loading matplotlib takes longer than a resume does, so it waits until a picture is due.
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.size": 9,
        "text.color": _INK,
        "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK,
        "axes.edgecolor": _FAINT,
        "svg.hashsalt": "survey",
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(11, 6.5), layout="constrained")
        figure.suptitle(
            f"The standard library of Python {survey.python}: "
            f"{survey.files:,} files, {survey.lines:,} lines",
            fontsize=13,
        )
        places = figure.subplot_mosaic([["packages", "imports"], ["packages", "sizes"]])
        largest = {each.name: each.lines for each in survey.packages[:18]}
        _draw_bars(places["packages"], "Lines by package", largest)
        _draw_bars(places["imports"], "Files that import", dict([*survey.imported.items()][:12]))
        _draw_sizes(places["sizes"], survey.sizes)
        paths: list[str] = []
        for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 110})):
            path = Path(output, f"survey.{kind}")
            _replace(path, _saving(figure, kind, options))
            paths.append(str(path))
    return paths


def _draw_bars(axes: Axes, title: str, values: Mapping[str, int]) -> None:
    axes.set_title(title, loc="left")
    bars = axes.barh(list(values), list(values.values()), color=_BAR)
    axes.bar_label(bars, [f"{value:,}" for value in values.values()], padding=3, color=_INK)
    axes.invert_yaxis()
    axes.margins(x=0.16, y=0.01)
    axes.xaxis.set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _draw_sizes(axes: Axes, sizes: list[int]) -> None:
    edges = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
    names = [*(f"<{edge}" if edge < 1000 else f"<{edge // 1000}k" for edge in edges), "more"]
    places = [bisect.bisect_right(edges, size) for size in sizes]
    axes.set_title("Files by number of lines", loc="left")
    bars = axes.bar(names, [places.count(place) for place in range(len(names))], color=_BAR)
    axes.bar_label(bars, padding=2, color=_INK)
    axes.margins(x=0.01, y=0.12)
    axes.yaxis.set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _saving(figure: Any, kind: str, options: dict[str, Any]) -> Callable[[Path], Any]:
    return lambda temporary: figure.savefig(temporary, format=kind, **options)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that a crash leaves the old one or the new one, never half of one."""
    temporary = path.with_suffix(f"{path.suffix}.part")
    write(temporary)
    temporary.replace(path)

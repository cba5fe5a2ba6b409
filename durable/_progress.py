"""The progress bar of ``step.map``, drawn by rich."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from durable._errors import MissingDriverError


def _nothing() -> None:
    """Advance no bar."""


@contextmanager
def progress_bar(
    title: str, total: int, done: int, *, shown: bool
) -> Generator[Callable[[], None]]:
    """Draw a bar that begins at ``done`` of ``total``; the context gives what advances it by one.

    Raises ``MissingDriverError`` if the bar is to be ``shown`` and rich isn't installed.
    """
    if not shown:
        yield _nothing
        return
    rich_progress = _rich("rich.progress")
    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
    )
    console = _rich("rich.console").Console(stderr=True)
    with rich_progress.Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda: bar.advance(task)


def _rich(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDriverError(
            "a progress bar", "rich", "pip install 'durable-steps[cli]'"
        ) from error

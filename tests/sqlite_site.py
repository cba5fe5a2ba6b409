"""What the tests of ``SQLiteStore`` share: claims, ageing, raw rows, connections, processes."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import durable_adapters.sqlite as sqlite_module
import pytest
from durable_adapters._sqlite_schema import open_database
from durable_adapters.sqlite import SQLiteStore

from durable.store import Claim

#: Functions that are called with each connection that a store opens.
Hooks: TypeAlias = list[Callable[[sqlite3.Connection], Any]]

UNFINISHED = frozenset({"pending", "running", "paused", "failed"})


def claim(run_id: str, owner: str = "me", **options: Any) -> Claim:
    settings: dict[str, Any] = {
        "name": "f", "lease": 30.0, "statuses": UNFINISHED, "begin": ("begin",), **options
    }  # fmt: skip
    return Claim(run_id=run_id, owner=owner, **settings)


async def begin(store: SQLiteStore, run_id: str, owner: str = "me", **options: Any) -> int:
    """Claim a run and return its fence."""
    claimed = await store.claim(claim(run_id, owner, **options))
    assert claimed is not None and claimed.granted
    return claimed.log.head.fence


def rows(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute(f"SELECT COUNT(*) FROM durable_{table}").fetchone()[0])


def in_store(path: Path, use: Callable[[SQLiteStore], Awaitable[Any]], **options: Any) -> Any:
    """Return what ``use`` returns for a store on ``path`` in an event loop of its own."""

    async def main() -> Any:
        async with SQLiteStore(path, **options) as store:
            return await use(store)

    return asyncio.run(main())


def hook_connections(monkeypatch: pytest.MonkeyPatch) -> Hooks:
    """Return a list; each function put into it is called with each connection opened later."""
    hooks: Hooks = []

    def open_hooked(path: str, prefix: str, busy_seconds: float) -> sqlite3.Connection:
        connection = open_database(path, prefix, busy_seconds)
        for hook in hooks:
            hook(connection)
        return connection

    monkeypatch.setattr(sqlite_module, "open_database", open_hooked)
    return hooks


def limit_pages(spare: int) -> Callable[[sqlite3.Connection], None]:
    """Return a hook that lets the file grow by ``spare`` pages and no more, as a full disk."""

    def limit(connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + spare}")

    return limit


PRELUDE = """
import asyncio, os, sys
from durable.store import Append, Claim
from durable_adapters.sqlite import SQLiteStore
UNFINISHED = frozenset({"pending", "running", "paused", "failed"})
def claim(run_id, owner):
    return Claim(run_id, "f", owner, 30.0, UNFINISHED, begin=("begin",))
path = sys.argv[1]
"""


def start(path: Path, program: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a Python process that runs ``program`` on the database."""
    code = PRELUDE + textwrap.dedent(program)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 20) -> str:
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0
    return output

"""Where nothing can be written, nothing is executed: a ``StoreError`` that says where."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from pathlib import Path

import pytest
from sqlite_site import Hooks, hook_connections

from durable import StoreError, durable, step


def run_on(url: str) -> list[str]:
    """Run a step on the store; return what was executed, after the ``StoreError`` it ends in."""
    executed: list[str] = []

    async def work() -> None:
        executed.append("work")

    @durable(store=url)
    async def job() -> None:
        executed.append("job")
        await step("work", work)

    with pytest.raises(StoreError) as caught:
        asyncio.run(job.run("r"))
    assert caught.value.__cause__ is not None
    return executed


@pytest.mark.skipif(sys.platform != "linux", reason="only there nobody, not even root, can write")
@pytest.mark.parametrize("url", ["sqlite:////proc/durable.db", "file:///proc/durable"])
def test_a_file_system_that_takes_no_files(url: str) -> None:
    """A run on it ends in ``StoreError`` before its function is called."""
    assert run_on(url) == []


@pytest.mark.parametrize("scheme", ["sqlite", "file"])
def test_a_file_where_a_folder_should_be(scheme: str, tmp_path: Path) -> None:
    """A run below it ends in ``StoreError`` before its function is called."""
    (tmp_path / "taken").write_text("mine")

    assert run_on(f"{scheme}:///{tmp_path}/taken/runs".replace("file:////", "file:///")) == []
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_read_only_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on a database that refuses writes ends in ``StoreError``, nothing executed."""
    hooks: Hooks = hook_connections(monkeypatch)
    hooks.append(read_only)

    assert run_on(f"sqlite:///{tmp_path}/runs.db") == []


def read_only(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA query_only = ON")

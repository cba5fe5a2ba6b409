"""What all tests share: asyncio's debug mode, a header with versions, and which tests are quick."""

from __future__ import annotations

import os
import platform
import sqlite3
from pathlib import Path

import msgspec
import pytest

# Coroutines that nobody awaits, and calls from wrong threads, are errors then.
os.environ.setdefault("PYTHONASYNCIODEBUG", "1")

#: Files whose tests start processes or write to the disk for real.
SLOW = {
    "test_conformance",
    "test_crash",
    "test_demo",
    "test_file_store",
    "test_kv_crash",
    "test_kv_journal",
    "test_readme",
    "test_sqlite_opening",
    "test_sqlite_store",
    "test_sqlite_trouble",
    "test_owners",
    "test_unwritable",
}


def pytest_report_header() -> str:
    return (
        f"SQLite {sqlite3.sqlite_version}, msgspec {msgspec.__version__}, "
        f"{platform.system()} {platform.machine()}"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.fspath).stem in SLOW:
            item.add_marker(pytest.mark.slow)

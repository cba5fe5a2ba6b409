"""What the benchmarks share: medians, floors, temporary stores, and how results are printed."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import statistics
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from durable import KeyValueStore, MemoryStore, open_store

LINE = "0123abcd" + "x" * 150
"""A line of log as long as that of a small step."""


class Floor:
    """The bare driver's durable write of one line."""

    def __init__(self, write: Callable[[], None], read: Callable[[], list[str]]) -> None:
        self.write = write
        self.read = read

    async def awaited(self) -> None:
        """Write one line durably, as an asyncio program without a library would."""
        await asyncio.to_thread(self.write)


@contextmanager
def sqlite_floor(folder: Path) -> Iterator[Floor]:
    """A table like the store's own, on SQLite with WAL and synchronous=FULL."""
    connection = sqlite3.connect(folder / "floor.db", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS log (run INTEGER, sequence INTEGER, line TEXT, "
        "PRIMARY KEY (run, sequence)) WITHOUT ROWID"
    )
    numbers = iter(range(1, 10**9))

    def write() -> None:
        connection.execute("INSERT INTO log VALUES (1, ?, ?)", (next(numbers), LINE))

    def read() -> list[str]:
        rows = connection.execute("SELECT line FROM log WHERE run = 1 ORDER BY sequence")
        return [line for (line,) in rows]

    try:
        yield Floor(write, read)
    finally:
        connection.close()


@contextmanager
def file_floor(folder: Path) -> Iterator[Floor]:
    """A file that each line is appended to, followed by fdatasync."""
    path = folder / "floor.log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    data = f"{LINE}\n".encode()

    def write() -> None:
        os.write(descriptor, data)
        os.fdatasync(descriptor)

    def read() -> list[str]:
        return path.read_text().splitlines()

    try:
        yield Floor(write, read)
    finally:
        os.close(descriptor)


FLOORS = {"sqlite": sqlite_floor, "file": file_floor}


class FiveMethodStore:
    """What anybody may plug in: five methods on a dictionary."""

    def __init__(self) -> None:
        self.data: dict[str, str] = {}

    async def get(self, key: str) -> str | None:
        return self.data.get(key)

    async def set(self, key: str, value: str, *, ttl: float | None = None) -> None:
        self.data[key] = value

    async def delete(self, key: str) -> bool:
        return self.data.pop(key, None) is not None

    async def exists(self, key: str) -> bool:
        return key in self.data

    async def keys(self, pattern: str) -> list[str]:
        start, _, end = pattern.partition("*")
        return sorted(key for key in self.data if key.startswith(start) and key.endswith(end))


def make_store(kind: str, folder: Path) -> KeyValueStore:
    """Return an empty store of the kind ``memory``, ``sqlite``, ``file`` or ``five methods``."""
    match kind:
        case "memory":
            return MemoryStore()
        case "five methods":
            return FiveMethodStore()
        case "sqlite":
            return open_store(f"sqlite:///{folder}/runs.db")
        case _:
            return open_store(f"file://{folder}/runs")


async def close(store: KeyValueStore) -> None:
    """Close the store if it can be closed."""
    aclose: Callable[[], Awaitable[None]] | None = getattr(store, "aclose", None)
    if aclose is not None:
        await aclose()


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder on the disk that the benchmark was started on: a RAM disk would prove nothing."""
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=Path.cwd()) as name:
        yield Path(name)


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Return the seconds that ``work`` took."""
    start = perf_counter()
    await work()
    return perf_counter() - start


def spread(times: Sequence[float]) -> str:
    """Return median and quartiles in microseconds."""
    first, median, third = (1e6 * value for value in statistics.quantiles(times, n=4))
    return f"{median:9.1f} µs  (quartiles {first:.1f} to {third:.1f})"


def row(name: str, value: str, goal: str = "") -> None:
    """Print one result."""
    print(f"  {name:<46} {value}" + (f"   goal: {goal}" if goal else ""))

"""How to make an empty store of each kind, a second client of its data, and all of it older."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from durable_adapters._file_format import (
    HEADER,
    Renewal,
    Tape,
    format_header,
    new_file_id,
    parse_header,
)
from durable_adapters._file_values import format_value, parse_value
from durable_adapters.file import FileStore
from durable_adapters.sqlite import SQLiteStore
from five_method_store import FiveMethodStore

from durable._kv_journal import KeyValueJournal
from durable._leases import HeadRow
from durable._memory import MemoryStore
from durable.testing import FlakyStore


class Hidden:
    """The five methods of a memory store, its journal hidden."""

    def __init__(self) -> None:
        store = MemoryStore()
        self.get, self.set, self.delete = store.get, store.set, store.delete
        self.exists, self.keys = store.exists, store.keys


#: Stores in this process's memory: they follow the clock that a test moves by hand.
IN_MEMORY: dict[str, Callable[[], Any]] = {
    "memory": MemoryStore,
    "flaky": lambda: FlakyStore(MemoryStore()),
}

#: Journals in this process's memory.
JOURNALS_IN_MEMORY: dict[str, Callable[[], Any]] = {
    **IN_MEMORY,
    "kv-memory": lambda: KeyValueJournal(Hidden()),
    "kv-five-methods": lambda: KeyValueJournal(FiveMethodStore()),
}


class OnDisk(NamedTuple):
    """A kind of store whose data are at a path."""

    open: Callable[[Path], Any]
    age: Callable[[Path, str, float], None]


def age_sqlite(path: str | os.PathLike[str], prefix: str, seconds: float) -> None:
    """Make everything stored under ``prefix`` in the file older by ``seconds``."""
    with closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as connection:
        connection.execute(f"UPDATE {prefix}_values SET expires_at = expires_at - ?", (seconds,))
        connection.execute(
            f"""UPDATE {prefix}_runs SET created_at = created_at - ?1,
            updated_at = updated_at - ?1, wake_at = wake_at - ?1, expires_at = expires_at - ?1,
            lease_until = CASE lease_until WHEN 0 THEN 0 ELSE lease_until - ?1 END""",
            (seconds,),
        )


def age_files(folder: Path, prefix: str, seconds: float) -> None:
    """Move every time that is stored ``seconds`` into the past, checksums included."""
    for path in (folder / prefix / "runs").glob("*.log"):
        # A new file in its place: an open store must not take it for the one it knows.
        aged = path.with_suffix(".aged")
        aged.write_bytes(aged_run(path.read_bytes(), seconds, str(path)))
        aged.replace(path)
    for path in (folder / prefix / "values").glob("*.json"):
        found = parse_value(path.read_bytes(), str(path))
        expires_at = earlier(found.expires_at, seconds)
        path.write_bytes(format_value(found.key, found.value, expires_at))


def aged_run(data: bytes, seconds: float, path: str) -> bytes:
    renewal = parse_header(data[:HEADER], path)
    tape, parts, head = Tape(new_file_id()), [b""], b""
    for line in data[HEADER:].split(b"\n")[:-1]:
        kind, rest = line[:1], line[2:-9]
        if kind == b"H":
            tape.sequence = int(rest[:9])
            parts.append(tape.add_head(aged_head(rest[10:], seconds)))
            head = tape.head_crc if line[-8:] == renewal.head else head
        elif kind == b"i":
            parts.append(tape.add_deposit(*msgspec.json.decode(rest)))
        else:
            tape.sequence = int(rest[:9]) - 1
            parts.append(tape.add_records([rest[22:].decode()], final=kind == b"R"))
    lease = max(0.0, renewal.lease_until - seconds)
    expires_at = earlier(renewal.expires_at, seconds)
    parts[0] = format_header(Renewal(tape.file_id, head or b"-" * 8, lease, expires_at))
    return b"".join(parts)


def aged_head(text: bytes, seconds: float) -> HeadRow:
    row = msgspec.json.decode(text, type=HeadRow)
    row.created_at -= seconds
    row.updated_at -= seconds
    row.lease_until = max(0.0, row.lease_until - seconds)
    row.wake_at = earlier(row.wake_at, seconds)
    row.expires_at = earlier(row.expires_at, seconds)
    return row


def earlier(at: float | None, seconds: float) -> float | None:
    return None if at is None else at - seconds


#: Stores on this machine's disk, by the scheme of their URLs.
ON_DISK: dict[str, OnDisk] = {
    "sqlite": OnDisk(SQLiteStore, age_sqlite),
    "file": OnDisk(FileStore, age_files),
}

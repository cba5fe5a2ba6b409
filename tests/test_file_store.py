"""The file store: one readable file per run, safe across processes and crashes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
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

from durable._leases import HeadRow
from durable.testing import journal_checks, store_checks

# How to make the data of a file store older.


def age(folder: Path, prefix: str, seconds: float) -> None:
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


# The promises of the contract.


@pytest.mark.parametrize("check", [*store_checks(), *journal_checks()], ids=str)
def test_contract(check, tmp_path):
    """A file store keeps every promise of the contract."""
    folders = iter(range(100))

    def make():
        return FileStore(tmp_path / str(next(folders)))

    def again(store):
        return FileStore(repr(store)[11:-2])

    def make_older(store, seconds):
        age(Path(repr(store)[11:-2]), "durable", seconds)

    asyncio.run(check(make, again=again, age=make_older))

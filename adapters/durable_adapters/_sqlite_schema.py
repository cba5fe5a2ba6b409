"""The tables of ``SQLiteStore``: how a database is opened, and every fixed statement."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from durable._errors import StateFormatError, StoreError

#: The number of the tables' layout, kept in the table ``{prefix}_meta``.
SCHEMA = 1

#: A run's head as columns, in the order of ``HeadRow``'s fields.
HEAD_COLUMNS = (
    "run_id",
    "name",
    "status",
    "version",
    "fence",
    "owner",
    "created_at",
    "updated_at",
    "lease_until",
    "ttl",
    "attempts",
    "recoveries",
    "inbox",
    "first",
    "wake_at",
    "expires_at",
    "error",
)

#: Seconds since the epoch by SQLite's clock, to the millisecond.
NOW = "(julianday('now') - 2440587.5) * 86400.0"

#: Rows that count as gone, and those that don't; ``:now`` is the time.
_EXPIRED = "(expires_at <= :now AND lease_until <= :now)"
LIVE = "(expires_at IS NULL OR expires_at > :now OR lease_until > :now)"


class Statements:
    """SQL for the tables of one prefix."""

    def __init__(self, prefix: str) -> None:
        values, runs, log, inbox = (
            f"{prefix}_{table}" for table in ("values", "runs", "log", "inbox")
        )
        columns = ", ".join(HEAD_COLUMNS)
        marks = ", ".join("?" * len(HEAD_COLUMNS))
        fresh = "(expires_at IS NULL OR expires_at > :now)"

        self.get = f"SELECT value FROM {values} WHERE key = :key AND {fresh}"
        self.set = f"INSERT OR REPLACE INTO {values} (key, value, expires_at) VALUES (?, ?, ?)"
        self.delete = f"DELETE FROM {values} WHERE key = ?"
        self.keys = f"SELECT key FROM {values} WHERE {fresh} AND key >= :low"
        self.expired_keys = f"SELECT key FROM {values} WHERE expires_at <= :now LIMIT :limit"

        sequence = f"(SELECT MAX(sequence) FROM {log} WHERE run = {runs}.id)"
        self.find = f"SELECT id, {columns} FROM {runs} WHERE run_id = :run_id AND {LIVE}"
        self.find_any = f"SELECT id FROM {runs} WHERE run_id = ?"
        self.tail = (
            f"SELECT id, owner, fence, inbox, COALESCE({sequence}, first - 1) "
            f"FROM {runs} WHERE run_id = ?1 AND {LIVE.replace(':now', '?2')}"
        )
        self.tails = (
            "SELECT JSON_GROUP_ARRAY(JSON_ARRAY(run_id, id, owner, fence, inbox, "
            f"COALESCE({sequence}, first - 1))) FROM {runs} WHERE run_id IN "
            f"(SELECT value FROM JSON_EACH(?1)) AND {LIVE.replace(':now', '?2')}"
        )
        self.list = (
            f"SELECT COALESCE({sequence}, first - 1), {columns} FROM ("
            f"SELECT * FROM {runs} WHERE {LIVE} {{where}} ORDER BY run_id LIMIT :limit"
            f") AS {runs} ORDER BY run_id"
        )
        self.create = f"INSERT INTO {runs} ({columns}) VALUES ({marks})"
        self.update = f"UPDATE {runs} SET ({columns}) = ({marks}) WHERE id = ?"
        self.renew = f"UPDATE {runs} SET lease_until = ?, expires_at = ? WHERE id = ?"
        self.count_deposit = f"UPDATE {runs} SET inbox = inbox + 1 WHERE id = ?"
        self.expired_runs = f"SELECT id FROM {runs} WHERE {_EXPIRED} LIMIT :limit"
        self.remove = tuple(
            f"DELETE FROM {table} WHERE {column} = ?"
            for table, column in ((log, "run"), (inbox, "run"), (runs, "id"))
        )

        self.sequence = f"SELECT MAX(sequence) FROM {log} WHERE run = ?"
        self.add_line = f"INSERT INTO {log} (run, sequence, line) VALUES (?, ?, ?)"
        self.add_lines = (
            f"INSERT INTO {log} (run, sequence, line) SELECT JSON_EXTRACT(value, '$[0]'), "
            "JSON_EXTRACT(value, '$[1]'), JSON_EXTRACT(value, '$[2]') FROM JSON_EACH(?)"
        )
        self.drop_lines = f"DELETE FROM {log} WHERE run = ?"
        self.lines = (
            f"SELECT line FROM {log} WHERE run = ? AND sequence >= ? ORDER BY sequence LIMIT ?"
        )
        # One row instead of thousands: SQLite's driver gives the GIL up at every row, and a busy
        # event loop is slow to give it back. Lines hold no line breaks.
        self.joined_lines = f"SELECT COUNT(*), GROUP_CONCAT(line, CHAR(10)) FROM ({self.lines})"

        self.inbox = f"SELECT key, value FROM {inbox} WHERE run = ? ORDER BY rowid"
        self.standing = f"SELECT value FROM {inbox} WHERE run = ? AND key = ?"
        self.deposit = f"INSERT INTO {inbox} (run, key, value) VALUES (?, ?, ?)"


def _layout(prefix: str) -> tuple[str, ...]:
    return (
        f"""CREATE TABLE IF NOT EXISTS {prefix}_meta (
            key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID""",
        f"""CREATE TABLE IF NOT EXISTS {prefix}_values (
            key TEXT PRIMARY KEY, value TEXT NOT NULL, expires_at REAL) WITHOUT ROWID""",
        f"""CREATE TABLE IF NOT EXISTS {prefix}_runs (
            id INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
            status TEXT NOT NULL, version INTEGER NOT NULL, fence INTEGER NOT NULL,
            owner TEXT NOT NULL, created_at REAL NOT NULL, updated_at REAL NOT NULL,
            lease_until REAL NOT NULL, ttl REAL, attempts INTEGER NOT NULL,
            recoveries INTEGER NOT NULL, inbox INTEGER NOT NULL, first INTEGER NOT NULL,
            wake_at REAL, expires_at REAL, error TEXT NOT NULL)""",
        # Rows in the order of their arrival, whatever run they are of: a commit that many runs
        # share then touches a few pages, where a table ordered by run would touch one for each.
        f"""CREATE TABLE IF NOT EXISTS {prefix}_log (
            run INTEGER NOT NULL,
            sequence INTEGER NOT NULL,
            line TEXT NOT NULL
        )""",
        f"CREATE UNIQUE INDEX IF NOT EXISTS {prefix}_log_run ON {prefix}_log (run, sequence)",
        f"""CREATE TABLE IF NOT EXISTS {prefix}_inbox (
            run INTEGER NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
            PRIMARY KEY (run, key))""",
        f"CREATE INDEX IF NOT EXISTS {prefix}_runs_status ON {prefix}_runs (status, run_id)",
        f"CREATE INDEX IF NOT EXISTS {prefix}_runs_name ON {prefix}_runs (name, run_id)",
        f"CREATE INDEX IF NOT EXISTS {prefix}_runs_work ON {prefix}_runs (name, status, run_id)",
        f"""CREATE INDEX IF NOT EXISTS {prefix}_runs_expiry ON {prefix}_runs (expires_at)
            WHERE expires_at IS NOT NULL""",
        f"""CREATE INDEX IF NOT EXISTS {prefix}_values_expiry ON {prefix}_values (expires_at)
            WHERE expires_at IS NOT NULL""",
    )


def open_database(path: str, prefix: str, busy_seconds: float) -> sqlite3.Connection:
    """Return a connection to the database at ``path`` with the tables of ``prefix``.

    The file, its folders and the tables are created if need be; several processes may do so at
    once. ``busy_seconds`` is how long a transaction waits for another process's. Raises
    ``sqlite3.Error`` or ``OSError``, ``StateFormatError`` for a later layout, ``StoreError``
    where write-ahead logging isn't possible.
    """
    make_folders(Path(path).parent)
    connection = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None)
    try:
        _use_write_ahead_log(connection, path, busy_seconds)
        # FULL: a commit that was acknowledged survives a power cut.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")
        _create_tables(connection, path, prefix)
    except BaseException:
        connection.close()
        raise
    return connection


def make_folders(folder: Path) -> None:
    """Create ``folder`` and its parents, writable by nobody but their owner and group."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(mode=0o775, exist_ok=True)
        sync_folder(parent.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in ``folder`` survive a power cut, if it can be read."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_busy(error: BaseException | None) -> bool:
    """Return whether ``error`` says that another connection's transaction was in the way."""
    return (
        isinstance(error, sqlite3.Error)
        and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
    )


def _use_write_ahead_log(connection: sqlite3.Connection, path: str, busy_seconds: float) -> None:
    # The switch to WAL reports "busy" at once instead of waiting, so this waits. The machine's
    # own time is meant: what it waits for is another process.
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as exc:
            if not is_busy(exc) or time.monotonic() >= deadline:
                raise
            time.sleep(0.005)
        else:
            break
    if mode != "wal":
        raise StoreError(
            "open", path, f"the file's journal mode stays {mode!r}: WAL isn't possible there"
        )


def _create_tables(connection: sqlite3.Connection, path: str, prefix: str) -> None:
    stored = _stored_schema(connection, prefix)
    if stored is None:
        connection.execute("BEGIN IMMEDIATE")
        for statement in _layout(prefix):
            connection.execute(statement)
        connection.execute(f"INSERT OR IGNORE INTO {prefix}_meta VALUES ('schema', {SCHEMA})")
        stored = _stored_schema(connection, prefix)
        connection.execute("COMMIT")
    if stored != SCHEMA:
        raise StateFormatError(
            path,
            f"its tables {prefix}_* have layout {stored!r} and this version of the library knows "
            f"layout {SCHEMA}; use the version that wrote it, or a later one",
        )


def _stored_schema(connection: sqlite3.Connection, prefix: str) -> object:
    """Return the layout's number as stored, None when there are no tables yet."""
    known = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (f"{prefix}_meta",)
    ).fetchone()
    row = (
        known
        and connection.execute(f"SELECT value FROM {prefix}_meta WHERE key = 'schema'").fetchone()
    )
    return row[0] if row else None

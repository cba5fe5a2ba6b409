"""A transaction of ``SQLiteStore`` on its private thread, and what it does to values."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from durable_adapters._sqlite_schema import NOW, Statements

#: Failures of one job that leave the transaction as it was before the job.
JOB_ERRORS = (
    ValueError,
    TypeError,
    OverflowError,
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
)


#: Characters of lines that are written with one statement, which holds them twice.
_AT_ONCE = 4_000_000


class GroupFailedError(Exception):
    """The transaction is lost, with jobs that had succeeded already; ``__cause__`` says why."""


class Tail:
    """The end of a run's log within the transaction, kept while only plain appends happen."""

    __slots__ = ("fence", "inbox", "number", "owner", "sequence")

    def __init__(self, number: int, owner: str, fence: int, inbox: int, sequence: int) -> None:
        self.number = number
        self.owner = owner
        self.fence = fence
        self.inbox = inbox
        self.sequence = sequence


class Session:
    """A connection and the operations on it; each needs an open transaction.

    ``now`` is the transaction's time. ``lines`` are those that plain appends have left to be
    written together, ``tails`` the ends of the logs that they go to.
    """

    def __init__(self, connection: sqlite3.Connection, prefix: str) -> None:
        self.connection = connection
        self.now = 0.0
        self.sql = Statements(prefix)
        self.tails: dict[str, Tail | None] = {}
        self.lines: list[tuple[int, int, str]] = []

    # The transaction.

    def begin(self, statement: str) -> None:
        """Begin a transaction with ``statement`` and read its time."""
        self.connection.execute(statement)
        self.now = self.one(f"SELECT {NOW}")[0]

    def commit(self) -> None:
        """Make everything durable."""
        self.flush()
        self.connection.execute("COMMIT")

    def rollback(self) -> None:
        """Undo everything since ``begin``."""
        self.tails.clear()
        self.lines.clear()
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def know(self, run_ids: Sequence[str]) -> None:
        """Read the tails of many runs at once.

        The driver gives up the GIL at every row, and a busy event loop is slow to give it back.
        So all of them come as one row.
        """
        run_ids = [run_id for run_id in run_ids if "\0" not in run_id]  # not in SQLite's JSON
        found = self.one(self.sql.tails, (msgspec.json.encode(run_ids).decode(), self.now))[0]
        self.tails.update(dict.fromkeys(run_ids))
        for run_id, *facts in msgspec.json.decode(found):
            self.tails[run_id] = Tail(*facts)

    def flush(self) -> None:
        """Write the lines that plain appends have left, and forget what they knew."""
        if self.lines:
            try:
                self._write_lines()
            except Exception as exc:
                raise GroupFailedError from exc
            self.lines.clear()
        self.tails.clear()

    def _write_lines(self) -> None:
        texts = [line for _, _, line in self.lines]
        if len(texts) > 1 and sum(map(len, texts)) < _AT_ONCE and "\0" not in "".join(texts):
            # One statement for all, for the same reason. SQLite's JSON has no NUL characters.
            self.connection.execute(self.sql.add_lines, (msgspec.json.encode(self.lines).decode(),))
        else:
            self.connection.executemany(self.sql.add_line, self.lines)

    @contextmanager
    def alone(self) -> Generator[None]:
        """Undo what happens inside if it raises, without touching the rest."""
        self.flush()
        self.connection.execute("SAVEPOINT job")
        try:
            yield
        except BaseException as exc:
            if not self.connection.in_transaction:
                # SQLite has undone everything itself (disk full, input/output).
                raise GroupFailedError from exc
            self.connection.execute("ROLLBACK TO job")
            self.connection.execute("RELEASE job")
            raise
        self.connection.execute("RELEASE job")

    # Values.

    def get(self, key: str) -> str | None:
        """Return the value under ``key``."""
        row = self.one(self.sql.get, {"key": key, "now": self.now})
        return None if row is None else str(row[0])

    def set(self, key: str, value: str, ttl: float | None) -> None:
        """Put ``value`` under ``key``."""
        expires_at = None if ttl is None else self.now + ttl
        self.connection.execute(self.sql.set, (key, value, expires_at))

    def swap(self, key: str, expected: str | None, value: str, ttl: float | None) -> bool:
        """Put ``value`` under ``key`` if ``expected`` is there."""
        if self.get(key) != expected:
            return False
        self.set(key, value, ttl)
        return True

    def delete(self, key: str) -> bool:
        """Remove ``key``."""
        present = self.get(key) is not None
        self.connection.execute(self.sql.delete, (key,))
        return present

    def keys(self, pattern: str, fits: Callable[[str], bool]) -> list[str]:
        """Return the keys that ``fits`` accepts; ``pattern`` only narrows the search."""
        low, star, _ = pattern.partition("*")
        bounds: dict[str, Any] = {"now": self.now, "low": low, "high": beyond(low)}
        sql = self.sql.keys
        if not star:
            sql += " AND key = :low"
        elif bounds["high"] is not None:
            sql += " AND key < :high"
        rows = self.connection.execute(sql + " ORDER BY key", bounds)
        return [key for (key,) in rows if fits(key)]

    # Rows.

    def one(self, sql: str, values: Any = ()) -> Any:
        """Return the first row, or None."""
        return self.connection.execute(sql, values).fetchone()

    def column(self, sql: str, values: Any) -> list[Any]:
        """Return the first column of all rows."""
        return [row[0] for row in self.connection.execute(sql, values).fetchall()]


def beyond(prefix: str) -> str | None:
    """Return the least text above everything that begins with ``prefix``; None for no bound."""
    for length in range(len(prefix), 0, -1):
        point = ord(prefix[length - 1]) + 1
        if point <= 0x10FFFF:
            # The surrogates are no characters.
            return prefix[: length - 1] + chr(0xE000 if 0xD800 <= point <= 0xDFFF else point)
    return None

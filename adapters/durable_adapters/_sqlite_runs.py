"""The journal of ``SQLiteStore``: what happens to runs inside a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from durable._errors import LeaseLostError, RunBusyError, StateFormatError, StoreError
from durable._leases import (
    HeadRow,
    change_head,
    check_holder,
    decide_claim,
    extend_lease,
    matches,
    owns,
    removes,
    takes_deposits,
)
from durable.store import Append, Claim, Claimed, Deposit, Head, ListQuery, Refusal, RunLog
from durable_adapters._sqlite_session import JOB_ERRORS, Session, Tail, beyond

#: How many expired runs and keys a claim clears away at most, and how many seconds apart.
_CLEARED = 100
_CLEAR_EVERY = 60.0

#: Lines longer than this are written with care, in case SQLite takes them for too long.
_LONG_LINE = 1_000_000

#: How many lines the first chunk of a page has, and about how much text each further one.
_FIRST_CHUNK = 256
_CHUNK_TEXT = 4 << 20

#: Conditions that name more values than this are left to Python.
_MANY = 100


class RunSession(Session):
    """A session that also knows the journal's operations.

    ``page_lines`` and ``page_text`` (characters) are where a page of a log ends, whichever comes
    first.
    """

    def __init__(
        self, connection: sqlite3.Connection, prefix: str, page_lines: int, page_text: int
    ) -> None:
        super().__init__(connection, prefix)
        self._page_lines = page_lines
        self._page_text = page_text
        self._cleared_at = float("-inf")

    def claim(self, claim: Claim) -> Claimed | None:
        """Claim a run; clear a few expired ones away now and then."""
        found = self._find(claim.run_id)
        if found is None:
            self._remove_all(self.column(self.sql.find_any, (claim.run_id,)))
            number, row, sequence = 0, None, 0
        else:
            number, row = found
            sequence = self._sequence(number, row)
        decision = decide_claim(row, claim, self.now, sequence)
        if decision.row is None:
            return None
        if row is None:
            number = self._create(decision.row)
        elif decision.changed:
            self._update(number, decision.row)
        if decision.epoch:
            self._replace_log(number, decision.row.first, claim.begin)
        if abs(self.now - self._cleared_at) >= _CLEAR_EVERY:
            self._cleared_at = self.now
            self.purge(_CLEARED)
        log = self._log(number, decision.row)
        return Claimed(decision.granted, log, self.now, decision.before, decision.took_over)

    def append(self, batch: Sequence[Append]) -> list[int | Refusal]:
        """Add lines to the logs of several runs."""
        return [self._append(member) for member in batch]

    def _append(self, member: Append) -> int | Refusal:
        try:
            if _is_plain(member):
                tail = self._tail(member.run_id)
                if tail is None or tail.owner != member.owner or tail.fence != member.fence:
                    return LeaseLostError(member.run_id, member.fence)
                if member.first == tail.sequence + 1:
                    for sequence, line in enumerate(member.lines, member.first):
                        self.lines.append((tail.number, sequence, line))
                    tail.sequence += len(member.lines)
                    return tail.inbox
            with self.alone():
                return self._append_carefully(member)
        except JOB_ERRORS as exc:
            refusal = StoreError("append", member.run_id, str(exc))
            refusal.__cause__ = exc
            return refusal

    def _tail(self, run_id: str) -> Tail | None:
        # No other connection writes before this transaction ends, so reading it once will do.
        if run_id in self.tails:
            return self.tails[run_id]
        row = self.one(self.sql.tail, (run_id, self.now))
        tail = self.tails[run_id] = row and Tail(*row)
        return tail

    def _append_carefully(self, member: Append) -> int | Refusal:
        found = self._find(member.run_id)
        if found is None and removes(member):
            return 0
        if found is None or not owns(found[1], member.owner, member.fence):
            return LeaseLostError(member.run_id, member.fence)
        number, row = found
        changed = False
        if member.first != self._sequence(number, row) + 1:
            if not self._has_lines(number, row, member):
                return StoreError("append", member.run_id, "the log has other lines there")
        elif member.epoch:
            self._replace_log(number, member.first, member.lines)
            row.first, changed = member.first, True
        else:
            self._add_lines(number, member.first, member.lines)
        if member.head is not None:
            changed = change_head(row, member.head, self.now)
            if not changed:
                self._remove(number)
        if changed:
            self._update(number, row)
        return row.inbox

    def _has_lines(self, number: int, row: HeadRow, member: Append) -> bool:
        if member.first < row.first:
            return not member.lines
        there = self.column(self.sql.lines, (number, member.first, len(member.lines)))
        return tuple(there) == tuple(member.lines)

    def renew(self, run_id: str, owner: str, fence: int, lease: float) -> int:
        """Let the lease run on."""
        found = self._find(run_id)
        row = check_holder(found and found[1], run_id, owner, fence)
        extend_lease(row, lease, self.now)
        values = (row.lease_until, row.expires_at, found and found[0])
        self.connection.execute(self.sql.renew, values)
        return row.inbox

    def read(self, run_id: str, after: int) -> RunLog | None:
        """Return the run."""
        found = self._find(run_id)
        return None if found is None else self._log(*found, after)

    def deposit(self, run_id: str, key: str, value: str) -> Deposit | None:
        """Put ``value`` into the run's inbox."""
        found = self._find(run_id)
        if found is None:
            return None
        number, row = found
        if not takes_deposits(row):
            return Deposit(False, None, row.status)
        standing = self.one(self.sql.standing, (number, key))
        if standing is not None:
            return Deposit(standing[0] == value, standing[0], row.status)
        self.connection.execute(self.sql.deposit, (number, key, value))
        self.connection.execute(self.sql.count_deposit, (number,))
        return Deposit(True, value, row.status)

    def list_runs(self, query: ListQuery) -> list[Head]:
        """Return the heads that ``query`` describes."""
        sql, values = self._narrowed(query)
        heads: list[Head] = []
        for sequence, *columns in self.connection.execute(sql, values):
            row = HeadRow(*columns)
            if matches(row, query, self.now) and len(heads) < query.limit:
                heads.append(row.head(self.now, sequence))
        return heads

    def _narrowed(self, query: ListQuery) -> tuple[str, dict[str, Any]]:
        """Return SQL for the runs that meet ``query``, or for more where it names very many."""
        values: dict[str, Any] = {"now": self.now, "limit": query.limit}
        where = ""
        if query.prefix:
            where += " AND run_id >= :low"
            values["low"] = query.prefix
        high = beyond(query.prefix)
        if high is not None:
            where += " AND run_id < :high"
            values["high"] = high
        if query.after is not None:
            where += " AND run_id > :after"
            values["after"] = query.after
        if query.claimable:
            where += " AND lease_until <= :now"
        if query.before is not None:
            where += " AND updated_at <= :now - :before"
            values["before"] = query.before
        for column, wanted in (("status", query.status), ("name", query.names)):
            if wanted is None:
                continue
            if len(wanted) > _MANY:
                values["limit"] = -1
                continue
            marks = [f"{column}{position}" for position in range(len(wanted))]
            where += f" AND {column} IN ({', '.join(':' + mark for mark in marks)})"
            values.update(zip(marks, wanted, strict=True))
        return self.sql.list.format(where=where), values

    def delete_run(self, run_id: str, held: bool) -> bool:
        """Remove a run."""
        found = self._find(run_id)
        if found is None:
            return False
        number, row = found
        if row.lease_until > self.now and not held:
            raise RunBusyError(run_id, row.lease_until - self.now)
        self._remove(number)
        return True

    def purge(self, limit: int) -> int:
        """Remove up to ``limit`` expired runs and keys."""
        bounds = {"now": self.now, "limit": max(0, limit)}
        runs = self.column(self.sql.expired_runs, bounds)
        self._remove_all(runs)
        bounds["limit"] -= len(runs)
        keys = self.column(self.sql.expired_keys, bounds)
        self.connection.executemany(self.sql.delete, [(key,) for key in keys])
        return len(runs) + len(keys)

    # Rows.

    def _find(self, run_id: str) -> tuple[int, HeadRow] | None:
        row = self.one(self.sql.find, {"run_id": run_id, "now": self.now})
        return None if row is None else (row[0], HeadRow(*row[1:]))

    def _create(self, row: HeadRow) -> int:
        cursor = self.connection.execute(self.sql.create, msgspec.structs.astuple(row))
        return cursor.lastrowid or 0

    def _update(self, number: int, row: HeadRow) -> None:
        self.connection.execute(self.sql.update, (*msgspec.structs.astuple(row), number))

    def _remove(self, number: int) -> None:
        for statement in self.sql.remove:
            self.connection.execute(statement, (number,))

    def _remove_all(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._remove(number)

    def _sequence(self, number: int, row: HeadRow) -> int:
        last = self.one(self.sql.sequence, (number,))[0]
        return row.first - 1 if last is None else int(last)

    def _add_lines(self, number: int, first: int, lines: Sequence[str]) -> None:
        numbered = [(number, sequence, line) for sequence, line in enumerate(lines, first)]
        self.connection.executemany(self.sql.add_line, numbered)

    def _replace_log(self, number: int, first: int, lines: Sequence[str]) -> None:
        self.connection.execute(self.sql.drop_lines, (number,))
        self._add_lines(number, first, lines)

    # Reading a log.

    def _log(self, number: int, row: HeadRow, after: int = 0) -> RunLog:
        sequence = self._sequence(number, row)
        first = max(row.first, after + 1)
        lines, cut = self._page(number, first)
        last = first + len(lines) - 1
        if first <= sequence and last != sequence and not cut:
            raise StateFormatError(f"run {row.run_id!r}", f"its log breaks off at line {last + 1}")
        inbox = self.connection.execute(self.sql.inbox, (number,)) if row.inbox else ()
        return RunLog(row.head(self.now, sequence), lines, first, last < sequence, dict(inbox))

    def _page(self, number: int, first: int) -> tuple[tuple[str, ...], bool]:
        """Return the lines from ``first`` on, and whether the page's end cut them off."""
        lines: list[str] = []
        size, count = 0, _FIRST_CHUNK
        while len(lines) < self._page_lines and size < self._page_text:
            count = min(count, self._page_lines - len(lines))
            chunk = self._chunk(number, first + len(lines), count)
            lines += chunk
            size += sum(map(len, chunk))
            if len(chunk) < count:
                return tuple(lines), False
            count = max(1, _CHUNK_TEXT // (size // len(lines) + 1))
        return tuple(lines), True

    def _chunk(self, number: int, first: int, count: int) -> list[str]:
        values = (number, first, count)
        try:
            found, text = self.one(self.sql.joined_lines, values)
        except sqlite3.DataError:
            # Together they are longer than SQLite's longest string.
            return self.column(self.sql.lines, values)
        lines: list[str] = text.split("\n") if found else []
        return lines if len(lines) == found else self.column(self.sql.lines, values)


def _is_plain(member: Append) -> bool:
    """Return whether the append adds lines that any database takes, and does nothing else."""
    if member.head is not None or member.epoch or not member.lines or "\0" in member.owner:
        return False
    for line in member.lines:
        if len(line) > _LONG_LINE:
            return False
        if not line.isascii():
            line.encode()
    return True

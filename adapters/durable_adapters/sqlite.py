"""``SQLiteStore``: everything in one SQLite file, shared by the processes of one machine."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec

from durable._errors import DurableError, StateFormatError, StoreError
from durable._keys import check_key, check_text, check_ttl, key_matcher
from durable.store import (
    Append,
    Claim,
    Claimed,
    Deposit,
    Guarantees,
    Head,
    ListQuery,
    Refusal,
    RunLog,
)
from durable_adapters._common import check_options, check_prefix
from durable_adapters._sqlite_runs import RunSession
from durable_adapters._sqlite_schema import is_busy, open_database
from durable_adapters._sqlite_session import JOB_ERRORS, GroupFailedError
from durable_adapters._thread import Job, PrivateThread

T = TypeVar("T")

_GUARANTEES = Guarantees(leases="machine")

#: SQLite's codes for a file that can't be trusted.
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})

_FORMS = "a SQLite store's URL is 'sqlite:///relative.db' or 'sqlite:////absolute.db'"


class _Settings(msgspec.Struct):
    """What the thread needs to know. The limits are here so that a test can lower them."""

    path: str
    prefix: str
    busy_seconds: float = 10.0
    page_lines: int = 20_000
    page_text: int = 16 << 20


class SQLiteStore:
    """Keeps values and runs in the SQLite file ``path``.

    ``prefix`` names the tables. The file and its folders are created at the first use, with
    write-ahead logging; what a call has returned for survives a power cut. Processes of one
    machine may share the file (not over a network file system), and so may several event loops
    of one process. One private thread owns the connection: writes that wait at the same moment
    share one commit.
    """

    def __init__(self, path: str | os.PathLike[str], *, prefix: str = "durable") -> None:
        self._given = str(os.fspath(path))
        if not self._given or "\0" in self._given or self._given.endswith("/"):
            raise ValueError(f"path must name a file, got {self._given!r}")
        if self._given == ":memory:":
            raise ValueError("SQLiteStore keeps a file; use MemoryStore or 'memory://' instead")
        if check_prefix(prefix).partition("_")[0] == "sqlite":
            raise ValueError(f"prefix {prefix!r} can't be used: SQLite keeps 'sqlite_' to itself")
        self._settings = _Settings(os.path.abspath(self._given), prefix)
        self._thread = PrivateThread("durable-sqlite", partial(_Database, self._settings))

    @classmethod
    def from_url(cls, url: str, **options: Any) -> SQLiteStore:
        """Return the store for ``sqlite:///relative.db`` or ``sqlite:////absolute.db``.

        Characters may be percent-encoded. The option is ``prefix``. Raises ``ValueError`` for
        other URLs, ``TypeError`` for other options.
        """
        check_options("SQLiteStore", options, ("prefix",))
        scheme, _, path = url.partition(":///")
        if scheme != "sqlite" or not path or "?" in path or "#" in path:
            raise ValueError(_FORMS)
        return cls(os.fsdecode(unquote_to_bytes(path)), **options)

    def __repr__(self) -> str:
        prefix = self._settings.prefix
        return f"SQLiteStore({self._given!r}" + (
            ")" if prefix == "durable" else f", prefix={prefix!r})"
        )

    async def __aenter__(self) -> SQLiteStore:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Finish what was begun and close the file; any later call raises ``StoreError``."""
        await self._thread.close()

    async def _read(self, operation: str, key: str, work: Callable[[RunSession], T]) -> T:
        result: T = await self._thread.do(Job(operation, key, work, writes=False))
        return result

    async def _write(self, operation: str, key: str, work: Callable[[RunSession], T]) -> T:
        result: T = await self._thread.do(Job(operation, key, work, writes=True))
        return result

    # The five methods, and swap.

    async def get(self, key: str) -> str | None:
        """Return the value under ``key``, or None."""
        check_key(key)
        return await self._read("get", key, lambda session: session.get(key))

    async def set(self, key: str, value: str, *, ttl: float | None = None) -> None:
        """Put ``value`` under ``key``, for ``ttl`` seconds or for good."""
        _check_value(key, value, ttl)
        await self._write("set", key, lambda session: session.set(key, value, ttl))

    async def delete(self, key: str) -> bool:
        """Remove ``key``; return whether it was there."""
        check_key(key)
        return await self._write("delete", key, lambda session: session.delete(key))

    async def exists(self, key: str) -> bool:
        """Return whether there is a value under ``key``."""
        check_key(key)
        return await self._read("exists", key, lambda session: session.get(key) is not None)

    async def keys(self, pattern: str) -> list[str]:
        """Return the keys that match ``pattern``, sorted."""
        fits = key_matcher(pattern)
        return await self._read("keys", pattern, lambda session: session.keys(pattern, fits))

    async def swap(
        self, key: str, expected: str | None, value: str, *, ttl: float | None = None
    ) -> bool:
        """Put ``value`` under ``key`` if what is there is ``expected``; return whether it was."""
        _check_value(key, value, ttl)
        return await self._write(
            "swap", key, lambda session: session.swap(key, expected, value, ttl)
        )

    # The journal.

    @property
    def guarantees(self) -> Guarantees:
        """Durable, and safe among the processes of one machine."""
        return _GUARANTEES

    async def claim(self, claim: Claim) -> Claimed | None:
        """Claim a run, creating it if need be."""
        return await self._write("claim", claim.run_id, lambda session: session.claim(claim))

    async def append(self, batch: Sequence[Append]) -> Sequence[int | Refusal]:
        """Add lines to the logs of several runs, in one commit."""
        if not batch:
            return []
        job = Job("append", batch[0].run_id, partial(_append, batch), writes=True, careful=True)
        outcomes: list[int | Refusal] = await self._thread.do(job)
        return outcomes

    def append_soon(self, member: Append, settle: Callable[[int | Refusal], None]) -> None:
        """Begin to append ``member``; what waits together shares a commit."""
        job = Job(
            "append",
            member.run_id,
            partial(_append, (member,)),
            writes=True,
            careful=True,
            settle=partial(_settle_append, settle),
        )
        try:
            self._thread.submit(job)
        except StoreError as closed:
            job.loop.call_soon(settle, closed)

    async def renew(self, run_id: str, owner: str, fence: int, lease: float) -> int:
        """Let the lease run on."""
        return await self._write(
            "renew", run_id, lambda session: session.renew(run_id, owner, fence, lease)
        )

    async def read(self, run_id: str, *, after: int = 0) -> RunLog | None:
        """Return the run, or None."""
        return await self._read("read", run_id, lambda session: session.read(run_id, after))

    async def deposit(self, run_id: str, key: str, value: str) -> Deposit | None:
        """Put ``value`` into the run's inbox; the first one wins."""
        return await self._write(
            "deposit", run_id, lambda session: session.deposit(run_id, key, value)
        )

    async def list_runs(self, query: ListQuery) -> list[Head]:
        """Return the heads that ``query`` describes, ordered by run id."""
        return await self._read("list", query.prefix, lambda session: session.list_runs(query))

    async def delete_run(self, run_id: str, *, held: bool = False) -> bool:
        """Remove a run; return whether it was there."""
        return await self._write("delete", run_id, lambda session: session.delete_run(run_id, held))

    async def purge(self, limit: int = 100) -> int:
        """Remove up to ``limit`` expired runs and keys; return how many were removed."""
        return await self._write("purge", "", lambda session: session.purge(limit))


class _Database:
    """The engine on the private thread: opens the file at need, makes transactions of jobs."""

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings
        self._session: RunSession | None = None
        self._identity: tuple[int, int] | None = None

    def execute(self, jobs: list[Job]) -> None:
        """Do the reading jobs each by itself, the writing ones in one transaction."""
        writes: list[Job] = []
        for job in jobs:
            if job.writes:
                writes.append(job)
            else:
                self._transact([job], "BEGIN")
        if writes:
            self._transact(writes, "BEGIN IMMEDIATE")

    def close(self) -> None:
        """Close the file."""
        session, self._session = self._session, None
        if session is not None:
            session.connection.close()

    def _transact(self, jobs: list[Job], begin: str) -> None:
        performing = False
        try:
            session = self._ready()
            session.begin(begin)
            performing = True
            appends = [job.key for job in jobs if job.operation == "append"]
            if len(appends) > 2:
                session.know(appends)
            for job in jobs:
                _perform(session, job)
            session.flush()
            performing = False
            session.commit()
        except Exception as exc:
            cause = exc.__cause__ if isinstance(exc, GroupFailedError) else exc
            self._give_up(cause)
            if performing and len(jobs) > 1:
                # One of them is too much for the disk, or hit a damaged page: not the others.
                for job in jobs:
                    self._transact([job], begin)
            else:
                for job in jobs:
                    job.result, job.error = None, self._outcome(job, cause)

    def _ready(self) -> RunSession:
        """Return the session on the file that is at the path now."""
        settings = self._settings
        if self._session is None:
            connection = open_database(settings.path, settings.prefix, settings.busy_seconds)
            self._session = RunSession(
                connection, settings.prefix, settings.page_lines, settings.page_text
            )
            self._identity = _identity(settings.path)
        elif self._identity is None or self._identity != _identity(settings.path):
            raise StoreError(
                "open",
                settings.path,
                "the database file was deleted or replaced while it was in use; the next call "
                "uses what is there then",
            )
        return self._session

    def _give_up(self, cause: BaseException | None) -> None:
        """End the transaction; have the file opened again unless it was only busy."""
        try:
            if self._session is not None:
                self._session.rollback()
        except sqlite3.Error:
            cause = None
        if not is_busy(cause):
            self.close()

    def _outcome(self, job: Job, cause: BaseException | None) -> DurableError:
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        error: DurableError
        if isinstance(cause, StateFormatError):
            error = StateFormatError(cause.where, cause.reason)
        elif code in _DAMAGED:
            error = StateFormatError(self._settings.path, str(cause))
        else:
            reason = cause.reason if isinstance(cause, StoreError) else str(cause)
            error = StoreError(job.operation, job.key, f"{self._settings.path}: {reason}")
        error.__cause__ = cause.__cause__ if isinstance(cause, DurableError) else cause
        return error


def _perform(session: RunSession, job: Job) -> None:
    """Do ``job`` in the open transaction; its own failure is its own."""
    try:
        job.error = None
        if job.writes and not job.careful:
            with session.alone():
                job.result = job.work(session)
        else:
            job.result = job.work(session)
    except DurableError as exc:
        job.error = exc
    except (ValueError, TypeError) as exc:
        job.error = exc
    except JOB_ERRORS as exc:
        job.error = StoreError(job.operation, job.key, str(exc))
        job.error.__cause__ = exc


def _append(batch: Sequence[Append], session: RunSession) -> list[int | Refusal]:
    return session.append(batch)


def _settle_append(settle: Callable[[int | Refusal], None], job: Job) -> None:
    if job.error is None:
        (outcome,) = job.result
    elif isinstance(job.error, DurableError):
        outcome = job.error
    else:
        outcome = StoreError(job.operation, job.key, str(job.error))
        outcome.__cause__ = job.error
    settle(outcome)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _check_value(key: str, value: str, ttl: float | None) -> None:
    check_key(key)
    check_text(value, "a value")
    check_ttl(ttl)

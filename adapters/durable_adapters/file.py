"""``FileStore``: one readable file per run in a folder, with nothing to install.

Layout under ``<folder>/<prefix>/``: ``runs/`` has a file per run that is only added to,
``values/`` a small JSON file per key, ``index/<status>/`` an empty marker per run, ``locks/``
and ``tmp/`` what their names say. The processes of one machine may share a folder: whoever
touches a run holds the lock of its file while checking the lease and adding to the log, and
nothing is acknowledged before it is on the disk.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast
from urllib.parse import unquote

from durable._errors import StoreError
from durable._keys import check_key, check_text, check_ttl, key_matcher
from durable._leases import removes
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
from durable_adapters._file_disk import Disk, check_locks, files_at_once, gate
from durable_adapters._file_kept import RunFiles
from durable_adapters._file_pool import Pool
from durable_adapters._file_runs import Runs
from durable_adapters._file_scan import Scan
from durable_adapters._file_together import Together
from durable_adapters._file_values import Values

__all__ = ["FileStore"]

T = TypeVar("T")

#: Enough for the writes of many runs to overlap; more threads only get in each other's way.
_THREADS = 8
#: Files looked at, and removed, when a claim clears away what has expired.
_LOOK, _REMOVE = 200, 100

_GUARANTEES = Guarantees(leases="machine", durable=True, inline=False)


class _Engine:
    """A store's threads and open files; each process has its own."""

    def __init__(self, folder: str, prefix: str, lock_timeout: float) -> None:
        self.disk = Disk(folder, prefix, lock_timeout)
        most_open = files_at_once()
        self.files = RunFiles(self.disk, most_open)
        self.runs = Runs(self.disk, self.files)
        self.values = Values(self.disk)
        self.scan = Scan(self.disk, self.runs, self.values)
        together = Together(self.disk, self.runs, self.files, _THREADS)
        self.pool = Pool(_THREADS, together, most_open // 2)

    async def close(self) -> None:
        """Return when everything under way is done and nothing is open."""
        self.pool.stop()
        await self.pool.join()
        self.files.close()
        self.disk.close()


class FileStore:
    """Keeps runs and values as files in a folder of a local file system.

    ``folder`` is created at the first write, with ``prefix`` as the folder inside it that holds
    everything; stores with different prefixes know nothing of each other. ``lock_timeout`` is
    how many seconds to wait for a lock that another process holds before ``StoreError`` is
    raised; locks are held for single writes only.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        prefix: str = "durable",
        lock_timeout: float = 10.0,
    ) -> None:
        path = os.fspath(folder)
        if not path or "\0" in path:
            raise ValueError(f"folder must be the path of a folder, got {path!r}")
        if not 0 <= lock_timeout < float("inf"):
            raise ValueError(f"lock_timeout must be a number of seconds, got {lock_timeout!r}")
        self._folder = os.path.abspath(path)
        self._prefix = check_prefix(prefix)
        self._lock_timeout = lock_timeout
        self._engines: dict[int, _Engine] = {}
        self._closed = False
        check_locks(self._folder)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> FileStore:
        """Return the store that ``url`` names: ``file:///folder``, an absolute path.

        Characters may be percent-encoded; ``%``, ``?`` and ``#`` must be. ``options`` are those
        of the class. Raises ``ValueError`` for any other URL, ``TypeError`` for other options.
        """
        check_options("FileStore", options, ("prefix", "lock_timeout"))
        path = url.removeprefix("file://")
        if path == url or not path.startswith("/") or not path.strip("/") or set(path) & {"?", "#"}:
            raise ValueError(
                f"a file store's URL is 'file:///folder' with an absolute path (write ? and # as "
                f"%3F and %23), got {url!r}"
            )
        return cls(unquote(path, errors="strict"), **options)

    def __repr__(self) -> str:
        return f"FileStore({self._folder!r})"

    async def __aenter__(self) -> FileStore:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the files and end the threads; any later call raises ``StoreError``.

        What is under way is finished first. The data stay.
        """
        self._closed = True
        engine = self._engines.pop(os.getpid(), None)
        if engine is not None:
            await engine.close()

    def _engine(self, operation: str, key: str) -> _Engine:
        if self._closed:
            raise StoreError(operation, key, "the store has been closed")
        engine = self._engines.get(pid := os.getpid())
        if engine is None:
            # Neither threads nor locks survive a fork: a child begins anew.
            self._engines = {other: kept for other, kept in self._engines.items() if other == pid}
            made = _Engine(self._folder, self._prefix, self._lock_timeout)
            engine = self._engines.setdefault(pid, made)
            if engine is made:
                weakref.finalize(self, made.pool.stop)
        return engine

    async def _call(self, operation: str, key: str, lane: str, work: Callable[[_Engine], T]) -> T:
        engine = self._engine(operation, key)

        def guarded() -> T:
            with gate(operation, key):
                return work(engine)

        return await engine.pool.run(lane, guarded)

    # The five methods.

    async def get(self, key: str) -> str | None:
        """Return the value under ``key``, or None."""
        check_key(key)
        return await self._call("get", key, f"value {key}", lambda engine: engine.values.get(key))

    async def set(self, key: str, value: str, *, ttl: float | None = None) -> None:
        """Put ``value`` under ``key``, for ``ttl`` seconds or for good."""
        check_key(key)
        check_text(value, "a value")
        check_ttl(ttl)
        await self._call(
            "set", key, f"value {key}", lambda engine: engine.values.set(key, value, ttl)
        )

    async def delete(self, key: str) -> bool:
        """Remove ``key``; return whether it was there."""
        check_key(key)
        return await self._call(
            "delete", key, f"value {key}", lambda engine: engine.values.delete(key)
        )

    async def exists(self, key: str) -> bool:
        """Return whether there is a value under ``key``."""
        check_key(key)
        value = await self._call(
            "exists", key, f"value {key}", lambda engine: engine.values.get(key)
        )
        return value is not None

    async def keys(self, pattern: str) -> list[str]:
        """Return the keys that match ``pattern``, sorted."""
        key_matcher(pattern)
        return await self._call("keys", pattern, "keys", lambda engine: engine.values.keys(pattern))

    async def swap(
        self, key: str, expected: str | None, value: str, *, ttl: float | None = None
    ) -> bool:
        """Put ``value`` under ``key`` if what is there is ``expected``; return whether it was."""
        check_key(key)
        check_text(value, "a value")
        check_ttl(ttl)
        return await self._call(
            "swap",
            key,
            f"value {key}",
            lambda engine: engine.values.swap(key, expected, value, ttl),
        )

    # The journal.

    @property
    def guarantees(self) -> Guarantees:
        """The processes of one machine; on the disk when acknowledged."""
        return _GUARANTEES

    async def claim(self, claim: Claim) -> Claimed | None:
        """Claim a run, creating it if need be."""
        check_text(claim.run_id, "a run id")
        _check_lines(claim.begin)
        return await self._call("claim", claim.run_id, claim.run_id, partial(_claim, claim=claim))

    async def append(self, batch: Sequence[Append]) -> Sequence[int | Refusal]:
        """Add lines to the logs of several runs."""
        if not batch:
            return []
        engine = self._engine("append", batch[0].run_id)
        places: dict[str, list[int]] = {}
        for place, member in enumerate(batch):
            _check_lines(member.lines)
            places.setdefault(member.run_id, []).append(place)
        works: list[tuple[str, Callable[[], list[int | Refusal]], Sequence[Append]]] = []
        for run_id, mine in places.items():
            members = [batch[place] for place in mine]
            plain = members if all(map(_is_plain, members)) else ()
            works.append((run_id, partial(engine.runs.append, run_id, members), plain))
        groups = await engine.pool.run_all(works)
        outcomes: list[int | Refusal] = [0] * len(batch)
        for mine, group in zip(places.values(), groups, strict=True):
            for place, outcome in zip(mine, group, strict=True):
                outcomes[place] = outcome
        return outcomes

    def append_soon(self, member: Append, settle: Callable[[int | Refusal], None]) -> None:
        """Begin to append ``member``; those of different runs reach the disk side by side."""
        run_id = member.run_id
        try:
            _check_lines(member.lines)
            engine = self._engine("append", run_id)
        except (StoreError, ValueError) as error:
            refusal = StoreError("append", run_id, str(error))
            refusal.__cause__ = error
            asyncio.get_running_loop().call_soon(settle, refusal)
            return
        members = (member,)

        def settle_one(result: object, error: BaseException | None) -> None:
            settle(_only_outcome(run_id, result, error))

        engine.pool.run_soon(
            run_id,
            partial(engine.runs.append, run_id, members),
            settle_one,
            members if _is_plain(member) else (),
        )

    async def renew(self, run_id: str, owner: str, fence: int, lease: float) -> int:
        """Let the lease run on."""
        return await self._call(
            "renew", run_id, run_id, lambda engine: engine.runs.renew(run_id, owner, fence, lease)
        )

    async def read(self, run_id: str, *, after: int = 0) -> RunLog | None:
        """Return the run, or None."""
        check_text(run_id, "a run id")
        return await self._call(
            "read", run_id, run_id, lambda engine: engine.runs.read(run_id, after)
        )

    async def deposit(self, run_id: str, key: str, value: str) -> Deposit | None:
        """Put ``value`` into the run's inbox; the first one wins."""
        for text, what in ((run_id, "a run id"), (key, "a key"), (value, "a value")):
            check_text(text, what)
        return await self._call(
            "deposit", run_id, run_id, lambda engine: engine.runs.deposit(run_id, key, value)
        )

    async def list_runs(self, query: ListQuery) -> list[Head]:
        """Return the heads that ``query`` describes, ordered by run id."""
        return await self._call(
            "list_runs", query.prefix, "list", lambda engine: engine.scan.list_runs(query)
        )

    async def delete_run(self, run_id: str, *, held: bool = False) -> bool:
        """Remove a run; return whether it was there."""
        check_text(run_id, "a run id")
        return await self._call(
            "delete_run", run_id, run_id, lambda engine: engine.runs.delete(run_id, held)
        )

    async def purge(self, limit: int = 100) -> int:
        """Remove up to ``limit`` expired runs and keys."""
        return await self._call("purge", "*", "purge", lambda engine: engine.scan.purge(limit))


def _claim(engine: _Engine, claim: Claim) -> Claimed | None:
    claimed = engine.runs.claim(claim)
    # What goes wrong with clearing away is no concern of the claim's.
    with suppress(OSError):
        if claimed is not None and engine.disk.is_purge_due():
            engine.pool.run_later("purge", lambda: engine.scan.purge(_REMOVE, look=_LOOK))
    return claimed


def _is_plain(member: Append) -> bool:
    """Return whether all that ``member`` does is to write at the end of its run's file."""
    return not member.epoch and not removes(member)


def _only_outcome(run_id: str, result: object, error: BaseException | None) -> int | Refusal:
    if error is None:
        (outcome,) = cast("list[int | Refusal]", result)
        return outcome
    refusal = StoreError("append", run_id, str(error))
    refusal.__cause__ = error
    return refusal


def _check_lines(lines: Sequence[str]) -> None:
    for line in lines:
        if "\n" in line:
            raise ValueError("a log's line must not hold a line break")

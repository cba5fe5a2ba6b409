"""What concerns all runs of a file store: listing them, and clearing away what has expired."""

# Made for each write or each file: a Path would cost as much as the calls themselves.
# ruff: noqa: PTH108, PTH116, PTH208

from __future__ import annotations

import logging
import os
from contextlib import suppress
from random import shuffle

from durable._errors import DurableError, StateFormatError
from durable._leases import HeadRow, is_expired, matches
from durable.store import Head, ListQuery
from durable_adapters._file_disk import STATUSES, Disk, lock, unlock
from durable_adapters._file_format import peek
from durable_adapters._file_names import decode_name
from durable_adapters._file_runs import Runs
from durable_adapters._file_values import Values

#: Seconds after which a file that a crash has left over is removed.
_LEFT_OVER = 3600.0

_log = logging.getLogger("durable.store")


class Scan:
    """Looks through a store's files without keeping any of them open."""

    def __init__(self, disk: Disk, runs: Runs, values: Values) -> None:
        self._disk = disk
        self._runs = runs
        self._values = values
        self._reported: set[str] = set()

    def list_runs(self, query: ListQuery) -> list[Head]:
        """Return the heads that ``query`` describes, ordered by run id."""
        found: list[Head] = []
        if query.limit <= 0:
            return found
        for _, name in self._candidates(query):
            known = self._head(name)
            if known is None:
                continue
            row, sequence = known
            now = self._disk.now()
            if not is_expired(row, now) and matches(row, query, now):
                found.append(row.head(now, sequence))
                if len(found) == query.limit:
                    break
        return found

    def _candidates(self, query: ListQuery) -> list[tuple[str, str]]:
        """Return the run ids and names that may meet the query, in the order of the ids."""
        pairs: list[tuple[str, str]] = []
        for name in self._names(query.status):
            run_id = decode_name(name)
            if run_id is None:
                # The name of a long id was cut: the file knows the rest.
                known = self._head(name)
                run_id = None if known is None else known[0].run_id
            if (
                run_id is not None
                and run_id.startswith(query.prefix)
                and (query.after is None or run_id > query.after)
            ):
                pairs.append((run_id, name))
        return sorted(pairs)

    def _names(self, statuses: frozenset[str] | None) -> set[str]:
        if statuses is None:
            return {
                entry.removesuffix(".log")
                for entry in _entries(self._disk.runs)
                if entry.endswith(".log")
            }
        folders = [f"{self._disk.index}/{status}" for status in STATUSES if status in statuses]
        # Back again, for a run whose status changes meanwhile from a later one to an earlier one.
        folders += folders[-2::-1]
        return {entry for folder in folders for entry in _entries(folder)}

    def _head(self, name: str) -> tuple[HeadRow, int] | None:
        """Return the head of the run called ``name``, and its log's length; None if it's gone.

        A damaged file is left out, with one entry in the program's log: it must not hide the
        others, and whoever claims or reads it gets the error.
        """
        path = self._disk.run_path(name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return self._peek(fd, path)
        except StateFormatError as error:
            if path not in self._reported:
                self._reported.add(path)
                _log.warning("a run is left out of lists: %s", error)
            return None
        finally:
            os.close(fd)

    def _peek(self, fd: int, path: str) -> tuple[HeadRow, int]:
        try:
            return peek(fd, os.fstat(fd).st_size, path)
        except StateFormatError:
            # It may have been changing at this very moment.
            lock(fd, self._disk.lock_timeout)
            try:
                return peek(fd, os.fstat(fd).st_size, path)
            finally:
                unlock(fd)

    def purge(self, limit: int, *, look: int | None = None) -> int:
        """Remove up to ``limit`` expired runs and values; return how many were removed.

        ``look``: how many files to look at, any of them; None for all.
        """
        removed = 0
        runs = [entry.removesuffix(".log") for entry in _entries(self._disk.runs)]
        for name in _some(runs, look):
            if removed >= limit:
                return removed
            removed += self._purge_run(name)
        for name in _some(list(self._values.names()), look):
            if removed >= limit:
                return removed
            with suppress(DurableError):
                removed += self._values.remove_expired(name)
        self._remove_left_over(look)
        return removed

    def _purge_run(self, name: str) -> bool:
        known = self._head(name)
        if known is None or not is_expired(known[0], self._disk.now()):
            return False
        with suppress(DurableError):
            return self._runs.remove_expired(known[0].run_id)
        return False

    def _remove_left_over(self, look: int | None) -> None:
        """Remove what crashes have left: temporary files, and markers of runs that are gone."""
        paths = [f"{self._disk.temporary}/{entry}" for entry in _entries(self._disk.temporary)]
        for status in STATUSES:
            folder = f"{self._disk.index}/{status}"
            for name in _some(_entries(folder), look):
                if not os.path.lexists(self._disk.run_path(name)):
                    paths.append(f"{folder}/{name}")
        for path in paths:
            with suppress(FileNotFoundError):
                if os.stat(path).st_mtime < self._disk.now() - _LEFT_OVER:
                    os.unlink(path)


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _some(entries: list[str], count: int | None) -> list[str]:
    if count is not None and len(entries) > count:
        shuffle(entries)
        del entries[count:]
    return entries

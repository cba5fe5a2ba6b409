"""Appends of many runs that reach the disk side by side, led by one thread.

A thread for each append would spend its time waiting for the interpreter between one system call
and the next. Here one thread does what is quick for all of them, and only the syncs overlap.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from durable._errors import DurableError, StoreError
from durable.store import Append, Refusal
from durable_adapters._file_disk import Disk, gate, sync
from durable_adapters._file_kept import RunFiles
from durable_adapters._file_pool import Job, Lanes, settle_all
from durable_adapters._file_run import RunFile
from durable_adapters._file_runs import Runs, copy_error


class _Write:
    """What is added to one run's file, which is locked meanwhile."""

    __slots__ = ("error", "jobs", "lane", "outcomes", "run")

    def __init__(self, run: RunFile, job: Job, followers: list[Job]) -> None:
        self.run = run
        self.lane = job.lane
        self.jobs = [job, *followers]
        self.outcomes: list[int | Refusal] = []
        self.error: DurableError | None = None

    @property
    def goes_on(self) -> bool:
        """Whether there is something to be written, and nothing has gone wrong so far."""
        return self.error is None and not self.run.is_flushed

    def attempt(self, part: Callable[[], None]) -> None:
        """Do a part of the write; what goes wrong concerns this write alone."""
        try:
            with gate("append", self.lane):
                part()
        except DurableError as error:
            self.error = error
        except Exception as error:
            self.error = StoreError("append", self.lane, str(error))
            self.error.__cause__ = error

    def compose(self, runs: Runs) -> None:
        """Find out what is to be written."""
        for member in self.members():
            self.outcomes.append(runs.append_to(self.run, member))

    def sync(self) -> None:
        """Return when what was written is on the disk."""
        sync(self.run.fd)

    def members(self) -> list[Append]:
        return [member for job in self.jobs for member in job.appends]

    def conclude(self) -> None:
        """Unlock the file, and let each job know what came of its members."""
        self.attempt(self.run.settle if self.error is None else self.run.undo)
        outcomes, at = self.outcomes, 0
        if self.error is not None:
            outcomes = [copy_error(self.error) for _ in self.members()]
        with suppress(Exception):
            self.run.unlock()
        for job in self.jobs:
            job.result = outcomes[at : at + len(job.appends)]
            at += len(job.appends)


class _Once:
    """Does something the first time it's called, and whenever that failed before."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._done = False

    def __call__(self) -> None:
        if not self._done:
            self._work()
            self._done = True


class _Syncs:
    """Syncs shared out among whatever threads are free, one at a time."""

    def __init__(self, writes: list[_Write]) -> None:
        self._writes = deque(writes)
        self._left = len(writes)
        self._lock = threading.Lock()
        self._done = threading.Event()

    def help(self) -> None:
        """Do one after the other until none is left."""
        while True:
            try:
                write = self._writes.popleft()
            except IndexError:
                return
            write.attempt(write.sync)
            with self._lock:
                self._left -= 1
                last = not self._left
            if last:
                self._done.set()

    def wait(self) -> None:
        """Return when those that others have begun are done too."""
        self._done.wait()


class Together:
    """Does many runs' appends at once; calling it returns when all are on the disk.

    It never waits for a lock, since it holds others: what can't be done at once is left to the
    lane's own job.
    """

    def __init__(self, disk: Disk, runs: Runs, files: RunFiles, helpers: int) -> None:
        self._disk = disk
        self._runs = runs
        self._files = files
        self._helpers = helpers

    def __call__(self, lanes: Lanes, jobs: list[Job]) -> None:
        """Do the appends of ``jobs``, each in its lane, which it leaves afterwards."""
        writes: list[_Write] = []
        for job in jobs:
            run: RunFile | None = None
            with suppress(Exception):  # the lane's own job will meet the trouble, and tell of it
                run = self._files.take_ready(job.lane)
            if run is None:
                lanes.jobs.put(job)
                continue
            write = _Write(run, job, lanes.followers(job.lane))
            write.attempt(partial(write.compose, self._runs))
            writes.append(write)
        self._sync_markers(writes)
        for write in writes:
            if write.goes_on:
                write.attempt(write.run.write)
        self._sync(lanes, [write for write in writes if write.goes_on])
        for write in writes:
            write.conclude()
        settle_all([job for write in writes for job in write.jobs])
        for write in writes:
            self._give_back(write)
            lanes.leave(write.lane)

    def _sync_markers(self, writes: list[_Write]) -> None:
        by_status: dict[str, list[_Write]] = {}
        for write in writes:
            for status in write.run.marked if write.goes_on else ():
                by_status.setdefault(status, []).append(write)
        for status, mine in by_status.items():
            sync_status = _Once(partial(self._disk.sync_markers, status))
            for write in mine:
                write.attempt(sync_status)

    def _sync(self, lanes: Lanes, writes: list[_Write]) -> None:
        if len(writes) == 1:
            writes[0].attempt(writes[0].sync)
        elif writes:
            syncs = _Syncs(writes)
            for _ in range(min(self._helpers, len(writes) - 1)):
                lanes.help.put(syncs.help)
            syncs.help()
            syncs.wait()

    def _give_back(self, write: _Write) -> None:
        if write.error is None and write.run.is_held:
            self._files.keep(write.run)
        else:
            write.run.close()

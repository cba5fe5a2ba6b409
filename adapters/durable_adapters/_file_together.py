"""Appends of many runs that reach the disk side by side, led by one thread.

A thread for each append would spend its time waiting for the interpreter between one system call
and the next. Here one thread does what is quick for all of them, and only the syncs overlap.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress

from durable._errors import DurableError, StoreError
from durable.store import Append, Refusal
from durable_adapters._file_disk import gate, sync
from durable_adapters._file_pool import Job, Lanes, settle_all
from durable_adapters._file_run import RunFile, RunFiles
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

    def write(self, runs: Runs) -> None:
        try:
            with gate("append", self.lane):
                for member in self.members():
                    self.outcomes.append(runs.append_to(self.run, member))
                self.run.write()
        except Exception as error:
            self.fail(error)

    def sync(self) -> None:
        try:
            with gate("append", self.lane):
                sync(self.run.fd)
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        if isinstance(error, DurableError):
            self.error = error
        else:
            self.error = StoreError("append", self.lane, str(error))
            self.error.__cause__ = error

    def members(self) -> list[Append]:
        return [member for job in self.jobs for member in job.appends]

    def give_outcomes(self) -> None:
        """Let each job know what came of its members."""
        outcomes, at = self.outcomes, 0
        if self.error is not None:
            outcomes = [each for each in outcomes if not isinstance(each, int)]
            outcomes = [copy_error(self.error) for _ in self.members()]
        for job in self.jobs:
            job.result = outcomes[at : at + len(job.appends)]
            at += len(job.appends)


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
            write.sync()
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

    def __init__(self, runs: Runs, files: RunFiles, helpers: int) -> None:
        self._runs = runs
        self._files = files
        self._helpers = helpers

    def __call__(self, lanes: Lanes, jobs: list[Job]) -> None:
        """Do the appends of ``jobs``, each in its lane, which it leaves afterwards."""
        writes: list[_Write] = []
        for job in jobs:
            run = self._files.take_ready(job.lane)
            if run is None:
                lanes.jobs.put(job)
                continue
            write = _Write(run, job, lanes.followers(job.lane))
            write.write(self._runs)
            writes.append(write)
        self._sync(lanes, [w for w in writes if w.error is None and not w.run.is_flushed])
        for write in writes:
            self._finish(write)
        settle_all(job for write in writes for job in write.jobs)
        for write in writes:
            lanes.leave(write.lane)

    def _sync(self, lanes: Lanes, writes: list[_Write]) -> None:
        if len(writes) == 1:
            writes[0].sync()
        elif writes:
            syncs = _Syncs(writes)
            for _ in range(min(self._helpers, len(writes) - 1)):
                lanes.help.put(syncs.help)
            syncs.help()
            syncs.wait()

    def _finish(self, write: _Write) -> None:
        run = write.run
        if write.error is None:
            run.settle()
        else:
            run.undo()
        write.give_outcomes()
        with suppress(OSError):
            run.unlock()
        if write.error is None and run.is_held:
            self._files.keep(run)
        else:
            run.close()

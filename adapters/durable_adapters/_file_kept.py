"""The run files that a store keeps open from one operation to the next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager, suppress
from threading import Lock

from durable._errors import DurableError
from durable_adapters._file_disk import Disk
from durable_adapters._file_run import RunFile

#: Closed files whose tapes are remembered.
_REMEMBERED = 4096


class RunFiles:
    """The run files of one store: a bounded number is kept open between operations."""

    def __init__(self, disk: Disk, most_open: int) -> None:
        self._disk = disk
        self._most_open = most_open
        self._guard = Lock()
        self._closed = False
        self._open: OrderedDict[str, RunFile] = OrderedDict()
        self._resting: OrderedDict[str, RunFile] = OrderedDict()

    @contextmanager
    def locked(self, run_id: str, *, keep: bool = False) -> Generator[RunFile | None, None, None]:
        """Give the run's file, locked; None if there is none.

        With ``keep`` the file of a run that is held afterwards stays open for the next operation.
        """
        with self._guard:
            known = self._open.pop(run_id, None) or self._resting.pop(run_id, None)
        run = known or RunFile(self._disk, run_id)
        try:
            if run.open_locked():
                yield run
                run.unlock()
            else:
                yield None
        except BaseException:
            with suppress(OSError):
                run.unlock()
            run.close()
            raise
        if (known or keep) and run.is_held:
            self.keep(run)
        else:
            run.close()

    def take_ready(self, run_id: str) -> RunFile | None:
        """Give the run's file, locked, if that takes neither waiting nor reading it.

        Whoever takes it must unlock it, and keep or close it.
        """
        with self._guard:
            run = self._open.pop(run_id, None) or self._resting.pop(run_id, None)
        if run is None:
            return None
        try:
            if run.lock_ready():
                return run
            run.unlock()
        except (OSError, DurableError):
            # Whoever goes the usual way will be told.
            run.close()
        else:
            self.keep(run)
        return None

    def keep(self, run: RunFile) -> None:
        """Keep an unlocked file open, and close the one that was longest unused."""
        with self._guard:
            if self._closed:
                run.close()
                return
            other = self._open.pop(run.run_id, None)
            if other is not None:
                other.close()
            self._open[run.run_id] = run
            if len(self._open) > self._most_open:
                run_id, oldest = self._open.popitem(last=False)
                oldest.rest()
                self._resting[run_id] = oldest
            if len(self._resting) > _REMEMBERED:
                self._resting.popitem(last=False)

    def close(self) -> None:
        """Close everything that isn't in use, and from now on whatever is given back."""
        with self._guard:
            self._closed = True
            for run in self._open.values():
                run.close()
            self._open.clear()
            self._resting.clear()

"""Folders, locks, durable writes and the clock of a file store."""

# Made for each write or each file: a Path would cost as much as the calls themselves.
# ruff: noqa: PTH108

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from zlib import crc32

from durable._errors import DurableError, StoreError

if sys.platform != "win32":
    import fcntl
    import resource

#: Every status a run can have: each has a folder of markers.
STATUSES = ("pending", "running", "paused", "failed", "finished", "cancelled")
#: Seconds between two looks for expired data.
_PURGE_EVERY = 60.0
#: Milliseconds to wait at most for a fence to be in the past before its run is forgotten.
_FENCE_PAUSES = 100


def check_locks(folder: str) -> None:
    """Raise ``StoreError`` on a system without POSIX file locks."""
    if sys.platform == "win32":
        raise StoreError("open", folder, "a file store needs POSIX file locks (fcntl)")


@contextmanager
def gate(operation: str, key: str) -> Generator[None, None, None]:
    """Let the system's errors leave as ``StoreError``: the only place that maps them."""
    try:
        yield
    except DurableError:
        raise
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise StoreError(operation, key, f"{error.strerror or error}{where}") from error


def sync(fd: int) -> None:
    """Return when the file's data and size are on the disk."""
    if sys.platform == "darwin":  # fsync stops at the drive's cache there
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(fd)


def sync_folder(path: str) -> None:
    """Return when the folder's entries are on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of ``data`` at ``offset``; what an error leaves behind is the caller's to undo."""
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        written += os.pwrite(fd, data[written:], offset + written)


def lock(fd: int, timeout: float) -> None:
    """Lock the file against every other opening of it, in this process too.

    Raises ``TimeoutError`` (an ``OSError``) when it can't be had for ``timeout`` seconds.
    """
    # Counted in pauses: a test may have stopped Python's clock.
    pause, waited = 0.0005, 0.0
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waited >= timeout:
                text = f"another process has held the file's lock for {timeout:g} seconds"
                raise TimeoutError(text) from None
        time.sleep(pause)
        waited += pause
        pause = min(pause * 2, 0.02)


def try_lock(fd: int) -> bool:
    """Lock the file if nobody else has locked it; return whether that is so."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(fd: int) -> None:
    """Give the lock back; a process forked meanwhile doesn't keep it."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def files_at_once() -> int:
    """Return how many files a store may keep open: a quarter of the process's limit at most."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 256 if limit == resource.RLIM_INFINITY else max(8, min(256, limit // 4))


class _FolderSync:
    """Syncs of one folder: threads that wait together share one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._begun = self._done = 0

    def sync(self) -> None:
        """Return when the entries that the folder has by now are on the disk."""
        # A sync that begins from here on takes in what has been done up to here.
        seen = self._begun
        with self._lock:
            if self._done > seen:
                return
            self._begun += 1
            sync_folder(self._path)
            self._done = self._begun


class Disk:
    """A store's folder: where everything lies, and the time there."""

    def __init__(self, folder: str, prefix: str, lock_timeout: float) -> None:
        self.root = f"{folder}/{prefix}"
        self.runs = f"{self.root}/runs"
        self.values = f"{self.root}/values"
        self.index = f"{self.root}/index"
        self.locks = f"{self.root}/locks"
        self.temporary = f"{self.root}/tmp"
        self.lock_timeout = lock_timeout
        self._folder = folder
        self._clock = -1
        self._next_purge = 0.0
        self._guard = threading.Lock()
        self._runs_sync = _FolderSync(self.runs)
        self._marker_syncs = {status: _FolderSync(f"{self.index}/{status}") for status in STATUSES}

    def run_path(self, name: str) -> str:
        """Return the path of the run called ``name``."""
        return f"{self.runs}/{name}.log"

    def value_path(self, name: str) -> str:
        """Return the path of the value called ``name``."""
        return f"{self.values}/{name}.json"

    def now(self) -> float:
        """Return the time of the folder's file system, in seconds since the epoch.

        It is the kernel's, the same for every process, whatever a test has put in the place of
        Python's clock.
        """
        if self._clock < 0:
            with self._guard:
                if self._clock < 0:
                    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                    self._clock = os.open(f"{self.root}/.clock", flags, 0o600)
        os.utime(self._clock)
        return os.fstat(self._clock).st_mtime

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open."""
        if self._clock >= 0:
            os.close(self._clock)
            self._clock = -1

    def is_purge_due(self) -> bool:
        """Return whether expired data should be looked for: once a minute, by any process."""
        now = self.now()
        if now < self._next_purge:
            return False
        self._next_purge = now + _PURGE_EVERY
        path = Path(f"{self.root}/.purged")
        try:
            due = path.stat().st_mtime + _PURGE_EVERY <= now
        except FileNotFoundError:
            due = False
            path.touch(0o600)
        if due:
            os.utime(path)
        return due

    def prepare(self) -> None:
        """Create the folders that are missing."""
        if Path(self.temporary).is_dir():
            return
        missing = [path for path in Path(self.temporary).parents if not path.exists()]
        Path(self._folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        folders = [self.root, self.runs, self.values, self.index, self.locks]
        folders += [f"{self.index}/{status}" for status in STATUSES]
        # The last one says that all are there.
        for path in (*folders, self.temporary):
            Path(path).mkdir(mode=0o700, exist_ok=True)
        for path in (self.index, self.root, *(str(made.parent) for made in missing)):
            sync_folder(path)

    @contextmanager
    def new_file(self, data: bytes) -> Generator[tuple[int, str], None, None]:
        """Give a new durable file with ``data``: locked, open, and its path.

        Its name is temporary: a file that wasn't renamed meanwhile is removed. Closing it is
        up to the caller, unless an error comes through here.
        """
        self.prepare()
        path = f"{self.temporary}/{os.getpid()}-{threading.get_ident()}-{os.urandom(4).hex()}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            lock(fd, self.lock_timeout)
            write_at(fd, data, 0)
            sync(fd)
            yield fd, path
        except BaseException:
            os.close(fd)
            raise
        finally:
            with suppress(OSError):
                os.unlink(path)

    def sync_runs(self) -> None:
        """Return when every run that has been created or removed by now is so on the disk."""
        self._runs_sync.sync()

    def mark(self, status: str, name: str, before: str = "") -> None:
        """Leave a marker: the run called ``name``, now ``before``, may have this status.

        It lasts once ``sync_markers`` has returned.
        """
        path = f"{self.index}/{status}/{name}"
        if before:
            # Another name of the old marker costs far less than a new file.
            with suppress(OSError):
                os.link(f"{self.index}/{before}/{name}", path)
                return
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def sync_markers(self, status: str) -> None:
        """Return when every marker of this status that has been left by now is on the disk."""
        self._marker_syncs[status].sync()

    def unmark(self, name: str, statuses: Iterable[str] = STATUSES) -> None:
        """Remove the markers of the run called ``name``.

        One that stays after all does no harm: whoever lists runs looks at the run itself.
        """
        for status in statuses:
            with suppress(OSError):
                os.unlink(f"{self.index}/{status}/{name}")

    def outlast(self, fence: int) -> None:
        """Return when a run recorded anew under the same id will get a higher fence.

        Fences start from the time in milliseconds, so this hardly ever waits.
        """
        for _ in range(_FENCE_PAUSES):
            if self.now() * 1000 >= fence + 1:
                return
            time.sleep(0.001)

    @contextmanager
    def value_lock(self, name: str) -> Generator[None, None, None]:
        """Keep every other writer away from the value called ``name``."""
        self.prepare()
        shard = f"{self.locks}/{crc32(name.encode()) % 64:02d}"
        fd = os.open(shard, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            lock(fd, self.lock_timeout)
            try:
                yield
            finally:
                unlock(fd)
        finally:
            os.close(fd)

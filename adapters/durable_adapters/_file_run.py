"""One run's file: opened, locked, read, and written at its end."""

# Made for each write or each file: a Path would cost as much as the calls themselves.
# ruff: noqa: PTH104, PTH108, PTH116

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from durable._errors import StateFormatError
from durable._leases import HeadRow
from durable_adapters._file_disk import Disk, lock, sync, try_lock, unlock, write_at
from durable_adapters._file_format import (
    HEADER,
    Renewal,
    Tape,
    format_header,
    last_operation,
    new_file_id,
    parse_header,
    read_at,
    record_lines,
)
from durable_adapters._file_names import encode_name

#: Bytes read at once.
CHUNK = 16 * 1024 * 1024
#: Characters of log lines after which a page ends.
PAGE = 64 * 1024 * 1024


def compose(row: HeadRow, lines: Sequence[str], inbox: Mapping[str, str]) -> tuple[Tape, bytes]:
    """Return a new file's content, and the tape at its end."""
    tape = Tape(new_file_id())
    parts = [format_header(Renewal(tape.file_id, tape.head_crc, 0.0, None))]
    parts += [tape.add_deposit(key, value) for key, value in inbox.items()]
    tape.sequence = row.first - 1
    parts += [tape.add_records(lines, final=False), tape.add_head(row)]
    return tape, b"".join(parts)


class RunFile:
    """The file of one run, and how far it is known.

    Only used by whoever took it out of ``RunFiles``, with the file locked. What ``put_records``,
    ``put_deposit`` and ``put_head`` add is on the disk once ``flush`` has returned. After an
    error other than a refusal the object must be closed: what it knows may not be so.
    """

    def __init__(self, disk: Disk, run_id: str) -> None:
        self.fd = -1
        self.run_id = run_id
        self.name = encode_name(run_id)
        self.path = disk.run_path(self.name)
        self.gone = False
        self._disk = disk
        self._identity = (0, 0)
        self._tape: Tape | None = None
        self._size = 0
        self._flushed = 0
        self._pending: list[bytes] = []
        #: Statuses whose markers must be on the disk before the file is written.
        self.marked: set[str] = set()
        self._left: set[str] = set()

    @property
    def tape(self) -> Tape:
        """What the file says; only after ``refresh`` or ``read_log``."""
        assert self._tape is not None
        return self._tape

    @property
    def row(self) -> HeadRow:
        """The head; its lease and expiry only after ``load_renewal``."""
        row = self.tape.row
        assert row is not None
        return row

    @property
    def is_held(self) -> bool:
        """Whether the run was held when it was last looked at."""
        return self.fd >= 0 and self._tape is not None and self.row.lease_until > 0

    @property
    def is_flushed(self) -> bool:
        """Whether everything that was put is on the disk."""
        return not self._pending

    # Opening and locking.

    def open_locked(self) -> bool:
        """Lock the file that has the run's name; return whether there is one."""
        while True:
            if self.fd < 0 and not self._open():
                return False
            lock(self.fd, self._disk.lock_timeout)
            try:
                there = os.stat(self.path)
            except FileNotFoundError:
                self.close()
                return False
            if (there.st_dev, there.st_ino) == self._identity:
                self._size = there.st_size
                return True
            # Another file has been put in its place while we waited, or since we last looked.
            self.close()

    def lock_ready(self) -> bool:
        """Lock the file if it's free and known to its end; return whether it is."""
        if (self.fd < 0 and not self._open()) or not try_lock(self.fd):
            return False
        there = os.stat(self.path)
        self._size = there.st_size
        return (
            self._tape is not None
            and self._size == self._flushed
            and (there.st_dev, there.st_ino) == self._identity
        )

    def _open(self) -> bool:
        try:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        found = os.fstat(self.fd)
        self._identity = (found.st_dev, found.st_ino)
        if self._tape is not None and not self._is_known():
            self._tape = None
        return True

    def _is_known(self) -> bool:
        header = read_at(self.fd, HEADER, 0)
        return parse_header(header, self.path).file_id == self.tape.file_id

    def unlock(self) -> None:
        """Give the lock back, if the file is still open."""
        if self.fd >= 0:
            unlock(self.fd)

    def rest(self) -> None:
        """Close the file, but remember what it says."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.rest()

    def close(self) -> None:
        """Close the file and forget what it says."""
        self.rest()
        self._tape = None
        self._pending.clear()
        self.marked.clear()
        self._left.clear()

    # Reading.

    def refresh(self) -> None:
        """Take in what others have written since; raise ``StateFormatError`` if it is damaged."""
        if self._tape is None or self._size < self._flushed:
            self._tape = self._begin()
        elif self._size == self._flushed:
            return
        for _ in self._pieces(self._tape):
            pass

    def read_log(self, after: int = 0) -> list[str]:
        """Read the whole file; return a page of the log's lines beyond the number ``after``.

        Raises ``StateFormatError`` if the file is damaged.
        """
        self._tape = tape = self._begin()
        lines: list[str] = []
        size = 0
        for data in self._pieces(tape):
            if size < PAGE:
                found = record_lines(data)
                lines += found[max(0, after - tape.sequence + len(found)) :]
                size += len(data) if lines else 0
        return lines

    def _begin(self) -> Tape:
        return Tape(parse_header(read_at(self.fd, HEADER, 0), self.path).file_id)

    def _pieces(self, tape: Tape) -> Iterator[bytes]:
        """Take in the rest of the file, and give it piece by piece: whole operations each.

        An operation torn at the very end is left out: the next write replaces it.
        """
        at, rest = tape.end, b""
        while at < self._size:
            piece = read_at(self.fd, min(CHUNK, self._size - at), at)
            if not piece:
                break
            at += len(piece)
            data = rest + piece
            end = last_operation(data)
            rest = data[end:]
            if end:
                whole = data[:end] if rest else data
                tape.take(whole, self.path)
                yield whole
        if torn := rest[: rest.rfind(b"\n") + 1]:
            tape.check(torn, self.path)
        self._check_head(tape)
        self._flushed = tape.end

    def _check_head(self, tape: Tape) -> None:
        if tape.row is None:
            raise StateFormatError(self.path, "it has no head: its beginning is all that's left")
        if tape.row.run_id != self.run_id:
            raise StateFormatError(self.path, f"it is the file of another run, {tape.row.run_id!r}")

    def load_renewal(self) -> HeadRow:
        """Return the head, the last renewal of its lease taken into account."""
        row = self.row
        renewal = parse_header(read_at(self.fd, HEADER, 0), self.path)
        if renewal.head == self.tape.head_crc:
            row.lease_until, row.expires_at = renewal.lease_until, renewal.expires_at
        return row

    def has(self, first: int, lines: tuple[str, ...]) -> bool:
        """Return whether the log has ``lines`` from the number ``first`` on."""
        self.flush()
        there = self.read_log(after=first - 1) if first >= self.row.first else []
        return tuple(there[: len(lines)]) == lines

    # Writing.

    def put_records(self, lines: Sequence[str], *, final: bool) -> None:
        """Add lines to the log; ``final``: no head follows as part of the same operation."""
        self._pending.append(self.tape.add_records(lines, final=final))

    def put_deposit(self, key: str, value: str) -> None:
        """Add an entry to the inbox; a head must follow."""
        self._pending.append(self.tape.add_deposit(key, value))

    def put_head(self, row: HeadRow, before: str) -> None:
        """Let ``row`` be the head; ``before`` is the status up to now."""
        if row.status != before:
            self._disk.mark(row.status, self.name, before)
            self.marked.add(row.status)
            self._left.add(before)
        self._pending.append(self.tape.add_head(row))

    def flush(self) -> None:
        """Return when everything that was put is on the disk; an error leaves nothing of it."""
        if not self._pending:
            return
        try:
            for status in self.marked:
                self._disk.sync_markers(status)
            self.write()
            sync(self.fd)
        except OSError:
            self.undo()
            raise
        self.settle()

    def write(self) -> None:
        """Write everything that was put, as a part of what ``flush`` does.

        The markers of ``marked`` must be on the disk. Once the file is, ``settle`` must follow;
        if something went wrong, ``undo``.
        """
        if self._size > self._flushed:
            os.ftruncate(self.fd, self._flushed)
        write_at(self.fd, b"".join(self._pending), self._flushed)

    def undo(self) -> None:
        """Take back what ``write`` has left."""
        with suppress(OSError):
            os.ftruncate(self.fd, self._flushed)
            sync(self.fd)

    def settle(self) -> None:
        """Take note that what was put is on the disk."""
        self._pending.clear()
        self._size = self._flushed = self.tape.end
        self.marked.clear()
        if self._left:
            self._disk.unmark(self.name, self._left - {self.row.status})
            self._left.clear()

    def confirm(self) -> None:
        """Return when what the file says is on the disk, whoever wrote it."""
        sync(self.fd)
        self._disk.sync_runs()

    def renew(self, row: HeadRow) -> None:
        """Record the lease and the expiry of ``row``, in place.

        It isn't flushed: a machine that fails takes the owner with it.
        """
        renewal = Renewal(self.tape.file_id, self.tape.head_crc, row.lease_until, row.expires_at)
        write_at(self.fd, format_header(renewal), 0)

    def create(self, row: HeadRow, lines: Sequence[str]) -> bool:
        """Make the file and lock it; return False if another process was faster."""
        tape, data = compose(row, lines, {})
        with self._disk.new_file(data) as (fd, path):
            self._mark(row.status)
            try:
                os.link(path, self.path)
            except FileExistsError:
                os.close(fd)
                return False
            self._adopt(fd, tape)
        self._disk.sync_runs()
        return True

    def replace(
        self, row: HeadRow, lines: Sequence[str], inbox: Mapping[str, str], before: str
    ) -> None:
        """Put a new file with this content in the place of this one, in one step."""
        tape, data = compose(row, lines, inbox)
        with self._disk.new_file(data) as (fd, path):
            if row.status != before:
                self._mark(row.status, before)
            os.rename(path, self.path)
            self.close()
            self._adopt(fd, tape)
        self._disk.sync_runs()
        if row.status != before:
            self._disk.unmark(self.name, (before,))

    def _mark(self, status: str, before: str = "") -> None:
        self._disk.mark(status, self.name, before)
        self._disk.sync_markers(status)

    def _adopt(self, fd: int, tape: Tape) -> None:
        found = os.fstat(fd)
        self.fd, self._identity, self._tape = fd, (found.st_dev, found.st_ino), tape
        self._size = self._flushed = tape.end

    def remove(self, fence: int) -> None:
        """Remove the file; nothing that was put but not flushed is left."""
        self._disk.outlast(fence)
        os.unlink(self.path)
        self.close()
        self.gone = True
        self._disk.sync_runs()
        self._disk.unmark(self.name)

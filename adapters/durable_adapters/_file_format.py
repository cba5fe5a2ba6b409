"""The text of a run's file.

    durable-run 1 <file id> <head> <lease until> <expires at> <checksum>
    r <number> <head's place> <a line of the log> <checksum>
    i ["<key>","<value>"] <checksum>
    H <number of lines so far> {"run_id": ..., "status": ...} <checksum>
    R <number> <head's place> <a line of the log> <checksum>

The first line has a fixed width and is the only one ever overwritten: it holds the last renewal
of the lease, and counts while ``<head>`` is the checksum of the last head. All others are only
added. An operation's lines are written at once; ``R`` and ``H`` end an operation, ``r`` and ``i``
have more to follow, so that an operation torn by a crash is told from a whole one.

A line's checksum is the CRC-32 of everything before it in the file (the first line counts with
its file id alone). So one call checks a whole file, a line that was changed, moved, removed or
taken from another file breaks everything behind it, and any line can be checked with nothing but
the one before it, which is how the head is found from the end of a large file.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import msgspec

from durable._errors import StateFormatError
from durable._leases import HeadRow

#: What every run's file begins with; the number is that of the format.
MAGIC = b"durable-run 1 "
_STATIC = len(MAGIC) + 16
#: Bytes of the first line.
HEADER = _STATIC + 1 + 8 + 1 + 24 + 1 + 24 + 1 + 9
#: Bytes of a line behind its text: a space, the checksum, the line's end.
_SEAL = 10
#: Where a head begins, behind one column of fixed width, and a log's line, behind two.
_HEAD = 2 + 9 + 1
_TEXT = _HEAD + 11 + 1
_FINAL = b"RH"
_RECORDS = frozenset("Rr")

_encode = msgspec.json.Encoder().encode
_decode_head = msgspec.json.Decoder(HeadRow).decode
_decode_deposit = msgspec.json.Decoder(tuple[str, str]).decode


class Renewal(msgspec.Struct, frozen=True):
    """What the first line holds: the lease's end and the expiry, if the last head is ``head``."""

    file_id: bytes
    head: bytes
    lease_until: float
    expires_at: float | None


def new_file_id() -> bytes:
    """Return an id for a new file: two files with one name can then be told apart."""
    return secrets.token_hex(8).encode()


def format_header(renewal: Renewal) -> bytes:
    """Return the first line of a run's file."""
    expires = b"-" if renewal.expires_at is None else repr(renewal.expires_at).encode()
    text = b"%s%s %s %24s %24s " % (
        MAGIC,
        renewal.file_id,
        renewal.head,
        repr(float(renewal.lease_until)).encode(),
        expires,
    )
    return b"%s%08x\n" % (text, crc32(text))


def parse_header(header: bytes, path: str) -> Renewal:
    """Return what the first line of the file ``path`` says; raise ``StateFormatError``."""
    if not header.startswith(MAGIC):
        known = header.startswith(MAGIC[:12])
        raise StateFormatError(
            f"{path} line 1",
            "it has another format than this version reads: update the library"
            if known
            else "it isn't the file of a run",
        )
    if len(header) != HEADER or header[-9:] != b"%08x\n" % crc32(header[:-9]):
        raise StateFormatError(f"{path} line 1", "its checksum doesn't fit")
    _, _, file_id, head, lease, expires, _ = header.split()
    return Renewal(file_id, head, float(lease), None if expires == b"-" else float(expires))


def read_at(fd: int, size: int, offset: int) -> bytes:
    """Return ``size`` bytes at ``offset``, fewer only where the file ends."""
    data = os.pread(fd, size, offset)
    while len(data) < size and (more := os.pread(fd, size - len(data), offset + len(data))):
        data += more
    return data


def last_operation(data: bytes) -> int:
    """Return where the last whole operation in ``data``, made of whole lines, ends; 0: nowhere."""
    end = data.rfind(b"\n") + 1
    while end:
        start = data.rfind(b"\n", 0, end - 1) + 1
        if data[start] in _FINAL:
            return end
        end = start
    return 0


def record_lines(data: bytes) -> list[str]:
    """Return the log's lines in ``data``, whole checked lines of a run's file."""
    rows = data.decode().split("\n")
    return [row[_TEXT:-9] for row in rows if row[:1] in _RECORDS]


def _number_at(data: bytes, at: int, width: int) -> int:
    """Return the number in the column at ``at``."""
    return int(data[at : at + width])


class Tape:
    """Where a run's file ends and what it says up to there, without the log's lines.

    ``crc`` is what the next line's checksum starts from, ``end`` the size in bytes.
    ``head_at`` is the place of the last head, ``head_crc`` its checksum.
    """

    __slots__ = (
        "crc",
        "end",
        "file_id",
        "head_at",
        "head_crc",
        "inbox",
        "row",
        "sequence",
    )

    def __init__(self, file_id: bytes) -> None:
        self.file_id = file_id
        self.crc = crc32(MAGIC + file_id)
        self.end = HEADER
        self.row: HeadRow | None = None
        self.head_at = 0
        self.head_crc = b"-" * 8
        self.sequence = 0
        self.inbox: dict[str, str] = {}

    # Writing: each method returns the bytes to be put at the end.

    def add_records(self, lines: Sequence[str], *, final: bool) -> bytes:
        """Add lines to the log; ``final`` says that nothing else belongs to the operation."""
        parts: list[bytes] = []
        last = len(lines) - 1 if final else -1
        for at, line in enumerate(lines):
            self.sequence += 1
            kind = "R" if at == last else "r"
            text = f"{kind} {self.sequence:>9} {self.head_at:>11} {line} "
            parts.append(self._seal(text.encode()))
        return b"".join(parts)

    def add_deposit(self, key: str, value: str) -> bytes:
        """Add an entry to the inbox; a head must follow."""
        self.inbox[key] = value
        return self._seal(b"i %s " % _encode((key, value)))

    def add_head(self, row: HeadRow) -> bytes:
        """Let ``row`` be the head from here on."""
        self.row, self.head_at = row, self.end
        line = self._seal(b"H %9d %s " % (self.sequence, _encode(row)))
        self.head_crc = line[-9:-1]
        return line

    def _seal(self, text: bytes) -> bytes:
        crc = crc32(text, self.crc)
        field = b"%08x\n" % crc
        self.crc = crc32(field, crc)
        self.end += len(text) + 9
        return text + field

    # Reading.

    def take(self, data: bytes, path: str) -> None:
        """Take in ``data``, whole operations that stand where the tape ends.

        Raises ``StateFormatError`` that names the line which can't be trusted.
        """
        crc = self.check(data, path)
        try:
            last = data.rfind(b"\n", 0, -1) + 1
            ends_in_head = data[last] == _FINAL[1]
            at = last if ends_in_head else _number_at(data, last + _HEAD, 11) - self.end
            if at >= 0:
                self._take_head(data, at)
            self.sequence = _number_at(data, last + 2, 9)
        except (ValueError, IndexError, msgspec.DecodeError) as error:
            where = f"{path} line {_line_number(path, self.end)} or behind it"
            raise StateFormatError(where, "it isn't what this version writes") from error
        self.crc = crc
        self.end += len(data)

    def _take_head(self, data: bytes, at: int) -> None:
        line = data[at : data.index(b"\n", at)]
        self.row = _decode_head(line[_HEAD:-9])
        self.head_at, self.head_crc = self.end + at, line[-8:]
        if self.row.inbox != len(self.inbox):
            rows = (row for row in data.split(b"\n") if row[:2] == b"i ")
            self.inbox.update(_decode_deposit(row[2:-9]) for row in rows)

    def check(self, data: bytes, path: str) -> int:
        """Return what a line behind ``data`` starts from; raise ``StateFormatError``.

        ``data`` are whole lines that stand where the tape ends.
        """
        crc = crc32(memoryview(data)[:-9], self.crc)
        field = b"%08x\n" % crc
        if data[-9:] != field:
            number = _line_number(path, self.end) + self._bad_line(data)
            raise StateFormatError(f"{path} line {number}", "its checksum doesn't fit")
        return crc32(field, crc)

    def _bad_line(self, data: bytes) -> int:
        """Return how many lines of ``data`` come before the first that can't be trusted."""
        crc = self.crc
        rows = data.split(b"\n")[:-1]
        for place, row in enumerate(rows):
            crc = crc32(row[:-8], crc)
            field = b"%08x\n" % crc
            if row[-8:] != field[:-1]:
                return place
            crc = crc32(field, crc)
        return len(rows) - 1


def _line_number(path: str, at: int) -> int:
    """Return the number of the line at ``at`` in the file ``path``."""
    with Path(path).open("rb") as file:
        return file.read(at).count(b"\n") + 1


def peek(fd: int, size: int, path: str) -> tuple[HeadRow, int]:
    """Return a run's head and the number of its log's lines, reading only the file's two ends.

    Raises ``StateFormatError`` if what was read can't be trusted.
    """
    renewal = parse_header(read_at(fd, HEADER, 0), path)
    at, line = _last_line(fd, size, path, crc32(MAGIC + renewal.file_id))
    try:
        sequence = _number_at(line, 2, 9)
        if line[:1] == b"R":
            at = _number_at(line, _HEAD, 11)
            line = _line_at(fd, at, size, path, crc32(MAGIC + renewal.file_id))
        row = _decode_head(line[_HEAD:-10])
    except (ValueError, IndexError, msgspec.DecodeError) as error:
        if isinstance(error, StateFormatError):
            raise
        where = f"{path} at byte {at}"
        raise StateFormatError(where, "it isn't what this version writes") from error
    if renewal.head == line[-9:-1]:
        row.lease_until, row.expires_at = renewal.lease_until, renewal.expires_at
    return row, sequence


def _last_line(fd: int, size: int, path: str, seed: int) -> tuple[int, bytes]:
    """Return the line that ends the last whole operation, checked, and its place."""
    block = 4096
    while True:
        start = max(HEADER, size - block)
        data = read_at(fd, size - start, start)
        end = last_operation(data)
        at = data.rfind(b"\n", 0, max(0, end - 1)) + 1
        # The line's beginning must be in sight, and so must the checksum before it.
        if start == HEADER or at >= _SEAL:
            break
        block *= 16
    if not end:
        raise StateFormatError(path, "it has no head: its beginning is all that's left")
    line, before = data[at:end], data[at - 9 : at]
    _check_line(line, before if start + at > HEADER else None, seed, f"{path} at byte {start + at}")
    return start + at, line


def _line_at(fd: int, at: int, size: int, path: str, seed: int) -> bytes:
    """Return the line at ``at``, checked."""
    block, data = 4096, b""
    while not (end := data.find(b"\n", 9) + 1) and at - 9 + len(data) < size:
        data = read_at(fd, block, at - 9)
        block *= 16
    before = data[:9] if at > HEADER else None
    _check_line(data[9:end], before, seed, f"{path} at byte {at}")
    return data[9:end]


def _check_line(line: bytes, before: bytes | None, seed: int, where: str) -> None:
    try:
        crc = seed if before is None else crc32(before, int(before[:8], 16))
    except ValueError:
        raise StateFormatError(where, "the checksum before it isn't one") from None
    if line[-9:] != b"%08x\n" % crc32(line[:-9], crc):
        raise StateFormatError(where, "the line's checksum doesn't fit")

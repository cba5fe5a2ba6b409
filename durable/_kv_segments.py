"""How ``KeyValueJournal`` lays a run out on keys: names, checked values, and when to merge.

A run has one head, ``PREFIX:h:RUN``; the parts of its log, ``PREFIX:l:RUN:INCARNATION:FIRST-LAST-
LEVEL-FENCE``; and one key for each deposit, ``PREFIX:i:RUN:INCARNATION:KEY``. The head decides:
what it doesn't account for (parts of an earlier epoch or incarnation, parts that a merge has put
into a larger one, parts of an owner that was fenced off) doesn't count, whenever it is found.

Merging levels of a log: Patrick O'Neil et al., "The log-structured merge-tree" (1996).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from urllib.parse import unquote

import msgspec

from durable._errors import StateFormatError
from durable._leases import HeadRow

#: Parts of one level that are merged into one of the next.
FAN_IN = 64
#: Characters that a merged part has at most; parts of half of that are never rewritten.
LARGEST = 1_000_000
#: Characters of a part's text that are kept in memory until it's merged.
CACHED = 16_000
#: Characters of lines that a head carries along.
CARRIED = 8_000

# Compiled at their first use: programs on other stores never come to it.
_UNSAFE = r"[\x00-\x1f %*:?\[\]\\/^\x7f]"
_PART = r"([0-9]+)-([0-9]+)-([0-9]+)-([0-9]+)"


def quoted(text: str) -> str:
    """Return ``text`` as a key's component, free of separators and of what patterns may mean."""
    return re.sub(_UNSAFE, lambda found: f"%{ord(found[0]):02X}", text)


class Chunk(msgspec.Struct, frozen=True):
    """Lines that are stored in the head itself, so that both change in one write."""

    first: int
    fence: int
    lines: tuple[str, ...]

    @property
    def last(self) -> int:
        """The sequence number of the last line."""
        return self.first + len(self.lines) - 1


class StoredHead(msgspec.Struct, frozen=True):
    """A run's head as it is stored.

    ``incarnation`` tells this run's keys from those of an earlier run of the same id. ``writer``
    is the journal that wrote it: leases count while that object lives. ``base`` is the log's
    length at the last claim, ``sequence`` that at this write.
    """

    row: HeadRow
    incarnation: str
    writer: str
    base: int
    sequence: int
    chunks: tuple[Chunk, ...] = ()
    format: int = 1


class Part:
    """A stored piece of a log. ``size`` is 0 until it's known; ``lines`` may be kept a while."""

    __slots__ = ("fence", "first", "last", "level", "lines", "size")

    def __init__(
        self, first: int, last: int, level: int, fence: int, lines: tuple[str, ...] | None = None
    ) -> None:
        self.first, self.last, self.level, self.fence = first, last, level, fence
        self.size = 0 if lines is None else sum(map(len, lines)) + len(lines)
        self.lines = lines if self.size <= CACHED else None

    @property
    def name(self) -> str:
        """The last component of its key."""
        return f"{self.first}-{self.last}-{self.level}-{self.fence}"


class Keys:
    """The names of a journal's keys."""

    def __init__(self, prefix: str) -> None:
        self._prefix = quoted(prefix)

    def head(self, run_id: str) -> str:
        """Return the key of a run's head; it also begins those of ids that begin so."""
        return f"{self._prefix}:h:{quoted(run_id)}"

    def log(self, run_id: str, incarnation: str = "") -> str:
        """Return what the keys of a run's log begin with."""
        return f"{self._prefix}:l:{quoted(run_id)}:" + (f"{incarnation}:" if incarnation else "")

    def inbox(self, run_id: str, incarnation: str = "") -> str:
        """Return what the keys of a run's inbox begin with."""
        return f"{self._prefix}:i:{quoted(run_id)}:" + (f"{incarnation}:" if incarnation else "")

    def all(self, kind: str, beginning: str = "") -> str:
        """Return what the keys of a kind begin with, of runs whose ids begin so."""
        return f"{self._prefix}:{kind}:{quoted(beginning)}"

    def run_of(self, key: str) -> str:
        """Return the run id in a key."""
        return unquote(key[len(self._prefix) + 3 :].partition(":")[0])


def sealed(key: str, body: str) -> str:
    """Return ``body`` as the value of ``key``: behind a checksum of both."""
    return f"{zlib.crc32(body.encode(), zlib.crc32(key.encode())):08x}{body}"


def opened(key: str, value: str) -> str:
    """Return what ``sealed`` was given; ``StateFormatError`` if the value was changed or moved."""
    body = value[8:]
    try:
        whole = sealed(key, body) == value
    except UnicodeEncodeError:
        whole = False
    if not whole:
        raise StateFormatError(f"the key {key!r}", "its checksum doesn't fit: it was changed")
    return body


def write_head(key: str, head: StoredHead) -> str:
    """Return the value of a head's key."""
    return sealed(key, msgspec.json.encode(head).decode())


def read_head(key: str, value: str) -> StoredHead:
    """Return the head that ``value`` holds, or raise ``StateFormatError``."""
    try:
        return msgspec.json.decode(opened(key, value), type=StoredHead)
    except msgspec.DecodeError as error:
        raise StateFormatError(f"the key {key!r}", f"it is no head: {error}") from None


def write_lines(key: str, lines: Sequence[str]) -> str:
    """Return the value of a part's key."""
    return sealed(key, "\n".join(lines))


def read_lines(key: str, value: str, part: Part) -> tuple[str, ...]:
    """Return the lines that ``value`` holds, or raise ``StateFormatError``."""
    lines = tuple(opened(key, value).split("\n"))
    if len(lines) != part.last - part.first + 1:
        raise StateFormatError(f"the key {key!r}", f"it has {len(lines)} lines, not as named")
    return lines


def arrange(head: StoredHead, names: Sequence[str]) -> tuple[list[Part], list[str], int]:
    """Return the parts that count, the names of those that don't, and the log's last number.

    Raises ``StateFormatError`` if lines are missing or overlap in a way that no merge leaves.
    """
    row, parts, leftovers = head.row, list[Part](), list[str]()
    position, fence = row.first, 0
    for piece in sorted(_pieces(head, names, leftovers), key=_order):
        if piece.last < position or piece.fence < fence:
            if isinstance(piece, Part):
                leftovers.append(piece.name)
            continue
        if piece.first != position:
            what = "missing" if piece.first > position else "recorded twice"
            raise _broken(row.run_id, f"the lines around number {position} are {what}")
        position, fence = piece.last + 1, piece.fence
        if isinstance(piece, Part):
            parts.append(piece)
    if position <= head.sequence:
        raise _broken(row.run_id, f"the lines from number {position} on are missing")
    return parts, leftovers, position - 1


def _pieces(head: StoredHead, names: Sequence[str], leftovers: list[str]) -> Iterator[Part | Chunk]:
    yield from (chunk for chunk in head.chunks if chunk.lines)
    for name in names:
        found = re.fullmatch(_PART, name)
        if found is None:
            raise _broken(head.row.run_id, f"the key's name {name!r} is none of this format")
        first, last, level, fence = map(int, found.groups())
        part = Part(first, last, level, fence)
        late = part.first > head.base and part.fence < head.row.fence
        if late or part.last < head.row.first:
            leftovers.append(name)
        elif part.first < head.row.first:
            raise _broken(head.row.run_id, f"the lines {name} lie on both sides of an epoch")
        else:
            yield part


def _order(piece: Part | Chunk) -> tuple[int, int, int, bool]:
    return piece.first, -piece.last, -piece.fence, isinstance(piece, Chunk)


def _broken(run_id: str, reason: str) -> StateFormatError:
    return StateFormatError(f"the log of run {run_id!r}", reason)


def next_merge(parts: Sequence[Part]) -> tuple[list[Part], int] | None:
    """Return neighbours that are due to be merged, and the level they make; None if none are.

    Every line rises by a level whenever it's rewritten, so it is rewritten a few times at most.
    """
    for level in range(max((part.level for part in parts), default=-1) + 1):
        for group in _neighbours(parts, level):
            # Smaller ones at the ends wait until there are enough of them.
            while group and group[-1].level < level:
                group.pop()
            while group and group[0].level < level:
                group.pop(0)
            if sum(part.level == level for part in group) >= FAN_IN:
                return group, level + 1
    return None


def _neighbours(parts: Sequence[Part], level: int) -> Iterator[list[Part]]:
    group: list[Part] = []
    for part in parts:
        fits = part.level <= level and part.size < LARGEST // 2
        if group and (not fits or group[-1].last + 1 != part.first):
            yield group
            group = []
        if fits:
            group.append(part)
    if group:
        yield group


def packed(group: Sequence[Part]) -> Iterator[list[Part]]:
    """Split neighbours of known sizes into such that make one part each."""
    pack: list[Part] = []
    size = 0
    for part in group:
        if pack and size + part.size > LARGEST:
            yield pack
            pack, size = [], 0
        pack.append(part)
        size += part.size
    if pack:
        yield pack

"""One run as ``KeyValueJournal`` keeps it: its head, the parts of its log, and its inbox."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Sequence
from urllib.parse import unquote

import msgspec

from durable._errors import StateFormatError, StoreError
from durable._kv_gate import AnyLoopLock, Gate, gathered
from durable._kv_segments import (
    CARRIED,
    FAN_IN,
    LARGEST,
    Chunk,
    Keys,
    Part,
    StoredHead,
    arrange,
    next_merge,
    opened,
    packed,
    quoted,
    read_lines,
    sealed,
    write_head,
    write_lines,
)
from durable._leases import HeadRow
from durable.store import RunLog

log = logging.getLogger("durable")

#: A page of a log ends beyond so many characters, or lines.
_PAGE_SIZE = 8_000_000
_PAGE_LINES = 20_000
#: Parts that are read at once.
_WAVE = 16


class KvRun:
    """A run that was read from the store; all writes to its keys go through here.

    ``stale`` is set when a write failed, since it's unknown then what the store has.
    """

    def __init__(self, gate: Gate, keys: Keys, head: StoredHead, text: str | None) -> None:
        self.head = head
        self.row: HeadRow = head.row
        self.stale = False
        self.parts: list[Part] = []
        self.leftovers: list[str] = []
        self.sequence = head.sequence
        self.inbox: dict[str, str] = {}
        self.merging = AnyLoopLock()
        self._gate = gate
        self._keys = keys
        self._text = text
        self._loose = 0
        self._log_key = keys.log(head.row.run_id, head.incarnation)
        self._inbox_key = keys.inbox(head.row.run_id, head.incarnation)

    async def load(self) -> None:
        """Read which parts the log has, and the inbox."""
        names, inbox = await asyncio.gather(
            self._gate.keys(self._log_key), self._gate.keys(self._inbox_key)
        )
        start = len(self._log_key)
        found = arrange(self.head, [name[start:] for name in names])
        self.parts, self.leftovers, self.sequence = found
        self._loose = len(self.parts)
        values = await gathered(self._gate.get, inbox)
        for key, value in zip(inbox, values, strict=True):
            if value is not None:
                self.inbox[unquote(key[len(self._inbox_key) :])] = opened(key, value)
        self.row.inbox = len(self.inbox)

    # Reading the log.

    async def page(self, now: float, after: int = 0) -> RunLog:
        """Return the run with the log's lines beyond ``after``, or the first page of them."""
        first = max(self.row.first, after + 1)
        while True:
            try:
                lines, more = await self._lines(first)
                break
            except _MovedError:
                continue
        return RunLog(
            head=self.row.head(now, self.sequence),
            lines=lines,
            first=first,
            more=more,
            inbox=dict(self.inbox),
        )

    async def recorded(self, first: int, count: int) -> tuple[str, ...] | None:
        """Return ``count`` recorded lines from the number ``first`` on; None if there aren't."""
        if first < self.row.first or first + count - 1 > self.sequence:
            return None
        found: list[str] = []
        while len(found) < count:
            try:
                lines, _ = await self._lines(first + len(found), enough=count - len(found))
            except _MovedError:
                continue
            found += lines
        return tuple(found[:count])

    async def _lines(self, first: int, enough: int = _PAGE_LINES) -> tuple[tuple[str, ...], bool]:
        pieces: list[Part | Chunk] = [*self.parts, *self.head.chunks]
        pieces = sorted((piece for piece in pieces if piece.last >= first), key=_first)
        lines: list[str] = []
        size, read = 0, 0
        while read < len(pieces) and size < _PAGE_SIZE and len(lines) < enough:
            for piece, text in zip(
                pieces[read : read + _WAVE],
                await gathered(self._text_of, pieces[read : read + _WAVE]),
                strict=True,
            ):
                kept = text[max(0, first + len(lines) - piece.first) :]
                lines += kept
                size += sum(map(len, kept))
            read += _WAVE
        return tuple(lines), read < len(pieces)

    async def _text_of(self, piece: Part | Chunk) -> tuple[str, ...]:
        if piece.lines is not None:
            return piece.lines
        assert isinstance(piece, Part)
        key = self._log_key + piece.name
        value = await self._gate.get(key)
        if value is None and piece not in self.parts:
            raise _MovedError
        if value is None:
            raise StateFormatError(f"the key {key!r}", "it was listed, but has no value")
        piece.size = len(value)
        return read_lines(key, value, piece)

    # Writing.

    async def put_head(
        self,
        row: HeadRow,
        writer: str,
        lines: Sequence[str] = (),
        *,
        epoch: bool = False,
        claimed: bool = False,
    ) -> None:
        """Make ``row`` the head, and ``lines`` the next of the log, in one write.

        ``epoch``: the log then has these lines alone. ``claimed``: earlier owners' late lines
        don't count from here on.
        """
        await self.settled()
        chunks = () if epoch else self.head.chunks
        first = row.first if epoch else self.sequence + 1
        if lines:
            chunks = (*chunks, Chunk(first, row.fence, tuple(lines)))
        sequence = first + len(lines) - 1
        head = StoredHead(
            row=row,
            incarnation=self.head.incarnation,
            writer=writer,
            base=sequence if claimed else self.head.base,
            sequence=sequence,
            chunks=chunks,
        )
        await self._put(head)
        self.sequence = sequence
        if epoch:
            self.leftovers += [part.name for part in self.parts]
            self.parts = []
        if sum(sum(map(len, chunk.lines)) for chunk in chunks) > CARRIED:
            await self._unload()

    async def _put(self, head: StoredHead) -> None:
        """Write the head if it's still as it was read."""
        key = self._keys.head(head.row.run_id)
        text = write_head(key, head)
        if self._text is not None and await self._gate.get(key) != self._text:
            self.stale = True
            raise StoreError("set", head.row.run_id, "something else has changed the run")
        try:
            await self._gate.set(key, text)
        except BaseException:
            self.stale = True
            raise
        self.head, self.row, self._text = head, head.row, text

    async def _unload(self) -> None:
        """Move the lines that the head carries to keys of their own.

        The head that carries them is written already, so a failure here costs nothing.
        """
        try:
            for chunk in self.head.chunks:
                part = Part(chunk.first, chunk.last, 0, chunk.fence, chunk.lines)
                await self._put_part(part, chunk.lines)
            await self._put(msgspec.structs.replace(self.head, chunks=()))
        except (StoreError, StateFormatError) as error:
            self.stale = True
            log.warning("run %r: its head stays large for now: %s", self.row.run_id, error)

    async def put_lines(self, lines: Sequence[str]) -> None:
        """Add ``lines`` to the log, under one new key."""
        if not lines:
            return
        first = self.sequence + 1
        part = Part(first, first + len(lines) - 1, 0, self.row.fence, tuple(lines))
        await self._put_part(part, lines)
        self.sequence = part.last
        self._loose += 1

    async def _put_part(self, part: Part, lines: Sequence[str]) -> None:
        key = self._log_key + part.name
        try:
            await self._gate.set(key, write_lines(key, lines))
        except BaseException:
            self.stale = True
            raise
        self.parts.append(part)
        if len(self.parts) > 1 and self.parts[-2].first > part.first:
            self.parts.sort(key=_first)

    async def deposit(self, name: str, value: str) -> None:
        """Put a new deposit into the inbox."""
        key = self._inbox_key + quoted(name)
        try:
            await self._gate.set(key, sealed(key, value))
        except BaseException:
            self.stale = True
            raise
        self.inbox[name] = value
        self.row.inbox = len(self.inbox)

    async def remove(self) -> None:
        """Remove the run: its head first, for with that it's gone; then whatever it had."""
        await self.settled()
        run_id = self.row.run_id
        self.stale = True
        await self._gate.delete(self._keys.head(run_id))
        try:
            for kind in (self._keys.log(run_id), self._keys.inbox(run_id)):
                await self._gate.delete_all(await self._gate.keys(kind))
        except StoreError as error:
            log.warning("run %r: some keys of it are left for purge: %s", run_id, error)

    async def sweep(self) -> None:
        """Delete keys that don't count any more; those that stay are harmless."""
        names, self.leftovers = self.leftovers, []
        try:
            await self._gate.delete_all([self._log_key + name for name in names])
        except StoreError as error:
            log.warning("run %r: some old keys stay for now: %s", self.row.run_id, error)

    # Merging.

    def wants_merge(self) -> bool:
        """Return whether to look for parts to merge; if so, ``merging`` is taken for it."""
        return self._loose >= FAN_IN and self.merging.try_acquire()

    async def settled(self) -> None:
        """Wait until no merge is under way."""
        await self.merging.acquire()
        self.merging.release()

    async def merge(self) -> None:
        """Merge the parts that are due. Whoever calls this has taken ``merging``."""
        self._loose = 0
        try:
            while (due := next_merge(self.parts)) is not None:
                group, level = due
                texts = dict(zip(group, await gathered(self._text_of, group), strict=True))
                if all(part.size < LARGEST // 2 for part in group):
                    for pack in packed(group):
                        await self._replace(pack, level, texts)
        except Exception as error:
            log.warning("run %r: parts stay unmerged for now: %s", self.row.run_id, error)

    async def _replace(
        self, pack: list[Part], level: int, texts: dict[Part, tuple[str, ...]]
    ) -> None:
        """Write ``pack`` as one part, then forget and delete its members."""
        if len(pack) == 1:
            return
        lines = tuple(line for part in pack for line in texts[part])
        fence = max(part.fence for part in pack)
        merged = Part(pack[0].first, pack[-1].last, level, fence, lines)
        merged.lines = None
        key = self._log_key + merged.name
        await self._gate.set(key, write_lines(key, lines))
        at = self.parts.index(pack[0])
        self.parts[at : at + len(pack)] = [merged]
        await self._gate.delete_all([self._log_key + part.name for part in pack])

    def copied_row(self) -> HeadRow:
        """Return a copy of the head to change and then put."""
        return copy.copy(self.row)


class _MovedError(Exception):
    """A part was merged while it was being read; it must be looked up again."""


def _first(piece: Part | Chunk) -> int:
    return piece.first

"""One run's log being written: the order of its lines, their durability, and what went wrong."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from contextlib import suppress

from durable._commit import GroupCommit, Pending
from durable._errors import DurableError, StoreError
from durable._format import format_line, line_seed
from durable._options import Durability
from durable._records import Pass, Record
from durable.store import Append, HeadChange, Journal, Refusal

#: Unacknowledged appends of one run in the durability "async" before the next step waits.
_AHEAD = 500

Settled = Callable[[bool], None]


def _nothing(_: bool) -> None:
    """Settle what nobody waits for."""


def _retrieve(future: asyncio.Future[int]) -> None:
    if not future.cancelled():
        future.exception()


class LogWriter:
    """Appends records to the log of a run that this process owns.

    Once an append has failed nothing more is written: the error is raised again by whatever is
    asked next. ``opening`` is written with the first record of all.
    """

    def __init__(
        self,
        journal: Journal,
        commits: GroupCommit,
        run_id: str,
        owner: str,
        fence: int,
        durability: Durability,
        *,
        first: int,
        present: int,
        opening: Pass,
    ) -> None:
        self.failed: DurableError | None = None
        self.inbox: int = 0
        self._journal = journal
        self._commits = commits
        self._run_id = run_id
        self._owner = owner
        self._fence = fence
        self._seed = line_seed(run_id)
        self._inline = journal.guarantees.inline
        self._durability = durability
        self._first = first
        self._present = present
        self._opening: Pass | None = opening
        self._buffer: list[str] = []
        self._unsettled = 0
        self._idle: asyncio.Future[None] | None = None

    @property
    def sequence(self) -> int:
        """The number of lines the log has ever had, those on their way included."""
        return self._first + self._present - 1

    def check(self) -> None:
        """Raise what made an earlier append fail, if one did."""
        if self.failed is not None:
            error = copy.copy(self.failed)
            error.__cause__ = self.failed.__cause__
            raise error

    def fail(self, error: DurableError) -> None:
        """Let nothing more be written, because of ``error``."""
        if self.failed is None:
            self.failed = error

    async def write(self, record: Record, settled: Settled = _nothing) -> None:
        """Append ``record``; return when it is as durable as the run's durability asks.

        ``settled`` is called once, when the outcome is known, with whether it was written; also
        when the caller is cancelled meanwhile.
        """
        if self.failed is not None:
            settled(False)
            self.check()
        lines: tuple[str, ...]
        if self._opening is None:
            self._present += 1
            lines = (format_line(record, self._seed, self._present),)
        else:
            lines = self._format((record,))
        if self._inline and self._durability == "sync":
            await self._send_inline(self._append(lines), settled)
        elif self._durability == "exit":
            self._buffer.extend(lines)
            settled(True)
        elif self._durability == "sync":
            await self._send(self._append(lines), settled)
        else:
            settled(True)
            # Nobody awaits it: what goes wrong is raised by the next step, or the flush.
            self._submit(self._append(lines), _nothing).add_done_callback(_retrieve)
            if self._unsettled > _AHEAD:
                await self.flush()

    async def flush(self) -> None:
        """Return when everything written so far is durable; raise what made it fail."""
        if self._buffer:
            await self._send(self._append(self._take_buffer()), _nothing)
        while self._unsettled:
            if self._idle is None:
                self._idle = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._idle)
        self.check()

    async def finish(self, records: Sequence[Record], head: HeadChange) -> None:
        """Append the last ``records`` and change the run's head, in one operation."""
        if self._unsettled:
            await self.flush()
        self.check()
        lines = self._take_buffer() + (self._format(records) if records else ())
        await self._send(self._append(lines, head), _nothing)

    async def replace(self, records: Sequence[Record], head: HeadChange) -> None:
        """Begin a new epoch with ``records``: nothing before them counts any more."""
        await self.flush()
        self._first, self._present = self._first + self._present, 0
        lines = tuple(
            format_line(record, self._seed, position) for position, record in enumerate(records, 1)
        )
        self._present = len(lines)
        await self._send(self._append(lines, head, epoch=True), _nothing)

    def _format(self, records: Sequence[Record]) -> tuple[str, ...]:
        if self._opening is not None:
            records = (self._opening, *records)
            self._opening = None
        start = self._present + 1
        self._present += len(records)
        return tuple(
            format_line(record, self._seed, position)
            for position, record in enumerate(records, start)
        )

    def _take_buffer(self) -> tuple[str, ...]:
        lines = tuple(self._buffer)
        self._buffer.clear()
        return lines

    def _append(
        self, lines: tuple[str, ...], head: HeadChange | None = None, *, epoch: bool = False
    ) -> Append:
        first = self._first + self._present - len(lines)
        return Append(self._run_id, self._owner, self._fence, first, lines, head, epoch)

    async def _send(self, append: Append, settled: Settled) -> None:
        if self._inline:
            await self._send_inline(append, settled)
        else:
            await self._submit(append, settled)

    async def _send_inline(self, append: Append, settled: Settled) -> None:
        outcome: int | Refusal | None = None
        with suppress(Exception):
            (outcome,) = await self._journal.append((append,))
        if outcome is None or isinstance(outcome, StoreError):
            # Tried again apart from the caller, who may be cancelled meanwhile.
            await self._submit(append, settled)
            return
        self._note(outcome, settled)
        if not isinstance(outcome, int):
            raise outcome

    def _submit(self, append: Append, settled: Settled) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def settle(outcome: int | DurableError) -> None:
            self._unsettled -= 1
            self._note(outcome, settled)
            if not self._unsettled and self._idle is not None:
                self._idle.set_result(None)
                self._idle = None

        self._unsettled += 1
        self._commits.submit(Pending(append, future, settle))
        return future

    def _note(self, outcome: int | DurableError, settled: Settled) -> None:
        if isinstance(outcome, int):
            if outcome > self.inbox:
                self.inbox = outcome
            settled(True)
        else:
            self.fail(outcome)
            settled(False)

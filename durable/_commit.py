"""Group commit: appends that wait together go out together.

While one batch is on its way to the store, whatever else is appended waits and becomes the next
batch, so many runs share each commit and a lone run pays for nothing. The idea is that of
databases' own write-ahead logs (DeWitt et al., 1984).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import ParamSpec, TypeVar

from durable._clock import clock
from durable._errors import DurableError, StoreError
from durable.store import Append, Journal, Refusal

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds to wait before each further try when the store fails.
RETRY_DELAYS = (0.05, 0.2, 0.8)

#: Appends in one batch at most: enough to share a commit, few enough not to hold up the rest.
BATCH = 1000


async def persistently(attempt: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what ``attempt(*args, **kwargs)`` gives, trying again when it raises ``StoreError``.

    Raises the last ``StoreError`` when the tries are used up. ``attempt`` must be safe to repeat.
    """
    for delay in RETRY_DELAYS:
        try:
            return await attempt(*args, **kwargs)
        except StoreError:
            await clock().sleep(delay)
    return await attempt(*args, **kwargs)


class Pending:
    """An append on its way: its outcome reaches ``settle``, and ``future`` if it's awaited.

    ``settle`` is called exactly once, even if whoever waits has been cancelled.
    """

    __slots__ = ("append", "future", "settle")

    def __init__(
        self,
        append: Append,
        future: asyncio.Future[int],
        settle: Callable[[int | DurableError], None],
    ) -> None:
        self.append = append
        self.future = future
        self.settle = settle

    def resolve(self, outcome: int | DurableError) -> None:
        """Hand the outcome over."""
        self.settle(outcome)
        if self.future.done():
            return
        if isinstance(outcome, int):
            self.future.set_result(outcome)
        else:
            self.future.set_exception(outcome)


class GroupCommit:
    """The appends of one event loop to one journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._waiting: deque[Pending] = deque()
        self._drain: asyncio.Task[None] | None = None

    def submit(self, pending: Pending) -> None:
        """Send ``pending`` with the next batch."""
        self._waiting.append(pending)
        if self._drain is None:
            self._drain = asyncio.create_task(self._drain_all(), name="durable group commit")

    async def _drain_all(self) -> None:
        try:
            while self._waiting:
                count = min(len(self._waiting), BATCH)
                await self._commit([self._waiting.popleft() for _ in range(count)])
        finally:
            self._drain = None
            for pending in self._waiting:
                pending.resolve(StoreError("append", pending.append.run_id, "the loop has closed"))
            self._waiting.clear()

    async def _append(self, members: list[Append]) -> Sequence[int | Refusal]:
        try:
            return await persistently(self._journal.append, members)
        except asyncio.CancelledError:
            # The loop is being closed, and runs that are being cancelled wait for this. Whether
            # the batch was committed is unknown; appending it again is safe, and tells.
            return await persistently(self._journal.append, members)

    async def _commit(self, batch: list[Pending]) -> None:
        members = [pending.append for pending in batch]
        try:
            outcomes = await self._append(members)
        except BaseException as error:
            if isinstance(error, Exception):
                await self._commit_singly(batch, error)
                return
            for pending in batch:
                pending.resolve(_as_refusal(error, pending.append.run_id))
            raise
        for pending, outcome in zip(batch, outcomes, strict=True):
            pending.resolve(outcome)

    async def _commit_singly(self, batch: list[Pending], error: Exception) -> None:
        """Commit a batch that failed one by one, so that what can't be written fails alone.

        After two failures in a row the store counts as out of order.
        """
        failures = 0 if len(batch) > 1 else 2
        for pending in batch:
            if failures < 2:
                try:
                    (outcome,) = await self._journal.append([pending.append])
                except Exception as own:
                    error, failures = own, failures + 1
                else:
                    failures = 0
                    pending.resolve(outcome)
                    continue
            pending.resolve(_as_refusal(error, pending.append.run_id))


def _as_refusal(error: BaseException, run_id: str) -> Refusal:
    """Return one error per member: a shared one would collect every waiter's traceback."""
    if type(error) is StoreError:
        own = StoreError(error.operation, run_id, error.reason)
        own.__cause__ = error.__cause__
        return own
    own = StoreError("append", run_id)
    own.__cause__ = error
    return own

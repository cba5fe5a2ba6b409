"""Group commit: appends that wait together go out together.

While one batch is on its way to the store, whatever else is appended waits and becomes the next
batch, so many runs share each commit and a lone run pays for nothing. The idea is that of
databases' own write-ahead logs (DeWitt et al., 1984).
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import ParamSpec, TypeVar

from durable._clock import clock
from durable._errors import DurableError, StoreError
from durable.store import Append, Journal, Refusal, SelfCommitting

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
        self.append: Append = append
        self.future: asyncio.Future[int] = future
        self.settle: Callable[[int | DurableError], None] = settle

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
        self._append_soon = journal.append_soon if isinstance(journal, SelfCommitting) else None
        self._waiting: deque[Pending] = deque()
        self._drain: asyncio.Task[None] | None = None
        self._retries: set[asyncio.Task[None]] = set()

    def submit(self, pending: Pending) -> None:
        """Send ``pending`` with the next batch, or at once where the store makes the batches."""
        if self._append_soon is not None:
            self._append_soon(pending.append, functools.partial(self._settle, pending))
            return
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

    async def _commit(self, batch: list[Pending]) -> None:
        if failed := await self._try(batch):
            self._retry_soon(failed)

    def _settle(self, pending: Pending, outcome: int | Refusal) -> None:
        if isinstance(outcome, StoreError):
            self._retry_soon([(pending, outcome)])
        else:
            pending.resolve(outcome)

    def _retry_soon(self, failed: list[tuple[Pending, StoreError]]) -> None:
        # In a task of its own, since the others have nothing to do with it.
        retry = asyncio.create_task(self._retry(failed), name="durable retried appends")
        self._retries.add(retry)
        retry.add_done_callback(self._retries.discard)

    async def _try(self, batch: list[Pending]) -> list[tuple[Pending, StoreError]]:
        """Append ``batch``, resolve what is settled, and return what failed."""
        members = [pending.append for pending in batch]
        outcomes: Sequence[int | Refusal]
        try:
            outcomes = await self._append(members)
        except Exception as error:
            outcomes = [_as_store_error(error, member.run_id) for member in members]
        failed: list[tuple[Pending, StoreError]] = []
        for pending, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, StoreError):
                failed.append((pending, outcome))
            else:
                pending.resolve(outcome)
        return failed

    async def _append(self, members: list[Append]) -> Sequence[int | Refusal]:
        try:
            return await self._journal.append(members)
        except asyncio.CancelledError:
            # The loop is being closed, and runs that are being cancelled wait for this. Whether
            # the batch was committed is unknown; appending it again is safe, and tells.
            return await self._journal.append(members)

    async def _retry(self, failed: list[tuple[Pending, StoreError]]) -> None:
        """Append again what failed; at the last try one by one, so that each fails for itself."""
        try:
            for delay in RETRY_DELAYS:
                await clock().sleep(delay)
                if not (failed := await self._try([pending for pending, _ in failed])):
                    return
            if len(failed) > 1:
                failed = [each for pending, _ in failed for each in await self._try([pending])]
        finally:
            for pending, error in failed:
                pending.resolve(error)


def _as_store_error(error: Exception, run_id: str) -> StoreError:
    """Return an error for one member: a shared one would collect every waiter's traceback."""
    reason = error.reason if isinstance(error, StoreError) else str(error)
    own = StoreError("append", run_id, reason if isinstance(error, DurableError) else "")
    own.__cause__ = error.__cause__ if isinstance(error, StoreError) else error
    return own

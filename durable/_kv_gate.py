"""How ``KeyValueJournal`` reaches the user's store: a gate for errors, and turns for any loop."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from typing import Any, TypeVar

from durable._errors import DurableError, StateFormatError, StoreError
from durable.store import KeyValueStore

T = TypeVar("T")
R = TypeVar("R")

#: Calls to the store in flight at once, for one operation.
PARALLEL = 32


async def gathered(
    work: Callable[[T], Awaitable[R]], items: Iterable[T], parallel: int = PARALLEL
) -> list[R]:
    """Return ``work`` of each item, in order, at most ``parallel`` at once.

    Waits for all of them, also when one fails; then the first failure is raised.
    """
    limit = asyncio.Semaphore(parallel)

    async def limited(item: T) -> R:
        async with limit:
            return await work(item)

    found = await asyncio.gather(*map(limited, items), return_exceptions=True)
    results: list[R] = []
    for each in found:
        if isinstance(each, BaseException):
            raise each
        results.append(each)
    return results


class Gate:
    """A user's store whose every failure arrives as ``StoreError`` with the cause attached."""

    def __init__(self, store: KeyValueStore) -> None:
        self.store = store

    async def get(self, key: str) -> str | None:
        """Return the value under ``key``, or None; ``StateFormatError`` if it isn't text."""
        value: object = await self._ask("get", key, lambda: self.store.get(key))
        if value is not None and not isinstance(value, str):
            raise StateFormatError(f"the key {key!r}", f"the store gave {type(value).__name__}")
        return value

    async def set(self, key: str, value: str) -> None:
        """Put ``value`` under ``key``."""
        await self._ask("set", key, lambda: self.store.set(key, value))

    async def delete(self, key: str) -> bool:
        """Remove ``key``; return whether it was there."""
        return await self._ask("delete", key, lambda: self.store.delete(key))

    async def keys(self, beginning: str) -> list[str]:
        """Return the keys that begin with ``beginning``, whatever the store's patterns mean."""
        found = await self._ask("keys", beginning, lambda: self.store.keys(beginning + "*"))
        return [key for key in found if key.startswith(beginning)]

    async def delete_all(self, keys: Collection[str]) -> None:
        """Remove the keys, several at once."""
        if keys:
            await gathered(self.delete, keys)

    async def _ask(self, operation: str, key: str, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await call()
        except DurableError:
            raise
        except Exception as error:
            raise StoreError(operation, key) from error


class AnyLoopLock:
    """A lock that tasks of several event loops, in several threads, can take; first come, first.

    A loop that was closed while one of its tasks had the lock doesn't have it any more.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._holder: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()

    def try_acquire(self) -> bool:
        """Take the lock if it's free; return whether it was."""
        with self._mutex:
            return self._take(asyncio.get_running_loop())

    async def acquire(self) -> None:
        """Take the lock, waiting for it if need be."""
        loop = asyncio.get_running_loop()
        with self._mutex:
            if self._take(loop):
                return
            granted: asyncio.Future[None] = loop.create_future()
            self._waiting.append((loop, granted))
        try:
            await granted
        except asyncio.CancelledError:
            with self._mutex:
                if (loop, granted) in self._waiting:
                    self._waiting.remove((loop, granted))
            if granted.done() and not granted.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """Give the lock to the next who waits."""
        with self._mutex:
            while self._waiting:
                loop, granted = self._waiting.popleft()
                try:
                    loop.call_soon_threadsafe(self._grant, granted)
                except RuntimeError:  # that loop was closed while its task waited
                    continue
                self._holder = loop
                return
            self._holder = None

    def _take(self, loop: asyncio.AbstractEventLoop) -> bool:
        if self._holder is not None and not self._holder.is_closed():
            return False
        self._holder = loop
        return True

    def _grant(self, granted: asyncio.Future[None]) -> None:
        if granted.done():
            self.release()
        else:
            granted.set_result(None)


class Turns:
    """Lets one piece of work at a time go on for each run; keeps what runs in the background."""

    def __init__(self) -> None:
        self._locks: weakref.WeakValueDictionary[str, AnyLoopLock] = weakref.WeakValueDictionary()
        self._mutex = threading.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def alone(self, run_id: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return ``work()``, during which nobody else works on the run.

        Whoever waits for it may be cancelled; the work then goes on to its end all the same, so
        that no write is still on its way when the next one starts.
        """
        with self._mutex:
            lock = self._locks.get(run_id)
            if lock is None:
                lock = self._locks[run_id] = AnyLoopLock()
        await lock.acquire()
        return await asyncio.shield(self.begin(work(), lock.release))

    def begin(
        self, work: Coroutine[Any, Any, T], then: Callable[[], None] | None = None
    ) -> asyncio.Task[T]:
        """Start ``work`` in a task of its own, and call ``then`` when it's done."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def done(task: asyncio.Task[T]) -> None:
            self._tasks.discard(task)
            if then is not None:
                then()
            if not task.cancelled():
                task.exception()  # whoever waited for it may have been cancelled

        task.add_done_callback(done)
        return task

    async def settle(self) -> None:
        """Wait until what was begun in this event loop is done."""
        loop = asyncio.get_running_loop()
        while tasks := [task for task in list(self._tasks) if task.get_loop() is loop]:
            await asyncio.wait(tasks)

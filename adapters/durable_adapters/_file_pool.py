"""Threads for blocking work: jobs of one lane run in order, those of different lanes overlap."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Generic, TypeVar, cast

T = TypeVar("T")


class _Job:
    """Work to be done in a lane, and who wants to know what came of it."""

    __slots__ = ("done", "lane", "work")

    def __init__(
        self,
        lane: str,
        work: Callable[[], object],
        done: Callable[[object, BaseException | None], None],
    ) -> None:
        self.lane = lane
        self.work = work
        self.done = done

    def run(self) -> None:
        try:
            result = self.work()
        except BaseException as error:
            self.done(None, error)
        else:
            self.done(result, None)


class _Lanes:
    """Which lanes are busy, and which jobs wait for each of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[_Job]] = {}

    def enter(self, job: _Job) -> bool:
        """Return whether ``job`` may run now; otherwise it runs behind those of its lane."""
        with self._lock:
            waiting = self._waiting.get(job.lane)
            if waiting is None:
                self._waiting[job.lane] = deque()
                return True
            waiting.append(job)
            return False

    def leave(self, lane: str) -> _Job | None:
        """Return the next job of ``lane``, which has just finished one."""
        with self._lock:
            waiting = self._waiting[lane]
            if waiting:
                return waiting.popleft()
            del self._waiting[lane]
            return None


class _Gathering(Generic[T]):
    """The outcomes of several jobs; the loop is woken once, by the last of them."""

    def __init__(self, count: int, settle: Callable[[object, BaseException | None], None]) -> None:
        self._results: list[T | None] = [None] * count
        self._left = count
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._settle = settle

    def at(self, place: int) -> Callable[[object, BaseException | None], None]:
        def done(result: object, error: BaseException | None) -> None:
            self._results[place] = cast("T", result)
            with self._lock:
                self._left -= 1
                self._error = self._error or error
                last = not self._left
            if last:
                self._settle(self._results, self._error)

        return done


def _settle_in(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[T]
) -> Callable[[object, BaseException | None], None]:
    def set_outcome(result: object, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(cast("T", result))
        else:
            future.set_exception(error)

    def settle(result: object, error: BaseException | None) -> None:
        try:
            loop.call_soon_threadsafe(set_outcome, result, error)
        except RuntimeError:
            # The loop has been closed: nobody waits any more.
            return

    return settle


def _serve(queue: SimpleQueue[_Job | None], lanes: _Lanes) -> None:
    while (job := queue.get()) is not None:
        following: _Job | None = job
        while following is not None:
            following.run()
            following = lanes.leave(following.lane)
        # An idle thread keeps nothing of its last job alive.
        del job


class Pool:
    """A few daemon threads, started at the first job.

    The threads know the queue and the lanes but not the pool's owner, so they don't keep it
    alive; ``stop`` lets them end when everything queued is done.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._lanes = _Lanes()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    async def run(self, lane: str, work: Callable[[], T]) -> T:
        """Return what ``work`` returns or raise what it raises, in the calling task."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._submit(_Job(lane, work, _settle_in(loop, future)))
        return await future

    async def run_all(self, works: Sequence[tuple[str, Callable[[], T]]]) -> list[T]:
        """Return what each of the pairs of lane and work returns; raise the first error."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[T]] = loop.create_future()
        gathering: _Gathering[T] = _Gathering(len(works), _settle_in(loop, future))
        for place, (lane, work) in enumerate(works):
            self._submit(_Job(lane, work, gathering.at(place)))
        return await future

    def run_soon(self, lane: str, work: Callable[[], T], settle: Callable[[T], None]) -> None:
        """Let ``work``, which raises nothing, be done; ``settle`` gets its result in this loop."""
        loop = asyncio.get_running_loop()

        def done(result: object, error: BaseException | None) -> None:
            with suppress(RuntimeError):  # the loop has been closed: nobody waits any more
                loop.call_soon_threadsafe(settle, cast("T", result))

        self._submit(_Job(lane, work, done))

    def run_later(self, lane: str, work: Callable[[], object]) -> None:
        """Let ``work`` be done some time; nobody hears what comes of it."""
        self._submit(_Job(lane, work, lambda result, error: None))

    def _submit(self, job: _Job) -> None:
        if not self._threads:
            self._start()
        if self._lanes.enter(job):
            self._queue.put(job)

    def _start(self) -> None:
        with self._lock:
            if self._threads:
                return
            threads = [
                threading.Thread(
                    target=_serve,
                    args=(self._queue, self._lanes),
                    name=f"durable file store {number}",
                    daemon=True,
                )
                for number in range(1, self._size + 1)
            ]
            for thread in threads:
                thread.start()
            self._threads = threads

    def stop(self) -> None:
        """Let the threads end once everything queued is done; don't wait for it."""
        for _ in self._threads:
            self._queue.put(None)

    async def join(self) -> None:
        """Return when everything queued is done and the threads, already stopped, have ended."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        settle = _settle_in(loop, ended)

        def wait() -> None:
            for thread in self._threads:
                thread.join()
            settle(None, None)

        waiter = threading.Thread(target=wait, daemon=True)
        waiter.start()
        await ended
        waiter.join()

"""Threads for blocking work: jobs of one lane run in order, those of different lanes overlap."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar, cast

from durable.store import Append

T = TypeVar("T")
#: What gets a job's result or error, in the event loop that the job came from.
Settle = Callable[[object, BaseException | None], None]


def _nobody(result: object, error: BaseException | None) -> None:
    """Stand for those who don't want to know."""


class Job:
    """Work to be done in a lane, and who wants to know what came of it.

    ``appends``: what the work does, if it may as well be done together with that of other lanes.
    """

    __slots__ = ("appends", "error", "lane", "loop", "result", "settle", "work")

    def __init__(
        self,
        lane: str,
        work: Callable[[], object],
        loop: asyncio.AbstractEventLoop | None = None,
        settle: Settle = _nobody,
        appends: Sequence[Append] = (),
    ) -> None:
        self.lane = lane
        self.work = work
        self.loop = loop
        self.settle = settle
        self.appends = appends
        self.result: object = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Do the work here."""
        try:
            self.result = self.work()
        except BaseException as error:
            self.error = error


def settle_all(jobs: Sequence[Job]) -> None:
    """Hand over what came of ``jobs``; each event loop is woken once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Job]] = {}
    for job in jobs:
        if job.loop is not None:
            by_loop.setdefault(job.loop, []).append(job)
    for loop, mine in by_loop.items():
        with suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            if len(mine) == 1:
                loop.call_soon_threadsafe(mine[0].settle, mine[0].result, mine[0].error)
            else:
                loop.call_soon_threadsafe(_settle_here, loop, mine)


def _settle_here(loop: asyncio.AbstractEventLoop, jobs: list[Job]) -> None:
    # Each in a turn of its own: what one raises is no concern of the others'.
    for job in jobs:
        loop.call_soon(job.settle, job.result, job.error)


class Lanes:
    """Which lanes are busy, which jobs wait for each of them, and which may be done now.

    A job is in ``appends`` if it can be done together with others, else in ``jobs``. None in
    ``appends`` says that it may be time to end. ``help`` is what the leader gives away.
    """

    def __init__(self) -> None:
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()
        self.appends: SimpleQueue[Job | None] = SimpleQueue()
        self.help: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[Job]] = {}
        self._ending = False

    def enter(self, job: Job) -> None:
        """Let ``job`` be done behind those of its lane."""
        with self._lock:
            waiting = self._waiting.get(job.lane)
            if waiting is not None:
                waiting.append(job)
                return
            self._waiting[job.lane] = deque()
        self._let_go(job)

    def leave(self, lane: str) -> None:
        """Let the next job of ``lane`` be done."""
        with self._lock:
            waiting = self._waiting[lane]
            job = waiting.popleft() if waiting else None
            if job is None:
                del self._waiting[lane]
            ended = self._ending and not self._waiting
        if job is not None:
            self._let_go(job)
        elif ended:
            self.appends.put(None)

    def followers(self, lane: str) -> list[Job]:
        """Take out the appends that are next in ``lane``, which the caller is in."""
        found: list[Job] = []
        with self._lock:
            waiting = self._waiting[lane]
            while waiting and waiting[0].appends:
                found.append(waiting.popleft())
        return found

    def end(self) -> bool:
        """Return whether nothing is under way; otherwise the last job will say when it's so."""
        with self._lock:
            self._ending = True
            return not self._waiting

    def _let_go(self, job: Job) -> None:
        if job.appends:
            self.appends.put(job)
        else:
            self.jobs.put(job)


class _Gathering(Generic[T]):
    """The outcomes of several jobs."""

    def __init__(self, count: int, future: asyncio.Future[list[T]]) -> None:
        self._results: list[T | None] = [None] * count
        self._left = count
        self._error: BaseException | None = None
        self._settle = _into(future)

    def at(self, place: int) -> Settle:
        def settle(result: object, error: BaseException | None) -> None:
            self._results[place] = cast("T", result)
            self._error = self._error or error
            self._left -= 1
            if not self._left:
                self._settle(self._results, self._error)

        return settle


def _into(future: asyncio.Future[T]) -> Settle:
    def settle(result: object, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(cast("T", result))
        else:
            future.set_exception(error)

    return settle


def _serve(lanes: Lanes) -> None:
    while (job := lanes.jobs.get()) is not None:
        job.run()
        settle_all((job,))
        lanes.leave(job.lane)
        # An idle thread keeps nothing of its last job alive.
        del job


def _help(lanes: Lanes) -> None:
    while (help_leader := lanes.help.get()) is not None:
        help_leader()
        del help_leader


def _lead(lanes: Lanes, together: Callable[[Lanes, list[Job]], None], most: int, size: int) -> None:
    while True:
        job = lanes.appends.get()
        if job is not None:
            together(lanes, _at_hand(lanes, job, most))
        elif lanes.end():
            break
        del job
    for _ in range(size):
        lanes.jobs.put(None)
        lanes.help.put(None)


def _at_hand(lanes: Lanes, job: Job, most: int) -> list[Job]:
    """Return ``job`` and the appends that wait behind it."""
    jobs = [job]
    with suppress(Empty):
        while len(jobs) < most:
            other = lanes.appends.get_nowait()
            if other is None:
                lanes.appends.put(None)
                break
            jobs.append(other)
    return jobs


class Pool:
    """A few daemon threads, started at the first job.

    One of them, the leader, does all appends that wait with one call of ``together``, ``most``
    lanes at once. The threads know the queues and the lanes but not the pool's owner, so they
    don't keep it alive; ``stop`` lets them end when everything queued is done.
    """

    def __init__(self, size: int, together: Callable[[Lanes, list[Job]], None], most: int) -> None:
        self._size = size
        self._together = together
        self._most = most
        self._lanes = Lanes()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    async def run(self, lane: str, work: Callable[[], T]) -> T:
        """Return what ``work`` returns or raise what it raises, in the calling task."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._submit(Job(lane, work, loop, _into(future)))
        return await future

    async def run_all(
        self, works: Sequence[tuple[str, Callable[[], T], Sequence[Append]]]
    ) -> list[T]:
        """Return what each of the lanes' works returns; raise the first error.

        The appends that stand behind a work are what it does, if nothing else.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[T]] = loop.create_future()
        gathering: _Gathering[T] = _Gathering(len(works), future)
        for place, (lane, work, appends) in enumerate(works):
            self._submit(Job(lane, work, loop, gathering.at(place), appends))
        return await future

    def run_soon(
        self, lane: str, work: Callable[[], object], settle: Settle, appends: Sequence[Append] = ()
    ) -> None:
        """Let ``work`` be done; ``settle`` gets what comes of it, in this event loop."""
        self._submit(Job(lane, work, asyncio.get_running_loop(), settle, appends))

    def run_later(self, lane: str, work: Callable[[], object]) -> None:
        """Let ``work`` be done some time; nobody hears what comes of it."""
        self._submit(Job(lane, work))

    def _submit(self, job: Job) -> None:
        if not self._threads:
            self._start()
        self._lanes.enter(job)

    def _start(self) -> None:
        with self._lock:
            if self._threads:
                return
            targets: list[tuple[Callable[..., None], tuple[object, ...]]] = [
                (_lead, (self._lanes, self._together, self._most, self._size))
            ]
            targets += [(_serve, (self._lanes,)), (_help, (self._lanes,))] * self._size
            threads = [
                threading.Thread(
                    target=target, args=args, name=f"durable file store {number}", daemon=True
                )
                for number, (target, args) in enumerate(targets)
            ]
            for thread in threads:
                thread.start()
            self._threads = threads

    def stop(self) -> None:
        """Let the threads end once everything queued is done; don't wait for it."""
        # A mere put, since this may be called wherever garbage is collected.
        self._lanes.appends.put(None)

    async def join(self) -> None:
        """Return when everything queued is done and the threads, already stopped, have ended."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        settle = _into(ended)

        def wait() -> None:
            for thread in self._threads:
                thread.join()
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, None, None)

        waiter = threading.Thread(target=wait, daemon=True)
        waiter.start()
        await ended
        waiter.join()

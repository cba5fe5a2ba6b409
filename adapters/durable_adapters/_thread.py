"""A private thread that works off what many tasks and event loops ask of one connection.

All jobs that wait at the same moment are handed to the engine together, so that it can make one
transaction of them; their outcomes return with one wake-up per event loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol

from durable._errors import StoreError

#: Jobs that the engine gets at once at most: enough to share a commit, few enough that the first
#: of them doesn't wait long.
_TOGETHER = 1000


class Job:
    """One thing to do on the thread, and what came of it.

    ``work`` gets whatever the engine works with. ``writes`` says that it needs a write
    transaction, ``careful`` that what it has written when it raises may stay (it sees to that
    itself). ``operation`` and ``key`` name the job in a ``StoreError``. ``settle`` is called in
    the loop when the job is done; without it, ``future`` gets the outcome.
    """

    __slots__ = (
        "careful",
        "error",
        "future",
        "key",
        "loop",
        "operation",
        "result",
        "settle",
        "work",
        "writes",
    )

    def __init__(
        self,
        operation: str,
        key: str,
        work: Callable[[Any], Any],
        *,
        writes: bool,
        careful: bool = False,
        settle: Callable[[Job], None] | None = None,
    ) -> None:
        self.operation = operation
        self.key = key
        self.work = work
        self.writes = writes
        self.careful = careful
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] | None = (
            self.loop.create_future() if settle is None else None
        )
        self.settle = settle
        self.result: Any = None
        self.error: BaseException | None = None


class Engine(Protocol):
    """Does the jobs. It is made, used and closed on the thread alone."""

    def execute(self, jobs: list[Job]) -> None:
        """Set ``result`` or ``error`` of every job; durably, where a job writes."""
        ...

    def close(self) -> None:
        """Let go of the connection; a later ``execute`` opens another."""
        ...


class _Halt:
    """Asks the thread to close the engine, and to end if ``final``; then ``notify`` is called."""

    __slots__ = ("final", "notify")

    def __init__(self, notify: Callable[[], object], *, final: bool) -> None:
        self.notify = notify
        self.final = final


class _Line:
    """What one process shares with its thread. Puts are made under the lock."""

    __slots__ = ("ended", "lock", "queue", "thread")

    def __init__(self) -> None:
        # Reentrant, since a signal's handler may fork while this thread is putting a job.
        self.lock = threading.RLock()
        self.queue: SimpleQueue[Job | _Halt] = SimpleQueue()
        self.thread: threading.Thread | None = None
        self.ended = False


class PrivateThread:
    """A daemon thread that starts at the first job and ends with ``close`` or with this object.

    ``name`` is the thread's; ``make_engine`` is called on the thread. A forked child gets a
    thread and an engine of its own. The thread keeps neither the interpreter from exiting nor
    this object from being collected.
    """

    def __init__(self, name: str, make_engine: Callable[[], Engine]) -> None:
        self._name = name
        self._make_engine = make_engine
        self._lines: dict[int, _Line] = {}
        self._closed = False
        self._held: _Line | None = None
        self._watches_forks = False
        weakref.finalize(self, _end_all, self._lines).atexit = False

    async def do(self, job: Job) -> Any:
        """Have ``job`` done; return its result or raise its error."""
        self.submit(job)
        return None if job.future is None else await job.future

    def submit(self, job: Job) -> None:
        """Have ``job`` done; its outcome reaches its future, or its ``settle``.

        Raises ``StoreError`` after ``close``.
        """
        line = self._lines.get(os.getpid()) or self._begin()
        with line.lock:
            if self._closed:
                raise StoreError(job.operation, job.key, "the store is closed (aclose was called)")
            line.queue.put(job)

    def _begin(self) -> _Line:
        line = self._lines.setdefault(os.getpid(), _Line())
        with line.lock:
            if line.thread is None and not self._closed:
                line.thread = threading.Thread(
                    target=_serve, args=(line, self._make_engine), name=self._name, daemon=True
                )
                line.thread.start()
                self._watch_forks()
        return line

    def _watch_forks(self) -> None:
        if not self._watches_forks:
            self._watches_forks = True
            this: weakref.ref[PrivateThread] = weakref.ref(self)
            os.register_at_fork(
                before=partial(_call, this, PrivateThread._hold),
                after_in_parent=partial(_call, this, PrivateThread._let_go),
            )

    async def close(self) -> None:
        """Finish the jobs that wait, close the engine and end the thread. Repeatable."""
        self._closed = True
        line = self._lines.get(os.getpid())
        if line is None or line.thread is None:
            return
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        with line.lock:
            if not line.ended:
                line.queue.put(_Halt(partial(_wake, loop, [ended]), final=True))
        if not line.ended:
            await ended
        line.thread.join()

    def _hold(self) -> None:
        """Before a fork: close the connection, and let nobody open it until the fork is done.

        SQLite's own bookkeeping of file locks would otherwise be copied into the child, where
        it isn't true (sqlite.org/howtocorrupt.html, section 2.6).
        """
        line = self._lines.get(os.getpid())
        if line is None:
            return
        line.lock.acquire()
        self._held = line
        if line.thread is not None and not line.ended:
            closed = threading.Event()
            line.queue.put(_Halt(closed.set, final=False))
            while not (closed.wait(0.01) or line.ended):
                pass

    def _let_go(self) -> None:
        line, self._held = self._held, None
        if line is not None:
            line.lock.release()


def _call(this: weakref.ref[PrivateThread], method: Callable[[PrivateThread], None]) -> None:
    thread = this()
    if thread is not None:
        method(thread)


def _end_all(lines: Mapping[int, _Line]) -> None:
    for line in lines.values():
        line.queue.put(_Halt(int, final=True))


def _serve(line: _Line, make_engine: Callable[[], Engine]) -> None:
    engine = make_engine()
    while _serve_waiting(line, engine):
        pass
    with line.lock:
        line.ended = True
        while not line.queue.empty():
            item = line.queue.get()
            if isinstance(item, _Halt):
                item.notify()


def _serve_waiting(line: _Line, engine: Engine) -> bool:
    """Do what waits; return False when the thread is to end.

    A function of its own, so that nothing of a job is kept while the thread waits for the next.
    """
    items = [line.queue.get()]
    items += [line.queue.get() for _ in range(min(line.queue.qsize(), _TOGETHER - 1))]
    jobs = [item for item in items if isinstance(item, Job)]
    if jobs:
        _execute(engine, jobs)
    halts = [item for item in items if isinstance(item, _Halt)]
    if halts:
        engine.close()
    final = any(halt.final for halt in halts)
    line.ended = final
    for halt in halts:
        halt.notify()
    return not final


def _execute(engine: Engine, jobs: list[Job]) -> None:
    try:
        engine.execute(jobs)
    except BaseException as exc:
        # Whatever it is (memory may be out), somebody waits for each of these.
        for job in jobs:
            job.error = StoreError(job.operation, job.key, f"{type(exc).__name__}: {exc}")
            job.error.__cause__ = exc
    waiting: dict[asyncio.AbstractEventLoop, list[Job]] = {}
    for job in jobs:
        waiting.setdefault(job.loop, []).append(job)
    for loop, done in waiting.items():
        _post(loop, _settle, done)


def _post(loop: asyncio.AbstractEventLoop, callback: Callable[[Any], None], argument: Any) -> None:
    # A loop that was closed has nobody waiting.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, argument)


def _settle(jobs: list[Job]) -> None:
    for job in jobs:
        if job.future is None:
            if job.settle is not None:
                job.settle(job)
        elif job.future.done():
            continue
        elif job.error is None:
            job.future.set_result(job.result)
        else:
            job.future.set_exception(job.error)


def _wake(loop: asyncio.AbstractEventLoop, futures: list[asyncio.Future[None]]) -> None:
    _post(loop, _set_all, futures)


def _set_all(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)

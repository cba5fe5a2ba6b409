"""What the tests of steps share: running, crashing, and looking at what was recorded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from durable import DurableFunction, MemoryStore, durable, step
from durable._format import fold_lines
from durable._records import AttemptRecord, Record, RunRecords
from durable._session import session_for

T = TypeVar("T")


class Boom(Exception):
    """What a workflow raises where a test wants its pass to end."""


class Crashing:
    """Raises ``Boom`` the first ``times`` it is called: where a test wants a pass to end."""

    def __init__(self, times: int = 1) -> None:
        self.left = times

    def __call__(self) -> None:
        if self.left:
            self.left -= 1
            raise Boom


def go(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` in a loop of its own, in asyncio's debug mode."""
    return asyncio.run(work, debug=True)


async def fail_then_run(flow: DurableFunction[..., T], *args: Any, run_id: str = "r") -> T:
    """Return what the second pass of ``flow`` gives; the first must end in ``Boom``."""
    with contextlib.suppress(Boom):
        await flow.run(run_id, *args)
        raise AssertionError("the first pass was to fail")
    return await flow.run(run_id, *args)


async def cancelled(work: Coroutine[Any, Any, Any], when: asyncio.Event) -> None:
    """Begin ``work``, and cancel it once ``when`` is set: as good as a crash."""
    task = asyncio.create_task(work)
    await when.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
        raise AssertionError("it was to be cancelled")


async def turns(count: int = 20) -> None:
    """Let all other tasks run until they wait."""
    for _ in range(count):
        await asyncio.sleep(0)


async def lines_of(store: Any, run_id: str = "r") -> list[str]:
    """Return the lines of a run's log."""
    log = await session_for(store).journal.read(run_id)
    assert log is not None
    return list(log.lines)


async def recorded(store: Any, run_id: str = "r") -> RunRecords:
    """Return what is recorded of a run."""
    return fold_lines(run_id, await lines_of(store, run_id))


async def attempts(store: MemoryStore, run_id: str = "r") -> list[AttemptRecord]:
    """Return the failed attempts in a run's log, in order."""
    found: list[AttemptRecord] = []

    class Collecting(RunRecords):
        def apply(self, records: Iterable[Record]) -> None:
            listed = list(records)
            super().apply(listed)
            found.extend(record for record in listed if isinstance(record, AttemptRecord))

    fold_lines(run_id, await lines_of(store, run_id), Collecting())
    return found


class Work:
    """An async function that reports when it begins and ends when it's let."""

    def __init__(self, value: Any = "done") -> None:
        self.value = value
        self.calls = 0
        self.begun = asyncio.Event()
        self.end = asyncio.Event()

    async def __call__(self, *args: object) -> Any:
        self.calls += 1
        self.begun.set()
        await self.end.wait()
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Failing:
    """Fails ``times`` times with ``error``, then gives the number of its calls."""

    def __init__(self, times: int, error: Exception | None = None) -> None:
        self.left = times
        self.error = error or Boom("no luck")
        self.calls = 0

    async def __call__(self) -> int:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error
        return self.calls


def step_flow(work: Any, store: MemoryStore | None = None, **options: Any) -> Any:
    """Return a durable function that is one step ``a``, with these options."""

    @durable(store=store or MemoryStore())
    async def flow() -> Any:
        return await step.options(**options)("a", work)

    return flow

"""Sync steps work in threads, which can't be stopped: they are never let overlap or count late."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from step_helpers import Boom, attempts, cancelled, go, recorded, turns

from durable import DurableWarning, MemoryStore, Retry, durable, step


class Blocking:
    """A sync function that reports when it begins and blocks until it's let go on."""

    def __init__(self) -> None:
        self.calls = 0
        self.at_once = 0
        self.most_at_once = 0
        self.begun = asyncio.Event()
        self.end = threading.Event()
        self.after: Callable[[], None] = lambda: None

    def __call__(self, loop: asyncio.AbstractEventLoop) -> str:
        self.calls += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        loop.call_soon_threadsafe(self.begun.set)
        if self.calls == 1:
            assert self.end.wait(30)
        self.at_once -= 1
        return f"call {self.calls}"


async def after(event: threading.Event) -> None:
    """Let everything that can go on do so, then set ``event``."""
    await turns()
    event.set()


def test_a_timed_out_thread_never_overlaps_its_retry() -> None:
    """The next attempt begins when the thread of the last one has ended."""
    work, waiting = Blocking(), []

    @durable(store=MemoryStore())
    async def flow() -> str:
        limited = step.options(timeout=0.01, retry=Retry(attempts=2, wait=0))
        task = asyncio.create_task(limited("a", work, asyncio.get_running_loop()))
        while not waiting:  # until the first attempt's time is up, and its failure is recorded
            await asyncio.sleep(0)
            waiting.extend(await attempts(store))
        await turns()
        assert work.calls == 1
        work.end.set()
        return await task

    store = MemoryStore()
    flow = flow.options(store=store)
    assert go(flow.run("r")) == "call 2"
    assert work.most_at_once == 1


def test_asked_for_again_it_waits_for_its_own_thread() -> None:
    """A timeout that the function catches doesn't let the work overlap either."""
    work = Blocking()

    @durable(store=MemoryStore())
    async def flow() -> str:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            await step.options(timeout=0.01)("a", work, loop)
        task = asyncio.create_task(step("a", work, loop))
        await after(work.end)
        return await task

    assert go(flow.run("r")) == "call 2"
    assert work.most_at_once == 1


def test_who_takes_over_waits_for_the_thread() -> None:
    """The first caller was cancelled, its thread goes on; the work is then done once more."""
    work = Blocking()

    @durable(store=MemoryStore())
    async def flow() -> str:
        loop = asyncio.get_running_loop()
        first = asyncio.create_task(step("a", work, loop))
        await work.begun.wait()
        other = asyncio.create_task(step("a", work, loop))
        await turns()
        first.cancel()
        await after(work.end)
        return await other

    with pytest.warns(DurableWarning):
        assert go(flow.run("r")) == "call 2"
    assert work.most_at_once == 1


@pytest.mark.parametrize("end", ["return", "cancel"])
def test_a_late_result_is_dropped(end: str) -> None:
    """The run ends without waiting for the thread, and nothing is written after that."""
    store, work = MemoryStore(), Blocking()

    @durable(store=store)
    async def flow() -> None:
        task = asyncio.create_task(step("a", work, asyncio.get_running_loop()))
        await work.begun.wait()
        if end == "cancel":
            await task

    async def main() -> None:
        if end == "return":
            await flow.run("r")
        else:
            await cancelled(flow.run("r"), work.begun)
        before = (await recorded(store)).sequence
        work.end.set()
        await asyncio.get_running_loop().shutdown_default_executor()
        await turns()
        assert (await recorded(store)).sequence == before
        assert not (await recorded(store)).root.steps

    go(main())


def test_a_thread_in_flight_is_awaited_when_the_function_fails() -> None:
    """Its result is saved before the end is recorded."""
    store, work = MemoryStore(), Blocking()

    @durable(store=store)
    async def flow() -> None:
        asyncio.create_task(step("a", work, asyncio.get_running_loop()))  # noqa: RUF006
        await work.begun.wait()
        raise Boom

    async def main() -> None:
        task = asyncio.create_task(flow.run("r"))
        await work.begun.wait()
        await after(work.end)
        with pytest.raises(Boom):
            await task

    go(main())
    assert list(go(recorded(store)).root.steps) == ["a"]


def test_work_that_waits_for_a_thread_is_dropped_with_its_caller() -> None:
    """It never begins once the run was cancelled."""
    store, work, calls = MemoryStore(), Blocking(), []

    @durable(store=store)
    async def flow() -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(
            step("a", work, loop), *(step(f"b{n}", calls.append, n) for n in range(5))
        )

    async def main() -> None:
        with ThreadPoolExecutor(1) as pool:
            asyncio.get_running_loop().set_default_executor(pool)
            await cancelled(flow.run("r"), work.begun)
            work.end.set()

    go(main())
    assert not calls


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, KeyError])
def test_what_a_thread_raises_arrives(kind: type[Exception]) -> None:
    """Also a StopIteration, which can't pass through a future."""

    def fails() -> None:
        raise kind("x")

    @durable(store=MemoryStore())
    async def flow() -> None:
        await step("a", fails)

    expected: Any = RuntimeError if kind is StopIteration else kind
    with pytest.raises(expected):
        go(flow.run("r"))


def test_sync_steps_work_at_the_same_time() -> None:
    """Two of them can wait for each other."""
    meeting = threading.Barrier(2, timeout=30)

    def meet() -> None:
        meeting.wait()

    @durable(store=MemoryStore())
    async def flow() -> None:
        await asyncio.gather(step("a", meet), step("b", meet))

    go(flow.run("r"))


def test_a_loop_inside_a_thread_cannot_be_part_of_the_run() -> None:
    """Steps and children belong to the run's own loop; an independent run works there."""
    store = MemoryStore()

    @durable(store=store)
    async def other() -> str:
        return "fine"

    async def steps() -> None:
        await step("inner", list, "abc")

    async def children() -> None:
        await other()

    def loop_of_its_own(work: Any) -> Any:
        return asyncio.run(work())

    @durable(store=store)
    async def flow() -> str:
        for name, work in (("steps", steps), ("children", children)):
            with pytest.raises(RuntimeError, match=r"another event loop.*\.run\(id"):
                await step(name, loop_of_its_own, work)
        found: str = await step("run", loop_of_its_own, lambda: other.run("own"))
        return found

    assert go(flow.run("r")) == "fine"


def test_a_failure_of_a_dropped_thread_is_silent() -> None:
    """Nobody is there to see it, and nothing is logged as never retrieved."""
    errors: list[Any] = []
    release = threading.Event()
    begun = asyncio.Event()

    def fails(loop: asyncio.AbstractEventLoop) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert release.wait(30)
        raise Boom

    @durable(store=MemoryStore())
    async def flow() -> None:
        with contextlib.suppress(TimeoutError):
            await step.options(timeout=0.01)("a", fails, asyncio.get_running_loop())

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        await flow.run("r")
        await begun.wait()
        release.set()
        await asyncio.get_running_loop().shutdown_default_executor()
        await turns()

    go(main())
    assert not errors

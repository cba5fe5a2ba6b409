"""Steps in flight when the run ends, and what is refused after that."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from step_helpers import Boom, Work, cancelled, go, recorded, turns

from durable import (
    LeaseLostError,
    MemoryStore,
    Retry,
    RunEndedError,
    Runs,
    StoreError,
    current_run,
    durable,
    step,
)
from durable.testing import FlakyStore, ManualClock


async def keys(store: Any) -> list[str]:
    return sorted((await recorded(store)).root.steps)


def test_steps_in_flight_are_saved_when_the_function_fails() -> None:
    """They are awaited before the end is recorded and the lease released."""
    store = MemoryStore()
    slow, broken = Work(), Work(Boom())
    broken.end.set()

    @durable(store=store)
    async def flow() -> None:
        await asyncio.gather(step("slow", slow), step("broken", broken))

    async def main() -> None:
        task = asyncio.create_task(flow.run("r"))
        await slow.begun.wait()
        await turns()
        assert not task.done()
        assert (await Runs(store).get("r")).status == "running"
        slow.end.set()
        with pytest.raises(Boom):
            await task
        assert await keys(store) == ["slow"]
        assert (await Runs(store).get("r")).status == "failed"

    go(main())


def test_steps_in_flight_are_cancelled_when_the_function_returns() -> None:
    """And awaited: nothing of the run works on behind its end."""
    store = MemoryStore()
    slow, seen, tasks = Work(), [], []

    async def work() -> None:
        try:
            await slow()
        finally:
            await turns()
            seen.append((await Runs(store).get("r")).status)

    @durable(store=store)
    async def flow() -> str:
        tasks.append(asyncio.create_task(step("slow", work)))
        await slow.begun.wait()
        return "result"

    assert go(flow.run("r")) == "result"
    assert seen == ["running"]
    assert not go(keys(store))


def test_steps_in_flight_are_cancelled_when_the_run_is_cancelled() -> None:
    """What completed is saved, the run is pending, and can be resumed."""
    store = MemoryStore()
    slow, quick = Work(), Work()
    quick.end.set()

    @durable(store=store)
    async def flow() -> list[str]:
        return await asyncio.gather(step("slow", slow), step("quick", quick))

    async def main() -> list[str]:
        await cancelled(flow.run("r"), slow.begun)
        assert await keys(store) == ["quick"]
        assert (await Runs(store).get("r")).status == "pending"
        slow.end.set()
        return await flow.run("r")

    assert go(main()) == ["done", "done"]
    assert (slow.calls, quick.calls) == (2, 1)


def test_a_step_that_waits_for_its_retry_does_not_hold_up_the_end() -> None:
    """Its failed attempts are on record, and a resume goes on with them."""
    store = MemoryStore()
    calls: list[int] = []

    async def flaky() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError
        return "ok"

    @durable(store=store)
    async def flow() -> str:
        retrying = step.options(retry=Retry(attempts=2, wait=30))
        task = asyncio.create_task(retrying("flaky", flaky))
        if len(calls) == 0:
            await turns()
            raise Boom
        return await task

    async def main() -> str:
        with pytest.raises(Boom):
            await flow.run("r")
        await clock.advance(33)
        return await flow.run("r")

    with ManualClock() as clock:
        assert go(main()) == "ok"
        assert go(recorded(store)).root.steps["flaky"].attempts == 2


def test_a_step_that_fails_after_the_end_keeps_its_attempts() -> None:
    """It isn't tried again then, but a resume goes on with the attempts that are left."""
    store, work, crash = MemoryStore(), Work(ValueError()), True

    @durable(store=store)
    async def flow() -> None:
        retrying = step.options(retry=Retry(attempts=3, wait=0))
        task = asyncio.create_task(retrying("a", work))
        await work.begun.wait()
        if crash:
            raise Boom
        with contextlib.suppress(ValueError):
            await task

    async def main() -> None:
        nonlocal crash
        task = asyncio.create_task(flow.run("r"))
        await work.begun.wait()
        await turns()
        work.end.set()
        with pytest.raises(Boom):
            await task
        assert work.calls == 1
        crash = False
        await flow.run("r")

    go(main())
    assert work.calls == 3


def test_a_step_asked_for_after_the_end_is_not_executed() -> None:
    """The run is finished, and a task that outlived it is told so."""
    store, work, go_on, tasks = MemoryStore(), Work(), asyncio.Event(), []

    async def straggler() -> None:
        await go_on.wait()
        await step("late", work)

    @durable(store=store)
    async def flow() -> str:
        tasks.append(asyncio.create_task(straggler()))
        await asyncio.sleep(0)
        return "result"

    async def main() -> None:
        await flow.run("r")
        before = (await recorded(store)).sequence
        go_on.set()
        with pytest.raises(RunEndedError, match=r"'late'.*run 'r' had ended"):
            await tasks[0]
        assert (await recorded(store)).sequence == before

    go(main())
    assert work.calls == 0


def test_a_variable_set_after_the_end_is_refused() -> None:
    """Nothing is written after the end."""
    runs: list[Any] = []

    @durable(store=MemoryStore())
    async def flow() -> None:
        runs.append(current_run())

    async def main() -> None:
        await flow.run("r")
        with pytest.raises(RunEndedError):
            await runs[0].set("x", 1)

    go(main())


@pytest.mark.parametrize("swallowed", [True, False])
@pytest.mark.parametrize("nested", ["step", "child"])
def test_what_was_cut_short_by_the_end_is_not_kept(nested: str, swallowed: bool) -> None:
    """A step in flight whose inner step is refused has neither a true result nor failed."""
    store = MemoryStore()
    begun, go_on, crash = asyncio.Event(), asyncio.Event(), True

    async def work() -> str:
        return "inner"

    async def outer() -> str:
        begun.set()
        await go_on.wait()
        try:
            return await step("inner", work)
        except Exception:
            if not swallowed:
                raise
            return "swallowed"

    fn: Any = outer if nested == "step" else durable(outer)

    async def fails() -> None:
        await begun.wait()
        if crash:
            raise Boom

    @durable(store=store)
    async def flow() -> str:
        return (await asyncio.gather(step("outer", fn), fails()))[0]

    async def main() -> str:
        nonlocal crash
        task = asyncio.create_task(flow.run("r"))
        await begun.wait()
        await turns()
        go_on.set()
        with pytest.raises(Boom):
            await task
        found = await recorded(store)
        assert not found.root.steps and not found.root.attempts
        crash = False
        return await flow.run("r")

    assert go(main()) == "inner"


def test_a_loose_task_of_a_child_does_not_spoil_the_child() -> None:
    """The child has returned; that a task it left behind is refused changes nothing."""
    store, go_on, tasks = MemoryStore(), asyncio.Event(), []

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            go_on.set()
            await turns()

    async def straggler() -> None:
        await go_on.wait()
        await step("late", Work())

    @durable
    async def child() -> str:
        tasks.append(asyncio.create_task(straggler()))
        tasks.append(asyncio.create_task(step("stubborn", stubborn)))
        await turns()
        return "fine"

    @durable(store=store)
    async def flow() -> str:
        value = await step("child", child)
        with pytest.raises(RunEndedError):
            await tasks[0]
        return value

    assert go(flow.run("r")) == "fine"


def test_no_step_starts_once_the_lease_is_lost() -> None:
    """The first refused write ends the run here; what follows isn't executed."""
    store = MemoryStore()
    first, second = Work(), Work()
    first.end.set()
    second.end.set()

    @durable(store=store)
    async def flow() -> None:
        async def first_loses() -> None:
            await first()
            await store.delete_run("r", held=True)

        with contextlib.suppress(LeaseLostError):
            await step("first", first_loses)
        await step("second", second)

    with pytest.raises(LeaseLostError):
        go(flow.run("r"))
    assert (first.calls, second.calls) == (1, 0)


def test_a_failed_save_is_not_swallowed() -> None:
    """The store is asked again a few times; then the run fails, and no step starts after it."""
    store = FlakyStore(MemoryStore())
    second = Work()

    @durable(store=store)
    async def flow() -> str:
        store.fail("append", times=None)
        with contextlib.suppress(StoreError):
            await step("first", turns)
        await step("second", second)
        return "success"

    with ManualClock(autojump=True), pytest.raises(StoreError):
        go(flow.run("r"))
    assert second.calls == 0
    assert store.calls["append"] >= 4


def test_transient_store_errors_are_retried() -> None:
    """A lost reply isn't a conflict: the retry finds its own record."""
    store = FlakyStore(MemoryStore())

    @durable(store=store)
    async def flow() -> str:
        store.fail("append", times=2, when="after")
        await step("first", turns)
        store.fail("append", times=2)
        return "ok"

    with ManualClock(autojump=True):
        assert go(flow.run("r")) == "ok"
        assert go(keys(store)) == ["first"]

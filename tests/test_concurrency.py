"""Steps side by side: one flight for one key, nothing lost, and nothing after the end."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from step_helpers import Boom, cancelled, go, recorded, turns

from durable import (
    DuplicateStepKeyError,
    DurableWarning,
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


def test_the_same_key_asked_for_at_once_runs_once() -> None:
    """The second caller waits for the first and gets a copy."""
    work = Work([1])

    @durable(store=MemoryStore())
    async def flow() -> bool:
        first = asyncio.create_task(step("a", work))
        second = asyncio.create_task(step("a", work))
        await work.begun.wait()
        work.end.set()
        return (await first) == (await second) and (await first) is not (await second)

    with pytest.warns(DurableWarning, match="more than once"):
        assert go(flow.run("r"))
    assert work.calls == 1


def test_all_who_wait_get_the_failure() -> None:
    """One attempt was made for all of them."""
    work = Work(Boom("no"))

    @durable(store=MemoryStore())
    async def flow() -> list[str]:
        tasks = [asyncio.create_task(step("a", work)) for _ in range(3)]
        await work.begun.wait()
        await turns()
        work.end.set()
        return [repr(each) for each in await asyncio.gather(*tasks, return_exceptions=True)]

    with pytest.warns(DurableWarning):
        assert go(flow.run("r")) == ["Boom('no')"] * 3
    assert work.calls == 1


def test_all_who_wait_get_the_saved_failure() -> None:
    """A failure of a type in ``save_errors`` comes to each as that type."""
    work = Work(KeyError("no"))

    @durable(store=MemoryStore())
    async def flow() -> list[str]:
        saving = step.options(save_errors=KeyError)
        tasks = [asyncio.create_task(saving("a", work)) for _ in range(3)]
        await work.begun.wait()
        work.end.set()
        return [repr(each) for each in await asyncio.gather(*tasks, return_exceptions=True)]

    with pytest.warns(DurableWarning):
        assert go(flow.run("r")) == ["KeyError('no')"] * 3
    assert work.calls == 1


def test_a_waiter_takes_over_from_a_cancelled_caller() -> None:
    """One of those who wait does the work anew; the others go on waiting for it."""
    work = Work()

    @durable(store=MemoryStore())
    async def flow() -> list[str]:
        first = asyncio.create_task(step("a", work))
        await work.begun.wait()
        others = [asyncio.create_task(step("a", work)) for _ in range(3)]
        await turns()
        first.cancel()
        await turns()
        work.end.set()
        return await asyncio.gather(*others)

    with pytest.warns(DurableWarning):
        assert go(flow.run("r")) == ["done"] * 3
    assert work.calls == 2


@pytest.mark.parametrize("written", [True, False])
def test_a_caller_cancelled_while_its_result_is_saved(written: bool) -> None:
    """A waiter gets what is saved; if the save fails, nobody does the work again behind it."""
    store = FlakyStore(MemoryStore())
    work = Work()

    @durable(store=store)
    async def flow() -> str:
        gate = store.hold("append")
        first = asyncio.create_task(step("a", work))
        work.end.set()
        await gate.reached.wait()
        other = asyncio.create_task(step("a", work))
        await turns()
        first.cancel()
        await turns()
        assert not other.done()
        if not written:
            store.fail("append", times=None)
        gate.set()
        return await other

    with ManualClock(autojump=True), pytest.warns(DurableWarning):
        if written:
            assert go(flow.run("r")) == "done"
        else:
            with pytest.raises(StoreError):
                go(flow.run("r"))
    assert work.calls == 1


def test_a_step_that_asks_for_itself_is_refused() -> None:
    """At any depth, in other tasks too: it would wait for itself for ever."""

    async def inner() -> None:
        await asyncio.gather(step("a", outer))

    async def outer() -> None:
        await step("b", inner)

    @durable(store=MemoryStore())
    async def flow() -> None:
        await step("a", outer)

    with pytest.raises(DuplicateStepKeyError, match="inside itself"):
        go(flow.run("r"))


def test_gathered_steps_are_all_kept() -> None:
    """Hundreds at once, finishing in any order."""
    store = MemoryStore()

    async def work(number: int) -> int:
        await turns((number * 7) % 13)
        return number

    @durable(store=store)
    async def flow() -> int:
        return sum(await asyncio.gather(*(step(f"s{n}", work, n) for n in range(200))))

    assert go(flow.run("r")) == 19900
    assert len(go(keys(store))) == 200


def test_gathered_steps_share_commits() -> None:
    """200 steps that finish together cost a few appends."""
    store = FlakyStore(MemoryStore())

    async def work(number: int) -> int:
        return number

    @durable(store=store)
    async def flow() -> None:
        await asyncio.gather(*(step(f"s{n}", work, n) for n in range(200)))

    go(flow.run("r"))
    assert store.calls["append"] <= 4


def test_a_task_group_cancels_the_siblings_of_a_failure() -> None:
    """The failure arrives, what was cut short isn't recorded, and the run can be resumed."""
    store = MemoryStore()
    slow, quick, broken = Work(), Work(), Work(Boom())
    quick.end.set()
    broken.end.set()

    @durable(store=store)
    async def flow() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(step("quick", quick))
            group.create_task(step("slow", slow))
            await turns()
            group.create_task(step("broken", broken))

    async def main() -> None:
        with pytest.raises(ExceptionGroup):
            await flow.run("r")
        assert await keys(store) == ["quick"]
        slow.end.set()
        broken.value = "fine"
        await flow.run("r")

    go(main())
    assert (quick.calls, slow.calls, broken.calls) == (1, 2, 2)


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


def test_a_user_timeout_around_a_step_leaves_the_run_fine() -> None:
    """The step was cut short, isn't recorded as failed, and can be asked for again."""
    store, work = MemoryStore(), Work()

    @durable(store=store)
    async def flow() -> str:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await step("a", work)
        assert not (await recorded(store)).root.attempts
        work.end.set()
        return await step("a", work)

    assert go(flow.run("r")) == "done"


def test_two_loops_share_a_store_one_after_the_other() -> None:
    """What one event loop recorded, the next one goes on with."""
    store, work = MemoryStore(), Work()
    work.end.set()
    fails = True

    @durable(store=store)
    async def flow() -> str:
        value: str = await step("a", work)
        if fails:
            raise Boom
        return value

    with pytest.raises(Boom):
        go(flow.run("r"))
    fails = False
    assert go(flow.run("r")) == "done"
    assert work.calls == 1

"""Steps side by side: one flight for one key, nothing lost, and nothing after the end."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from step_helpers import Boom, Work, go, recorded, turns

from durable import (
    DuplicateStepKeyError,
    DurableWarning,
    MemoryStore,
    StoreError,
    durable,
    step,
)
from durable.testing import FlakyStore, ManualClock


async def keys(store: Any) -> list[str]:
    return sorted((await recorded(store)).root.steps)


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


def test_a_waiter_that_is_cancelled_takes_nobody_with_it() -> None:
    """The work goes on, and the others get its value."""
    work = Work()

    @durable(store=MemoryStore())
    async def flow() -> list[str]:
        tasks = [asyncio.create_task(step("a", work)) for _ in range(3)]
        await turns()
        tasks.pop(1).cancel()
        await turns()
        work.end.set()
        return await asyncio.gather(*tasks)

    with pytest.warns(DurableWarning):
        assert go(flow.run("r")) == ["done", "done"]
    assert work.calls == 1


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

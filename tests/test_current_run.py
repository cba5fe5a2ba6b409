"""``current_run()``: where the code is, keys for the outside world, and durable variables."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from step_helpers import Boom, Crashing, cancelled, fail_then_run, go, turns

from durable import (
    MemoryStore,
    NoActiveRunError,
    NotSerializableError,
    current_run,
    durable,
    step,
)
from durable.testing import FlakyStore


async def key_here(*_: object) -> str:
    return current_run().idempotency_key()


def test_it_tells_the_run_and_the_attempt() -> None:
    """In the function, in its steps and in threads."""
    seen: list[Any] = []
    crash = Crashing()

    def look() -> None:
        seen.append((current_run().id, current_run().attempt))

    @durable(store=MemoryStore())
    async def flow() -> None:
        look()
        await step(None, look)
        crash()

    go(fail_then_run(flow))
    assert seen == [("r", 1)] * 2 + [("r", 2)] * 2


def test_outside_of_a_run_there_is_none() -> None:
    """It says what it needs; also once the run has ended."""
    with pytest.raises(NoActiveRunError, match=r"current_run\(\).*@durable"):
        current_run()

    @durable(store=MemoryStore())
    async def flow() -> str:
        return current_run().id

    async def main() -> None:
        await flow.run("r")
        current_run()

    with pytest.raises(NoActiveRunError):
        go(main())


def test_the_fence_grows_with_each_owner() -> None:
    """So that the outside world can refuse an owner that was replaced."""
    fences: list[int] = []
    crash = Crashing()

    @durable(store=MemoryStore())
    async def flow() -> None:
        fences.append(current_run().fence)
        crash()

    go(fail_then_run(flow))
    assert fences[0] < fences[1]


def test_replaying_ends_with_the_first_new_step() -> None:
    """Before any step of a first pass it is False too."""
    seen: list[bool] = []
    crash = Crashing()

    @durable(store=MemoryStore())
    async def flow() -> None:
        seen.append(current_run().replaying)
        await step("a", key_here)
        seen.append(current_run().replaying)
        crash()
        await step("b", key_here)
        seen.append(current_run().replaying)

    go(fail_then_run(flow))
    assert seen == [False, False, True, True, False]


def test_replaying_goes_on_inside_a_child() -> None:
    """A child that goes on replays its own steps first."""
    seen: list[bool] = []
    crash = Crashing()

    @durable
    async def child() -> None:
        await step("a", key_here)
        seen.append(current_run().replaying)
        crash()
        await step("b", key_here)
        seen.append(current_run().replaying)

    @durable(store=MemoryStore())
    async def flow() -> None:
        seen.append(current_run().replaying)
        await step("child", child)

    go(fail_then_run(flow))
    assert seen == [False, False, True, True, False]


def test_the_idempotency_key_is_stable_over_resumes() -> None:
    """Inside a step it is that step's key, which can also be named."""
    seen: set[str] = set()
    crash = Crashing()

    @durable(store=MemoryStore())
    async def flow() -> None:
        seen.add(await step(None, lambda: current_run().idempotency_key("a")))
        seen.add(await step("a", key_here))
        crash()
        seen.add(current_run().idempotency_key("a"))

    go(fail_then_run(flow))
    assert len(seen) == 1
    assert len(seen.pop()) == 32


def test_idempotency_keys_differ_by_step_run_child_and_beginning() -> None:
    """Whatever could be another effect has another key."""
    seen: list[str] = []

    @durable
    async def child() -> None:
        seen.append(await step("a", key_here))

    @durable(store=MemoryStore(), name="flow")
    async def flow() -> None:
        seen.append(await step("a", key_here))
        seen.append(await step("b", key_here))
        await step("c", child)

    async def main() -> None:
        await flow.run("r")
        await flow.run("other")
        await flow()
        await flow()  # a new beginning under the same id

    go(main())
    assert len(seen) == len(set(seen)) == 12


def test_outside_of_a_step_the_key_must_be_named() -> None:
    """There is no step to stand for it."""

    @durable(store=MemoryStore())
    async def flow() -> None:
        current_run().idempotency_key()

    with pytest.raises(ValueError, match="needs the step's key"):
        go(flow.run("r"))


def test_variables_follow_the_run() -> None:
    """What was set before a crash is there afterwards; the default is for what wasn't."""
    crash = Crashing()
    seen: list[Any] = []

    @durable(store=MemoryStore())
    async def flow() -> None:
        run = current_run()
        seen.append(run.get("page", 0))
        await run.set("page", {"number": 7})
        assert run.get("page") == {"number": 7}
        crash()

    go(fail_then_run(flow))
    assert seen == [0, {"number": 7}]


def test_variables_and_steps_do_not_share_names() -> None:
    """Neither do the variables of a child and those of its parent."""

    @durable
    async def child() -> Any:
        found = current_run().get("a", "unset")
        await current_run().set("a", "child's")
        return found

    @durable(store=MemoryStore())
    async def flow() -> list[Any]:
        await current_run().set("a", "variable")
        await step("a", key_here)
        return [await step("c", child), current_run().get("a")]

    assert go(flow.run("r")) == ["unset", "variable"]


def test_a_variable_is_a_copy() -> None:
    """Changing what was set or got changes nothing."""

    @durable(store=MemoryStore())
    async def flow() -> Any:
        value = [1]
        await current_run().set("a", value)
        value.append(2)
        current_run().get("a").append(3)
        return current_run().get("a")

    assert go(flow.run("r")) == [1]


def test_a_variable_that_cannot_be_stored_is_refused() -> None:
    """At once, by its name, and the old value stays."""

    @durable(store=MemoryStore())
    async def flow() -> Any:
        await current_run().set("a", 1)
        with pytest.raises(NotSerializableError, match="variable 'a'"):
            await current_run().set("a", {1, 2})
        return current_run().get("a")

    assert go(flow.run("r")) == 1


def test_a_variable_is_set_when_it_is_on_record() -> None:
    """Even if who set it was cancelled by then."""
    store = FlakyStore(MemoryStore())

    @durable(store=store)
    async def flow() -> Any:
        gate = store.hold("append")
        task = asyncio.create_task(current_run().set("a", 1))
        await gate.reached.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert current_run().get("a") is None
        gate.set()
        await turns()
        return current_run().get("a")

    assert go(flow.run("r")) == 1


def test_a_step_sees_the_run_it_is_part_of_in_tasks_of_its_own() -> None:
    """Tasks begun in a run belong to it."""

    @durable(store=MemoryStore())
    async def flow() -> str:
        return await asyncio.create_task(step("a", key_here))

    assert len(go(flow.run("r"))) == 32


def test_a_cancelled_pass_counts_as_an_attempt() -> None:
    """``attempt`` is how often the function was begun."""
    begun = asyncio.Event()
    seen: list[int] = []

    @durable(store=MemoryStore())
    async def flow() -> None:
        seen.append(current_run().attempt)
        begun.set()
        if len(seen) == 1:
            await asyncio.Event().wait()
        if len(seen) == 2:
            raise Boom

    async def main() -> None:
        await cancelled(flow.run("r"), begun)
        await fail_then_run(flow)

    go(main())
    assert seen == [1, 2, 3]

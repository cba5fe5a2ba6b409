"""A step's result is kept: what was done is not done again, and comes back as it was."""

from __future__ import annotations

import asyncio
import functools
import threading
from enum import StrEnum
from typing import Any

import pytest
from step_helpers import Boom, Crashing, attempts, cancelled, fail_then_run, go, recorded, turns

from durable import (
    DurableWarning,
    MemoryStore,
    NoActiveRunError,
    ResumeStateCollector,
    Retry,
    RunEndedError,
    StepBegun,
    StepCompleted,
    StepDriftError,
    StepReplayed,
    current_run,
    durable,
    step,
)
from durable.testing import FlakyStore, ManualClock


async def double(number: int) -> int:
    return 2 * number


def test_a_completed_step_is_not_executed_again() -> None:
    """A later pass gets the recorded value, and the function isn't called."""
    calls: list[str] = []
    crash = Crashing()

    async def fetch(user: str) -> str:
        calls.append(user)
        return user.upper()

    @durable(store=MemoryStore())
    async def flow() -> list[str]:
        found = [await step("a", fetch, "ann"), await step("b", fetch, "bob")]
        crash()
        return [*found, await step("c", fetch, "cid")]

    assert go(fail_then_run(flow)) == ["ANN", "BOB", "CID"]
    assert calls == ["ann", "bob", "cid"]


def test_a_step_is_on_record_before_it_returns() -> None:
    """What the step returned is in the store by then."""
    store = MemoryStore()

    @durable(store=store)
    async def flow() -> list[str]:
        await step("a", double, 1)
        return list((await recorded(store)).root.steps)

    assert go(flow.run("r")) == ["a"]


def test_a_sync_function_works_in_a_thread() -> None:
    """It doesn't block the loop, and still knows its run."""

    def where() -> list[Any]:
        return [threading.get_ident() == main, current_run().id]

    @durable(store=MemoryStore())
    async def flow() -> list[Any]:
        return await step("where", where)

    main = threading.get_ident()
    assert go(flow.run("r")) == [False, "r"]


def test_a_function_that_gives_an_awaitable_is_awaited() -> None:
    """A lambda around an async function works as the function would."""

    @durable(store=MemoryStore())
    async def flow() -> int:
        return await step("a", lambda: double(4))

    assert go(flow.run("r")) == 8


class Adder:
    def __init__(self, base: int) -> None:
        self.base = base

    def sync(self, number: int) -> int:
        return self.base + number

    async def method(self, number: int) -> int:
        return self.base + number

    async def __call__(self, number: int) -> int:
        return self.base + number


@pytest.mark.parametrize(
    "fn",
    [Adder(1).sync, Adder(1).method, Adder(1), functools.partial(Adder(1)), (1).__add__],
    ids=["sync method", "method", "object", "partial", "builtin"],
)
def test_any_callable_can_be_a_step(fn: Any) -> None:
    """Methods, callable objects, partials and builtins work, and replay."""
    crash = Crashing()

    @durable(store=MemoryStore())
    async def flow() -> int:
        value: int = await step("a", fn, 2)
        crash()
        return value

    assert go(fail_then_run(flow)) == 3


def test_what_a_partial_holds_counts_as_arguments() -> None:
    """Another value inside the partial is drift, as it is outside of one."""
    number = 1

    @durable(store=MemoryStore())
    async def flow() -> None:
        await step("a", functools.partial(double, number))
        raise Boom

    async def main() -> None:
        nonlocal number
        with pytest.raises(Boom):
            await flow.run("r")
        number = 2
        with pytest.raises(StepDriftError, match="number"):
            await flow.run("r")

    go(main())


class Key(StrEnum):
    USER = "user"


def test_a_str_enum_member_is_a_key() -> None:
    """A member of a StrEnum stands for its text."""
    store = MemoryStore()

    @durable(store=store)
    async def flow() -> None:
        await step(Key.USER, double, 1)

    go(flow.run("r"))
    assert list(go(recorded(store)).root.steps) == ["user"]


def test_none_as_key_runs_without_saving() -> None:
    """Such a step runs on every pass and leaves no record."""
    store, calls, crash = MemoryStore(), [], Crashing()

    async def look() -> object:
        calls.append(1)
        return object()  # what can't be stored is no obstacle

    @durable(store=store)
    async def flow() -> None:
        await step(None, look)
        crash()

    go(fail_then_run(flow))
    assert len(calls) == 2
    assert not go(recorded(store)).root.steps


def test_a_step_without_key_is_retried_and_timed() -> None:
    """``retry`` and ``timeout`` hold for it too."""
    calls: list[int] = []

    async def flaky() -> str:
        calls.append(1)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return "done"

    @durable(store=MemoryStore())
    async def flow() -> str:
        retrying = step.options(retry=Retry(attempts=2, wait=0), timeout=0.001)
        return await retrying(None, flaky)

    assert go(flow.run("r")) == "done"


def test_a_step_without_key_refuses_options_of_saving() -> None:
    """An option that would do nothing is refused."""

    @durable(store=MemoryStore())
    async def flow() -> None:
        await step.options(ttl=5)(None, double, 1)

    with pytest.raises(TypeError, match="isn't saved, so it has no ttl"):
        go(flow.run("r"))


def test_a_step_without_key_does_not_start_after_the_end() -> None:
    """It is a step all the same."""
    late: list[asyncio.Task[Any]] = []
    release = asyncio.Event()

    async def straggler() -> None:
        await release.wait()
        await step(None, double, 1)

    @durable(store=MemoryStore())
    async def flow() -> None:
        late.append(asyncio.create_task(straggler()))
        await asyncio.sleep(0)

    async def main() -> None:
        await flow.run("r")
        release.set()
        with pytest.raises(RunEndedError):
            await late[0]

    go(main())


def test_a_step_needs_a_durable_function() -> None:
    """Outside of one it says so."""

    async def main() -> None:
        with pytest.raises(NoActiveRunError, match="@durable"):
            await step("a", double, 1)
        with pytest.raises(NoActiveRunError):
            await step(None, double, 1)
        with pytest.raises(NoActiveRunError):
            await step.map("a", double, [1])

    go(main())


def test_a_failed_step_is_not_memoised() -> None:
    """Its exception goes to the caller, a resume runs it again, and the failure is on record."""
    store, calls = MemoryStore(), []

    async def flaky() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise Boom("no luck")
        return "ok"

    @durable(store=store)
    async def flow() -> str:
        return await step("a", flaky)

    with pytest.raises(Boom, match="no luck"):
        go(flow.run("r"))
    (failed,) = go(attempts(store))
    assert (failed.key, failed.attempt, failed.error.message) == ("a", 1, "no luck")
    assert go(flow.run("r")) == "ok"


def test_a_failed_step_can_be_asked_for_again_in_the_same_pass() -> None:
    """Asking again is another try, of the same work."""
    calls: list[int] = []

    async def flaky(number: int) -> int:
        calls.append(number)
        if len(calls) == 1:
            raise Boom
        return number

    @durable(store=MemoryStore())
    async def flow() -> int:
        try:
            return await step("a", flaky, 1)
        except Boom:
            return await step("a", flaky, 1)

    assert go(flow.run("r")) == 1
    assert calls == [1, 1]


def test_a_result_counts_for_its_ttl() -> None:
    """On a pass after that the step runs again; within a pass the value stays."""
    store, calls = MemoryStore(), []

    async def price() -> int:
        calls.append(1)
        return len(calls)

    found: list[int] = []

    @durable(store=store)
    async def flow() -> None:
        found.append(await step.options(ttl=10)("price", price))
        await clock.advance((9, 2, 0)[len(found) - 1])
        if len(found) == 2:
            with pytest.warns(DurableWarning):
                assert await step.options(ttl=10)("price", price) == 1
        raise Boom

    async def main() -> None:
        for _ in range(3):
            with pytest.raises(Boom):
                await flow.run("r")

    with ManualClock() as clock:
        go(main())
    assert found == [1, 1, 2]


def test_expiry_is_part_of_the_record() -> None:
    """It holds on later passes whatever they say of a ttl."""
    calls: list[int] = []

    async def price() -> int:
        calls.append(1)
        return len(calls)

    @durable(store=MemoryStore())
    async def flow() -> int:
        first = not calls
        found = await (step.options(ttl=10) if first else step)("price", price)
        if first:
            raise Boom
        return found

    async def main() -> int:
        with pytest.raises(Boom):
            await flow.run("r")
        await clock.advance(11)
        return await flow.run("r")

    with ManualClock() as clock:
        assert go(main()) == 2


def test_an_expired_result_is_gone_even_if_the_step_then_fails() -> None:
    """The old value isn't served when the step is asked for again in that pass."""
    fails = False

    async def price() -> int:
        if fails:
            raise Boom
        return 1

    @durable(store=MemoryStore())
    async def flow() -> None:
        priced = step.options(ttl=10)
        try:
            await priced("price", price)
        except Boom:
            await priced("price", price)
        raise ValueError("end of the pass")

    async def main() -> None:
        nonlocal fails
        with pytest.raises(ValueError, match="end"):
            await flow.run("r")
        fails = True
        await clock.advance(11)
        with pytest.raises(Boom):
            await flow.run("r")

    with ManualClock() as clock:
        go(main())


def test_events_tell_of_steps() -> None:
    """What is executed begins and completes, what is recorded is replayed."""
    events: list[Any] = []
    crash = Crashing()

    @durable(store=MemoryStore(), on_event=events.append)
    async def flow() -> None:
        await step("a", double, 1)
        crash()
        await step("b", double, 2)

    go(fail_then_run(flow))
    kinds = (StepBegun, StepCompleted, StepReplayed)
    told = [(type(e).__name__, e.step) for e in events if isinstance(e, kinds)]
    assert told == [
        ("StepBegun", "a"),
        ("StepCompleted", "a"),
        ("StepReplayed", "a"),
        ("StepBegun", "b"),
        ("StepCompleted", "b"),
    ]


def test_a_step_saved_while_its_caller_is_cancelled_is_told_of() -> None:
    """A collector knows every step that is on record."""
    collector = ResumeStateCollector()
    store = FlakyStore(MemoryStore())

    @durable(store=store, on_event=collector)
    async def flow() -> None:
        await step("a", double, 1)

    async def main() -> None:
        gate = store.hold("append")
        task = asyncio.create_task(cancelled(flow.run("r"), gate.reached))
        await gate.reached.wait()
        await turns()
        gate.set()
        await task

    go(main())
    assert list(collector.state().steps) == ["a"]


def test_every_durability_keeps_the_steps_of_a_failed_pass() -> None:
    """Sync, async or at the end: a step that completed is not executed again."""

    async def one(durability: Any) -> int:
        calls: list[int] = []
        crash = Crashing()

        async def work(number: int) -> int:
            calls.append(number)
            return number

        @durable(store=FlakyStore(MemoryStore()), durability=durability)
        async def flow() -> None:
            for number in range(5):
                await step(f"s{number}", work, number)
            crash()

        await fail_then_run(flow)
        return len(calls)

    assert [go(one(each)) for each in ("sync", "async", "exit")] == [5, 5, 5]

"""A durable function inside another is a child: its steps are part of the parent's run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from step_helpers import Boom, Crashing, cancelled, fail_then_run, go, recorded

from durable import (
    DurableWarning,
    MemoryStore,
    Retry,
    Runs,
    StepCompleted,
    StepDriftError,
    current_run,
    durable,
    step,
)


async def double(number: int) -> int:
    return 2 * number


@durable
async def child(number: int) -> int:
    return await step("double", double, number) + await step("again", double, number)


def test_a_plain_call_is_a_child_under_its_name_and_arguments() -> None:
    """Its result is a step of the parent, its own steps are in the parent's log."""
    store = MemoryStore()

    @durable(store=store)
    async def parent() -> int:
        return await child(3)

    assert go(parent.run("r")) == 12
    root = go(recorded(store)).root
    (key,) = root.steps
    assert key.startswith("child:")
    assert list(root.children[key].steps) == ["double", "again"]
    assert [info.run_id for info in go(Runs(store).list())] == ["r"]


def test_a_child_as_a_step_has_the_key_that_it_was_given() -> None:
    """Two children of equal arguments are told apart by their keys, and so are their steps."""
    store = MemoryStore()

    @durable(store=store)
    async def parent() -> list[int]:
        return [await step("first", child, 1), await step("second", child, 1)]

    assert go(parent.run("r")) == [4, 4]
    root = go(recorded(store)).root
    assert list(root.steps) == ["first", "second"]
    assert list(root.children) == ["first", "second"]


def test_a_resumed_child_repeats_nothing() -> None:
    """It goes on where it stopped; a finished one isn't executed at all."""
    calls: list[str] = []
    crash = Crashing()

    async def work(name: str) -> str:
        calls.append(name)
        return name

    @durable
    async def nested(name: str) -> str:
        calls.append(f"begin {name}")
        await step("one", work, f"{name}.one")
        if name == "b":
            crash()
        return await step("two", work, f"{name}.two")

    @durable(store=MemoryStore())
    async def parent() -> list[str]:
        return [await nested("a"), await step("b", nested, "b")]

    assert go(fail_then_run(parent)) == ["a.two", "b.two"]
    assert calls == ["begin a", "a.one", "a.two", "begin b", "b.one", "begin b", "b.two"]


def test_a_child_is_resumed_after_a_cancellation() -> None:
    """At any depth, and what is cut short is done again."""
    begun, calls = asyncio.Event(), []

    async def work(name: str) -> str:
        calls.append(name)
        if name == "slow" and not begun.is_set():
            begun.set()
            await asyncio.Event().wait()
        return name

    @durable
    async def inner() -> str:
        await step("quick", work, "quick")
        return await step("slow", work, "slow")

    @durable
    async def middle() -> str:
        return await inner()

    @durable(store=MemoryStore())
    async def parent() -> str:
        return await middle()

    async def main() -> str:
        await cancelled(parent.run("r"), begun)
        return await parent.run("r")

    assert go(main()) == "slow"
    assert calls == ["quick", "slow", "slow"]


@pytest.mark.parametrize("option", ["store", "lease", "ttl", "keep", "durability", "on_event"])
def test_options_that_a_child_cannot_have_are_named(option: str) -> None:
    """It shares its parent's store and lease; a warning says that its own don't count."""
    own: dict[str, Any] = {"store": MemoryStore(), "lease": 5, "ttl": 60, "keep": 60}
    own |= {"durability": "exit", "on_event": print}
    store = MemoryStore()
    nested = child.options(**{option: own[option]})

    @durable(store=store)
    async def parent() -> int:
        return await step("c", nested, 1)

    with pytest.warns(DurableWarning, match=f"child runs? as a child.*{option} are ignored"):
        assert go(parent.run("r")) == 4
    assert list(go(recorded(store)).root.children) == ["c"]
    if option == "store":
        assert not go(Runs(own["store"]).list())


def test_a_failed_child_fails_its_step() -> None:
    """The parent may catch it; a resume goes on inside the child."""
    calls: list[str] = []

    async def work(name: str) -> str:
        calls.append(name)
        if name == "two" and calls.count("two") == 1:
            raise ValueError("no luck")
        return name

    @durable
    async def nested() -> str:
        await step("one", work, "one")
        return await step("two", work, "two")

    @durable(store=MemoryStore())
    async def parent() -> str:
        return await nested()

    with pytest.raises(ValueError, match="no luck"):
        go(parent.run("r"))
    assert go(parent.run("r")) == "two"
    assert calls == ["one", "two", "two"]


def test_a_child_can_be_retried() -> None:
    """Each attempt goes on with what the last one completed."""
    calls: list[str] = []
    crash = Crashing(2)

    async def work() -> None:
        calls.append("work")

    @durable
    async def nested() -> str:
        calls.append("begin")
        await step("work", work)
        crash()
        return "done"

    @durable(store=MemoryStore())
    async def parent() -> str:
        return await step.options(retry=Retry(attempts=3, wait=0))("c", nested)

    assert go(parent.run("r")) == "done"
    assert calls == ["begin", "work", "begin", "begin"]


def test_a_saved_failure_of_a_child_is_final() -> None:
    """It is the result of the parent's step."""
    calls: list[int] = []

    @durable
    async def nested() -> None:
        calls.append(1)
        raise KeyError("x")

    @durable(store=MemoryStore())
    async def parent() -> None:
        with pytest.raises(KeyError):
            await step.options(save_errors=KeyError)("c", nested)
        if len(calls) == 1:
            calls.append(2)
            raise Boom

    go(fail_then_run(parent))
    assert calls == [1, 2]


def test_a_run_inside_is_independent() -> None:
    """``g.run(id)`` has a log, a store and a life of its own."""
    store, other = MemoryStore(), MemoryStore()

    @durable(store=store)
    async def parent() -> int:
        value = await child.options(store=other).run("own", 3)
        assert current_run().id == "r"
        return value

    assert go(parent.run("r")) == 12
    assert not go(recorded(store)).root.children
    assert list(go(recorded(other, "own")).root.steps) == ["double", "again"]


def test_a_run_inside_a_step_is_independent_too() -> None:
    """The step keeps its result, the run its own steps."""
    other = MemoryStore()

    @durable(store=MemoryStore())
    async def parent() -> int:
        return await step("own", child.options(store=other).run, "own", 3)

    assert go(parent.run("r")) == 12
    assert (go(Runs(other).get("own"))).status == "finished"


def test_concurrent_children_are_apart() -> None:
    """Steps of the same key in different children don't meet."""
    store = MemoryStore()

    @durable(store=store)
    async def parent() -> list[int]:
        return await asyncio.gather(*(child(number) for number in range(20)))

    assert go(parent.run("r")) == [4 * number for number in range(20)]
    assert len(go(recorded(store)).root.children) == 20


def test_children_can_be_mapped() -> None:
    """One child per item."""
    store = MemoryStore()

    @durable(store=store)
    async def parent() -> list[int]:
        return await step.map("each", child, [1, 2], limit=1)

    assert go(parent.run("r")) == [4, 8]
    assert list(go(recorded(store)).root.children) == ["each:0", "each:1"]


def test_the_same_child_twice_gives_a_copy_of_its_result() -> None:
    """A plain call with equal arguments is the same step, as any other key asked for twice."""
    store = MemoryStore()

    @durable(store=store)
    async def parent() -> list[int]:
        return [await child(1), await child(number=1)]

    with pytest.warns(DurableWarning, match="more than once"):
        assert go(parent.run("r")) == [4, 4]


def test_a_child_may_call_itself() -> None:
    """With other arguments, as a recursive function does."""

    @durable(store=MemoryStore())
    async def factorial(number: int) -> int:
        return 1 if number < 2 else number * await factorial(number - 1)

    assert go(factorial.run("r", 5)) == 120


def test_a_child_needs_a_key() -> None:
    """Without one there would be no place for its steps."""

    @durable(store=MemoryStore())
    async def parent() -> None:
        await step(None, child, 1)

    with pytest.raises(TypeError, match=r"'child' needs a step key"):
        go(parent.run("r"))


class Service:
    @durable
    async def handle(self, number: int) -> int:
        return await step("double", double, number)


def test_methods_can_be_children() -> None:
    """Plainly and through a step."""

    @durable(store=MemoryStore())
    async def parent() -> list[int]:
        service = Service()
        return [await service.handle(1), await step("c", service.handle, 2)]

    assert go(parent.run("r")) == [2, 4]


def test_drift_inside_a_child_goes_by_the_childs_version_and_options() -> None:
    """It is a function of its own; across its versions drift only warns."""
    number = 1
    crash = Crashing(3)

    @durable
    async def nested() -> int:
        value = await step("double", double, number)
        crash()
        return value

    options: dict[str, Any] = {}

    @durable(store=MemoryStore())
    async def parent() -> int:
        return await step("c", nested.options(**options))

    async def main() -> int:
        nonlocal number
        with pytest.raises(Boom):
            await parent.run("r")
        number = 2
        with pytest.raises(StepDriftError):
            await parent.run("r")
        for given in ({"drift": "warn"}, {"version": 2}, {}):
            options.clear()
            options.update(given)
            if given:
                with pytest.warns(DurableWarning, match="other arguments"), pytest.raises(Boom):
                    await parent.run("r")
        number = 1
        return await parent.run("r")

    assert go(main()) == 2


def test_events_of_a_child_carry_its_path() -> None:
    """They go to the observer of the root run."""
    events: list[Any] = []

    @durable(store=MemoryStore(), on_event=events.append)
    async def parent() -> int:
        return await step("c", child, 1)

    go(parent.run("r"))
    told = [(e.path, e.step) for e in events if isinstance(e, StepCompleted)]
    assert told == [(("c",), "double"), (("c",), "again"), ((), "c")]


def test_steps_that_a_resumed_child_no_longer_asks_for_are_named() -> None:
    """With the child they belong to: a renamed step would otherwise be repeated in silence."""
    keys = ["a", "b"]
    crash = Crashing()

    @durable
    async def nested() -> None:
        for key in keys:
            await step(key, double, 1)
        crash()

    @durable(store=MemoryStore())
    async def parent() -> None:
        await step("c", nested)

    with pytest.raises(Boom):
        go(parent.run("r"))
    keys[1] = "z"
    with pytest.warns(DurableWarning, match="without asking for.*'c/b'"):
        go(parent.run("r"))

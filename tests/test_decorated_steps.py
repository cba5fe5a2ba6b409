"""``@step``: functions that are steps of whatever durable function calls them."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from step_helpers import Boom, Crashing, fail_then_run, go, recorded, turns

from durable import (
    DurableWarning,
    MemoryStore,
    Retry,
    StepRenamed,
    current_run,
    durable,
    step,
)
from durable.testing import ManualClock


@dataclasses.dataclass
class Order:
    id: str
    total: int = 0


async def keys(store: MemoryStore) -> list[str]:
    return list((await recorded(store)).root.steps)


def test_a_decorated_step_is_kept_under_its_name_and_arguments() -> None:
    """Other arguments are another step; the same ones, however passed, are the same."""
    store, calls, crash = MemoryStore(), [], Crashing()

    @step
    async def fetch(user: str, deep: bool = False) -> str:
        calls.append(user)
        return user.upper()

    @durable(store=store)
    async def flow() -> list[str]:
        found = [await fetch("ann"), await fetch("bob")]
        crash()
        with pytest.warns(DurableWarning, match="more than once"):
            return [*found, await fetch(user="ann", deep=False)]

    assert go(fail_then_run(flow)) == ["ANN", "BOB", "ANN"]
    assert calls == ["ann", "bob"]
    assert all(key.startswith(fetch.__qualname__ + ":") for key in go(keys(store)))


def test_a_key_template_is_filled_from_the_arguments() -> None:
    """Attributes, items, defaults and formats can be named."""
    store = MemoryStore()

    @step(key="charge:{order.id}:{tags[0]}:{times:03}")
    async def charge(order: Order, tags: list[str], times: int = 7) -> str:
        return order.id

    @durable(store=store)
    async def flow() -> None:
        await charge(Order("o1"), tags=["x"])

    go(flow.run("r"))
    assert go(keys(store)) == ["charge:o1:x:007"]


def test_a_key_can_be_a_function_of_the_arguments() -> None:
    """It gets them as the step does, defaults included."""
    store = MemoryStore()

    @step(key=lambda order, times: f"{order.id}*{times}")
    async def charge(order: Order, times: int = 2) -> None: ...

    @durable(store=store)
    async def flow() -> None:
        await charge(order=Order("o1"))

    go(flow.run("r"))
    assert go(keys(store)) == ["o1*2"]


def test_a_template_that_names_no_argument_is_refused_at_decoration() -> None:
    """The message names what was asked for and what there is."""

    async def charge(order: Order, times: int) -> None: ...

    with pytest.raises(TypeError, match=r"names 'oder'; its arguments are: order, times"):
        step(key="{oder.id}")(charge)
    with pytest.raises(TypeError, match=r"names ''"):
        step(key="{}")(charge)
    with pytest.raises(TypeError, match="can't be read"):
        step(key="{order")(charge)


def test_a_template_that_does_not_fit_the_values_says_so() -> None:
    """The message names the step, the template and its arguments."""

    @step(key="{order.nr}")
    async def charge(order: Order) -> None: ...

    @durable(store=MemoryStore())
    async def flow() -> None:
        await charge(Order("o1"))

    with pytest.raises(TypeError, match=r"'\{order.nr\}'.*charge.*arguments order"):
        go(flow.run("r"))


def test_arguments_without_a_fingerprint_need_a_key() -> None:
    """A bare step can't tell such calls apart, and says what to do."""

    @step
    async def use(client: object) -> int:
        return 1

    @durable(store=MemoryStore())
    async def flow() -> None:
        await use(object())

    with pytest.raises(TypeError, match=r"'client'.*no fingerprint") as caught:
        go(flow.run("r"))
    assert "@step(key=…)" in str(caught.value)


def test_wrong_arguments_are_what_a_message_speaks_of() -> None:
    """A call that doesn't fit the function isn't blamed on its key."""

    @step
    async def use(user: str) -> int:
        return 1

    @durable(store=MemoryStore())
    async def flow() -> None:
        await use()  # type: ignore[call-arg]

    with pytest.raises(TypeError, match=r"use': missing a required argument: 'user'"):
        go(flow.run("r"))


def test_outside_of_a_run_a_decorated_step_simply_runs() -> None:
    """Async or sync, bare or with options."""

    @step
    async def double(number: int) -> int:
        return 2 * number

    @step(key="triple")
    def triple(number: int) -> int:
        return 3 * number

    async def main() -> tuple[int, int, object]:
        token = object()
        return await double(2), await triple(2), await step(key="x")(identity)(token) is token

    async def identity(value: object) -> object:
        return value

    assert go(main()) == (4, 6, True)


class Shop:
    def __init__(self) -> None:
        self.calls: list[str] = []

    @step
    async def fetch(self, user: str) -> str:
        self.calls.append(user)
        return user.upper()

    @step(key="charge:{order.id}")
    def charge(self, order: Order) -> int:
        self.calls.append(order.id)
        return order.total

    @durable(store=MemoryStore())
    async def sell(self, crash: Any) -> list[Any]:
        found: list[Any] = [await self.fetch("ann"), await self.charge(Order("o1", 5))]
        crash()
        return found


def test_methods_can_be_steps() -> None:
    """``self`` is no part of the key or of the fingerprint: another object goes on."""
    first, second = Shop(), Shop()

    async def main() -> list[Any]:
        with pytest.raises(Boom):
            await first.sell.run("r", Crashing())
        return await second.sell.run("r", Crashing(0))

    assert go(main()) == ["ANN", 5]
    assert (first.calls, second.calls) == (["ann", "o1"], [])


class Factory:
    @step
    @classmethod
    async def make(cls, number: int) -> str:
        return f"{cls.__name__} {number}"

    @staticmethod
    @step(key="static:{number}")
    async def static(number: int) -> int:
        return number


def test_class_methods_and_static_methods_can_be_steps() -> None:
    """``@step`` goes above ``@classmethod`` and below ``@staticmethod``."""
    crash = Crashing()

    @durable(store=MemoryStore())
    async def flow() -> list[Any]:
        found = [await Factory.make(1), await Factory().static(2), await Factory.static(3)]
        crash()
        return found

    assert go(fail_then_run(flow)) == ["Factory 1", 2, 3]


def test_options_of_the_decorator_hold() -> None:
    """Retries, and what ``.options`` changes of them."""
    calls: list[int] = []

    @step(retry=Retry(attempts=3, wait=0))
    async def flaky() -> int:
        calls.append(1)
        raise Boom

    @durable(store=MemoryStore())
    async def flow(times: int) -> None:
        await (flaky if times == 3 else flaky.options(retry=Retry(attempts=times)))()

    for times in (3, 1):
        calls.clear()
        with pytest.raises(Boom):
            go(flow.run(f"r{times}", times))
        assert len(calls) == times


def test_a_key_of_the_call_is_the_key_of_a_decorated_step() -> None:
    """``step(key, decorated, …)`` is one step under that key, with the decorator's options."""
    store, calls = MemoryStore(), []

    @step(retry=Retry(attempts=2, wait=0))
    async def charge(total: int) -> int:
        calls.append(total)
        if len(calls) == 1:
            raise Boom
        return total

    @durable(store=store)
    async def flow() -> list[int]:
        await step(None, charge, 5)
        return [await step("first", charge, 5), *await step.map("more", charge, [5, 5])]

    assert go(flow.run("r")) == [5, 5, 5]
    assert go(keys(store)) == ["first", "more:0", "more:1"]
    assert len(calls) == 5


def test_options_of_the_call_come_before_those_of_the_decorator() -> None:
    """What ``step.options`` gives wins; what it doesn't name stays."""
    calls: list[int] = []

    @step(retry=Retry(attempts=3, wait=0), save_errors=KeyError)
    async def charge(error: type[Exception]) -> int:
        calls.append(1)
        raise error

    @durable(store=MemoryStore())
    async def flow() -> None:
        once = step.options(retry=Retry(attempts=2, wait=0))
        with pytest.raises(Boom):
            await once("a", charge, Boom)
        with pytest.raises(KeyError):
            await once("b", charge, KeyError)

    go(flow.run("r"))
    assert len(calls) == 3


def test_returns_of_the_decorator_says_what_is_decoded_to() -> None:
    """It overrides the annotation."""
    crash = Crashing()

    @step(returns=tuple[int, ...])
    async def pair() -> Any:
        return (1, 2)

    @durable(store=MemoryStore())
    async def flow() -> bool:
        value = await pair()
        crash()
        return value == (1, 2)

    assert go(fail_then_run(flow))


def named(name: str, aliases: tuple[str, ...], calls: list[str]) -> Any:
    async def work(number: int) -> int:
        calls.append(name)
        if number < 0:
            raise Boom
        return number

    return step(name=name, aliases=aliases, retry=Retry(attempts=2, wait=30))(work)


@pytest.mark.parametrize("old", ["fetch", "shop:fetch"])
def test_a_renamed_step_with_an_alias_is_neither_repeated_nor_lost(old: str) -> None:
    """What was recorded under the former name counts, without a warning or an event."""
    store, calls, events = MemoryStore(), [], []
    current = named(old, (), calls)
    crash = Crashing()

    @durable(store=store, on_event=events.append)
    async def flow() -> int:
        value: int = await current(4)
        crash()
        return value

    async def main() -> int:
        nonlocal current
        with pytest.raises(Boom):
            await flow.run("r")
        current = named("load:user", ("other", old), calls)
        return await flow.run("r")

    assert go(main()) == 4
    assert calls == [old]
    assert not [event for event in events if isinstance(event, StepRenamed)]


def test_a_renamed_step_goes_on_with_its_attempts() -> None:
    """The attempts made under the former name count."""
    store, calls = MemoryStore(), []
    current = named("old", (), calls)

    @durable(store=store)
    async def flow() -> int:
        return await current(-1)

    async def main() -> None:
        nonlocal current
        task = asyncio.create_task(flow.run("r"))
        await turns()
        task.cancel()
        await asyncio.wait([task])
        current = named("new", ("old",), calls)
        await clock.advance(61)
        with pytest.raises(Boom):
            await flow.run("r")

    with ManualClock() as clock:
        go(main())
    assert calls == ["old", "new"]


def test_a_step_named_anew_without_alias_is_another_step() -> None:
    """Its key has changed with the name: it is executed, and the old one is reported."""
    calls: list[str] = []
    current = named("old", (), calls)
    crash = Crashing()

    @durable(store=MemoryStore())
    async def flow() -> int:
        value: int = await current(4)
        crash()
        return value

    async def main() -> None:
        nonlocal current
        with pytest.raises(Boom):
            await flow.run("r")
        current = named("new", (), calls)
        with pytest.warns(DurableWarning, match="without asking for.*old:"):
            await flow.run("r")

    go(main())
    assert calls == ["old", "new"]


def test_a_step_of_a_step_is_kept_too() -> None:
    """Decorated steps can call each other; each is on record, and knows its own key."""
    store, seen = MemoryStore(), []

    @step(key="inner")
    async def inner() -> str:
        seen.append(current_run().idempotency_key())
        return "x"

    @step(key="outer")
    async def outer() -> str:
        seen.append(current_run().idempotency_key())
        return await inner() + "y"

    @durable(store=store)
    async def flow() -> str:
        return await outer()

    assert go(flow.run("r")) == "xy"
    steps = go(recorded(store)).root.steps
    assert {key: record.within for key, record in steps.items()} == {"inner": "outer", "outer": ""}
    assert len(set(seen)) == 2


def test_what_cannot_be_a_step_is_refused_at_decoration() -> None:
    """Classes, generators, steps and anything that isn't a function."""

    def generator() -> Any:
        yield 1

    async def plain() -> None: ...

    with pytest.raises(TypeError, match="the class Shop"):
        step(Shop)
    with pytest.raises(TypeError, match="yields"):
        step(generator)
    with pytest.raises(TypeError, match="a step already"):
        step(step(plain))
    with pytest.raises(TypeError, match="got a property"):
        step(key="a")(property(plain))  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"^step takes a key and a function"):
        step(5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="needs a function to call"):
        step("key")  # type: ignore[call-overload]


def test_a_decorated_step_looks_like_its_function() -> None:
    """Its name, docstring and signature are the function's."""

    @step(key="a")
    async def fetch(user: str) -> str:
        """Fetch."""
        return user

    assert (fetch.__name__, fetch.__doc__) == ("fetch", "Fetch.")
    assert repr(fetch) == f"<step {fetch.__qualname__}>"
    assert fetch.__wrapped__.__name__ == "fetch"  # type: ignore[attr-defined]


def test_a_durable_function_can_be_a_decorated_step() -> None:
    """Inside it is a child run under the step's key, outside a run of its own."""
    store = MemoryStore()

    @step(key="child:{number}")
    @durable(store=store)
    async def child(number: int) -> int:
        return await step("inner", int.__add__, number, 1)

    @durable
    async def flow() -> int:
        return await child(1)

    async def main() -> tuple[int, int]:
        return await flow.options(store=store).run("r"), await child(2)

    assert go(main()) == (2, 3)
    assert list(go(recorded(store)).root.children) == ["child:1"]

"""What the code asks for is compared with what was recorded, before a stored value is used."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from step_helpers import Boom, Crashing, fail_then_run, go

from durable import (
    DuplicateStepKeyError,
    DurableWarning,
    MemoryStore,
    ResumeState,
    StepDrifted,
    StepDriftError,
    StepRenamed,
    StepRepeated,
    StepsUnasked,
    durable,
    step,
)

Flow = Callable[[], Coroutine[Any, Any, Any]]


async def pay(user: str, amount: int = 1, *, note: object = "") -> str:
    return f"{user} {amount}"


async def give(user: str, amount: int = 1, *, note: object = "") -> str:
    raise AssertionError("it is recorded")


async def passes(first: Flow, second: Flow, **options: Any) -> tuple[Any, list[Any]]:
    """Run ``first`` until it fails, then ``second`` as the same function; options for the second.

    Returns the result of the second pass and the events of it.
    """
    events: list[Any] = []
    current = first

    @durable(store=MemoryStore(), name="flow")
    async def flow() -> Any:
        value = await current()
        if current is first:
            raise Boom
        return value

    with pytest.raises(Boom):
        await flow.run("r")
    current = second
    options.setdefault("on_event", events.append)
    return await flow.options(**options).run("r"), events


def asking(key: str, fn: Any, *args: Any, **kwargs: Any) -> Flow:
    async def ask() -> Any:
        return await step(key, fn, *args, **kwargs)

    return ask


def of_type(events: list[Any], kind: type) -> list[Any]:
    return [event for event in events if type(event) is kind]


def test_other_arguments_under_a_recorded_key_are_drift() -> None:
    """The error names the step, what changed and both functions, and the value isn't used."""
    with pytest.raises(StepDriftError) as caught:
        go(passes(asking("pay", pay, "ann", 5), asking("pay", give, "bob", 5)))
    error = caught.value
    assert (error.step, error.changed, error.run_id) == ("pay", ("user",), "r")
    assert (error.stored, error.requested) == ("pay", "give")


def test_swapped_arguments_are_drift() -> None:
    """Every argument that changed is named."""
    with pytest.raises(StepDriftError) as caught:
        go(passes(asking("a", pay, "x", note="y"), asking("a", pay, "y", note="x")))
    assert set(caught.value.changed) == {"user", "note"}


def test_drift_can_be_a_warning() -> None:
    """With ``drift="warn"`` the stored value is used, and a warning and an event say so."""
    with pytest.warns(DurableWarning, match=r"'pay'.*other arguments \(amount\)"):
        value, events = go(
            passes(asking("pay", pay, "ann", 5), asking("pay", give, "ann", 6), drift="warn")
        )
    assert value == "ann 5"
    (event,) = of_type(events, StepDrifted)
    assert (event.step, event.changed, event.requested) == ("pay", ("amount",), "give")


def test_drift_across_versions_only_warns() -> None:
    """A migrated run's records were made by other code."""

    def migrate(state: ResumeState) -> ResumeState:
        return state

    with pytest.warns(DurableWarning, match="other arguments"):
        value, _ = go(
            passes(
                asking("pay", pay, "ann", 5),
                asking("pay", give, "ann", 6),
                version=2,
                on_version_mismatch=migrate,
            )
        )
    assert value == "ann 5"


def test_another_function_with_the_same_arguments_is_a_rename() -> None:
    """A warning and an event, and the recorded value is used; even though drift raises."""
    with pytest.warns(DurableWarning, match="'pay', which is 'give' now") as warned:
        value, events = go(passes(asking("pay", pay, "ann"), asking("pay", give, "ann")))
    assert value == "ann 1"
    (event,) = of_type(events, StepRenamed)
    assert (event.stored, event.requested) == ("pay", "give")
    assert warned[0].filename == __file__  # at the caller's line, not at ours


class Base:
    async def pay(self, user: str) -> str:
        return user


class Sub(Base):
    pass


def test_an_inherited_method_is_the_same_function_in_every_class() -> None:
    """It has the name of where it is defined, whichever class is seen first."""
    owner, crash = Base(), Crashing()

    @durable(store=MemoryStore())
    async def flow() -> str:
        value = await step("a", owner.pay, "ann")
        crash()
        return value

    with pytest.raises(Boom):
        go(flow.run("r"))
    owner = Sub()
    assert go(flow.run("r")) == "ann"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (asking("a", pay, "ann", 5), asking("a", pay, user="ann", amount=5)),
        (asking("a", pay, "ann"), asking("a", pay, "ann", 1)),
        (asking("a", pay, "ann", 1, note=""), asking("a", pay, "ann")),
    ],
    ids=["by name", "default added", "defaults left out"],
)
def test_how_arguments_are_passed_is_no_drift(first: Flow, second: Flow) -> None:
    """By position or by name, and with or without what is the default anyway."""
    value, events = go(passes(first, second))
    assert value.startswith("ann")
    assert not of_type(events, StepDrifted)


def test_arguments_without_a_fingerprint_are_no_information() -> None:
    """On either side; the other arguments are compared all the same."""
    go(passes(asking("a", pay, "x", note=object()), asking("a", pay, "x", note=object())))
    go(passes(asking("a", pay, "x", note=object()), asking("a", pay, "x", note="now known")))
    with pytest.raises(StepDriftError) as caught:
        go(passes(asking("a", pay, "x", note=object()), asking("a", pay, "y", note=object())))
    assert caught.value.changed == ("user",)


def test_a_class_that_gains_a_field_with_a_default_is_no_drift() -> None:
    """Its old values mean what they meant."""

    @dataclasses.dataclass
    class Old:
        name: str

    @dataclasses.dataclass
    class New:
        name: str
        tags: tuple[str, ...] = ()

    _, events = go(
        passes(asking("a", pay, "x", note=Old("n")), asking("a", pay, "x", note=New("n")))
    )
    assert not of_type(events, StepDrifted)


def test_a_value_set_by_hand_is_no_drift() -> None:
    """``with_value`` says nothing of the arguments, with or without a record before."""
    recorded = ResumeState().with_value("pay", "by hand")

    async def main(state: ResumeState) -> str:
        @durable(store=MemoryStore(), resume_state=state)
        async def flow() -> str:
            return await step("pay", give, "ann", 5)

        return await flow.run("r")

    assert go(main(recorded)) == "by hand"
    assert go(main(recorded.with_value("pay", "again"))) == "again"


def test_steps_that_are_no_longer_asked_for_are_named_at_the_end() -> None:
    """One event and one warning for all of them."""

    async def three() -> None:
        for key in ("a", "b", "c"):
            await step(key, pay, "x")

    with pytest.warns(DurableWarning, match="without asking for .*'a', 'c'") as warned:
        _, events = go(passes(three, asking("b", pay, "x")))
    assert [event.steps for event in of_type(events, StepsUnasked)] == [("a", "c")]
    assert len(warned) == 1


def test_steps_inside_a_recorded_step_count_as_asked_for() -> None:
    """They belong to the step that asked for them, which isn't executed again."""

    async def outer() -> str:
        return await step("inner", pay, "x")

    go(passes(asking("outer", outer), asking("outer", outer)))


def test_a_caught_failure_leaves_nothing_unasked() -> None:
    """A step that failed isn't recorded as completed, so it's nothing to miss."""

    async def fails() -> None:
        raise ValueError

    async def first() -> None:
        with pytest.raises(ValueError):
            await step("a", fails)

    async def second() -> None: ...

    go(passes(first, second))


def test_keys_decide_and_order_does_not() -> None:
    """Recorded steps may be asked for in any order."""

    async def order(*keys: str) -> list[str]:
        return [await step(key, pay, key) for key in keys]

    value, events = go(passes(lambda: order("a", "b", "c"), lambda: order("c", "new", "a", "b")))
    assert value == ["c 1", "new 1", "a 1", "b 1"]
    assert not of_type(events, StepDrifted)


def test_concurrent_steps_may_finish_in_another_order_on_the_rerun() -> None:
    """Which branch is first is no drift."""

    async def branches(*order: str) -> list[str]:
        turn = {key: asyncio.Event() for key in order}
        turn[order[0]].set()

        async def work(key: str) -> str:
            await turn[key].wait()
            following = order.index(key) + 1
            if following < len(order):
                turn[order[following]].set()
            return key

        return await asyncio.gather(*(step(key, work, key) for key in ("a", "b", "c")))

    async def third() -> list[str]:
        found = await branches("c", "a", "b")
        return [*found, await step("d", pay, "x")]

    value, _ = go(passes(lambda: branches("b", "c", "a"), third))
    assert value == ["a", "b", "c", "x 1"]


@pytest.mark.parametrize("observed", [False, True])
def test_drift_is_seen_whether_anybody_listens_or_not(observed: bool) -> None:
    """A replay that nobody observes is quicker, and just as careful."""
    options: dict[str, Any] = {} if observed else {"on_event": None}

    async def twice() -> None:
        await step("a", pay, "ann")
        await step("a", pay, "ann")

    first = asking("a", pay, "ann")
    with pytest.raises(StepDriftError):
        go(passes(first, asking("a", pay, "bob"), **options))
    with pytest.warns(DurableWarning, match="which is 'give' now"):
        go(passes(first, asking("a", give, "ann"), **options))
    with pytest.warns(DurableWarning, match="more than once"):
        go(passes(first, twice, **options))


async def one_pass(work: Flow) -> tuple[Any, list[Any]]:
    events: list[Any] = []

    @durable(store=MemoryStore(), on_event=events.append)
    async def flow() -> Any:
        return await work()

    return await flow.run("r"), events


def test_the_same_key_twice_gives_a_copy_and_one_warning() -> None:
    """The function runs once, and a loop over one key warns once."""
    calls: list[int] = []

    async def make() -> list[int]:
        calls.append(1)
        return [1]

    async def loop() -> list[list[int]]:
        found = [await step("a", make) for _ in range(4)]
        found[0].append(2)
        return found

    with pytest.warns(DurableWarning, match="'a' was asked for more than once") as warned:
        value, events = go(one_pass(loop))
    assert value == [[1, 2], [1], [1], [1]]
    assert (len(calls), len(warned), len(of_type(events, StepRepeated))) == (1, 1, 1)


@pytest.mark.parametrize(
    ("again", "reason"),
    [
        (lambda: step("a", give, "ann"), "for the function 'pay' and for 'give'"),
        (lambda: step("a", pay, "bob"), r"other arguments \(user\)"),
    ],
    ids=["function", "arguments"],
)
def test_one_key_for_two_things_in_one_pass_is_refused(again: Any, reason: str) -> None:
    """Whether the first is done, recorded or failed."""

    async def done() -> None:
        await step("a", pay, "ann")
        await again()

    with pytest.raises(DuplicateStepKeyError, match=reason):
        go(one_pass(done))
    with pytest.raises(DuplicateStepKeyError, match=reason):
        go(passes(asking("a", pay, "ann"), done))


def test_a_failed_step_leaves_its_key_to_the_same_work() -> None:
    """A fallback needs a key of its own: a resume would take its value for the first one's."""

    async def broken() -> str:
        raise ValueError

    async def fallback() -> None:
        try:
            await step("a", broken)
        except ValueError:
            await step("a", pay, "ann")

    with pytest.raises(DuplicateStepKeyError, match="broken"):
        go(one_pass(fallback))


def test_drift_of_a_step_asked_for_again_is_seen() -> None:
    """With ``drift="warn"`` the second call must still be for what the first one asked."""

    async def second() -> None:
        with pytest.warns(DurableWarning, match="other arguments"):
            await step("a", pay, "bob")
        with pytest.warns(DurableWarning, match="more than once"):
            await step("a", pay, "bob")
        await step("a", pay, "ann")

    with pytest.raises(DuplicateStepKeyError):
        go(passes(asking("a", pay, "ann"), second, drift="warn"))


def test_drift_raises_before_anything_is_changed() -> None:
    """With the old code back, the run goes on as if nothing had been."""
    user, crash = "ann", Crashing(2)

    @durable(store=MemoryStore())
    async def flow() -> str:
        value = await step("a", pay, user)
        crash()
        return value

    async def main() -> str:
        nonlocal user
        with pytest.raises(Boom):
            await flow.run("r")
        user = "bob"
        with pytest.raises(StepDriftError):
            await flow.run("r")
        user = "ann"
        return await fail_then_run(flow)

    assert go(main()) == "ann 1"

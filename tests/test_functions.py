"""The decorator and its calls: what each does to a run in each of its states."""

import asyncio
import gc
import inspect
import threading
import weakref
from dataclasses import dataclass

import pytest
from five_method_store import FiveMethodStore
from flows import Effects, Gates, flaky_memory, mark, until

from durable import (
    DurableFunction,
    DurableWarning,
    MemoryStore,
    NotSerializableError,
    RunBusyError,
    RunCancelledError,
    RunMismatchError,
    RunNotFoundError,
    Runs,
    current_run,
    durable,
    step,
)
from durable.testing import FlakyStore


def doubler(store, effects, **options):
    @durable(store=store, name="double", **options)
    async def double(number: int) -> int:
        await step("note", effects.do, "noted")
        effects.append(number)
        return number * 2

    return double


def waiting(store, gates, **options):
    @durable(store=store, name="waiting", **options)
    async def wait(number: int = 0) -> str:
        return await step("wait", gates.wait)

    return wait


# The decorator.


def test_bare_and_with_options():
    """``durable`` decorates with and without parentheses."""

    @durable
    async def bare(): ...

    @durable()
    async def empty(): ...

    @durable(name="other")
    async def named(): ...

    assert isinstance(bare, DurableFunction)
    assert isinstance(empty, DurableFunction)
    assert named.name == "other"


def test_it_looks_like_the_function_it_decorates():
    """Name, documentation and signature are those of the function, which is left as it was."""

    async def original(order_id: str, count: int = 1) -> float:
        """Say something."""

    before = dict(vars(original))
    decorated = durable(original)

    assert decorated.__wrapped__ is original
    assert decorated.__name__ == "original"
    assert decorated.__doc__ == "Say something."
    assert inspect.signature(decorated) == inspect.signature(original)
    assert decorated.__module__ == __name__
    assert vars(original) == before


def test_default_name_is_the_qualified_name():
    """Runs are recorded under the qualified name without its module."""

    class Shop:
        @durable
        async def checkout(self): ...

    assert Shop.checkout.name.endswith("Shop.checkout")
    assert __name__ not in Shop.checkout.name


def not_async():
    pass


async def generator():
    yield 1


class Callable:
    async def __call__(self): ...


@pytest.mark.parametrize(
    "thing",
    [
        not_async,
        generator,
        Callable(),
        5,
        "text",
        staticmethod(not_async),
        durable(Callable.__call__),
    ],
)
def test_only_async_functions_can_be_decorated(thing):
    """Anything but an async function is refused with a reason."""
    with pytest.raises(TypeError, match=r"durable|async"):
        durable(thing)


def test_unknown_option_names_the_nearest():
    """A misspelt option is refused at decoration and at ``options``, naming the right one."""
    with pytest.raises(TypeError, match="did you mean 'durability'"):
        durable(durabillity="sync")

    @durable
    async def work(): ...

    with pytest.raises(TypeError, match="did you mean 'max_recoveries'"):
        work.options(max_recovery=1)


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("version", 0, ValueError),
        ("version", "1", TypeError),
        ("version", True, TypeError),
        ("ttl", 0, ValueError),
        ("ttl", float("nan"), ValueError),
        ("keep", -1, ValueError),
        ("lease", 0, ValueError),
        ("lease", "30", TypeError),
        ("durability", "later", ValueError),
        ("drift", "ignore", ValueError),
        ("max_recoveries", 0, ValueError),
        ("on_version_mismatch", "migrate", ValueError),
        ("on_event", "print", TypeError),
        ("store", object(), TypeError),
        ("codec", object(), TypeError),
        ("resume_state", {}, TypeError),
        ("name", "", ValueError),
        ("given", frozenset(), TypeError),
    ],
)
def test_a_value_that_an_option_cannot_have_is_refused_at_once(option, value, error):
    """Options are checked when they are given, not when the function runs."""
    with pytest.raises(error, match=option):
        durable(**{option: value})


def test_options_leave_the_original_alone():
    """``options`` gives another function; the first keeps its own."""

    @durable(version=2)
    async def work(): ...

    assert work.options(name="other").name == "other"
    assert work.name != "other"
    assert work.options(name="other").definition.options.version == 2


@pytest.mark.parametrize("run_id", ["", "x" * 1001, "\ud800", 5, None])
def test_a_run_id_is_text_of_1_to_1000_characters(run_id):
    """Anything else is refused before the store is asked."""

    @durable(store=MemoryStore())
    async def work(): ...

    async def main():
        for call in (work.run, work.resume, work.submit):
            with pytest.raises((TypeError, ValueError), match="run id"):
                await call(run_id)

    asyncio.run(main())


@pytest.mark.parametrize("run_id", ["x" * 1000, "a/b", "*", "%_[", "a\nb", "\0", "日本", "../x"])
def test_any_characters_make_a_run_id(run_id):
    """A run id of any valid Unicode works and is listed as it was given."""
    store, effects = MemoryStore(), Effects()

    async def main():
        assert await doubler(store, effects).run(run_id, 1) == 2
        assert [run.run_id for run in await Runs(store).list()] == [run_id]

    asyncio.run(main())


# ``run``.


def test_a_finished_run_returns_its_result_without_executing_anything():
    """``run`` and ``resume`` of a finished run give the stored result."""
    effects = Effects()
    double = doubler(MemoryStore(), effects)

    async def main():
        assert await double.run("a", 4) == 8
        assert await double.run("a", 4) == 8
        assert await double.run("a", 5) == 8
        assert await double.resume("a") == 8

    asyncio.run(main())
    assert effects == ["noted", 4]


def test_a_failed_run_goes_on_at_the_next_call():
    """``run`` after a failure does only what isn't done yet, and counts the attempts."""
    store, effects, attempts = MemoryStore(), Effects(), []

    @durable(store=store)
    async def work():
        attempts.append(current_run().attempt)
        await step("first", effects.do, 1)
        if len(attempts) < 3:
            raise ValueError("not yet")
        return "done"

    async def main():
        with pytest.raises(ValueError, match="not yet"):
            await work.run("a")
        info = await Runs(store).get("a")
        assert (info.status, info.error, info.held) == ("failed", "ValueError: not yet", 0)
        with pytest.raises(ValueError, match="not yet"):
            await work.resume("a")
        assert await work.run("a") == "done"
        assert (await Runs(store).get("a")).error == ""

    asyncio.run(main())
    assert effects == [1]
    assert attempts == [1, 2, 3]


def test_a_run_that_somebody_holds_is_busy():
    """``run``, ``resume`` and a second claim are refused while the run is executed."""

    async def main():
        gates = Gates()
        wait = waiting(MemoryStore(), gates)
        first = asyncio.create_task(wait.run("a"))
        await gates.reached.wait()
        for again in (wait.run("a"), wait.resume("a")):
            with pytest.raises(RunBusyError) as raised:
                await again
            assert raised.value.run_id == "a"
            assert 0 < raised.value.remaining <= 30
        gates.go.set()
        assert await first == "gone on"

    asyncio.run(main())


def test_other_arguments_are_used_with_a_warning_and_resume_uses_the_stored_ones():
    """``run`` goes on with this call's arguments and says so; ``resume`` with the recorded."""
    store, seen, events = MemoryStore(), [], []

    @durable(store=store, on_event=events.append)
    async def work(number: int):
        seen.append(number)
        if len(seen) < 4:
            raise ValueError

    async def main():
        with pytest.raises(ValueError):
            await work.run("a", 1)
        with pytest.warns(DurableWarning, match="other arguments"), pytest.raises(ValueError):
            await work.run("a", 2)
        with pytest.raises(ValueError):
            await work.resume("a")
        await work.run("a", number=1)

    asyncio.run(main())
    assert seen == [1, 2, 1, 1]
    assert [type(event).__name__ for event in events].count("ArgumentsChanged") == 1


def test_an_id_of_another_function_is_refused():
    """``run``, ``resume`` and ``submit`` don't touch a run of another function's name."""
    store, effects = MemoryStore(), Effects()
    double, other = doubler(store, effects), durable(store=store, name="other")(Callable.__call__)

    async def main():
        await double.run("a", 1)
        for call in (other.run("a", 1), other.resume("a"), other.submit("a", 1)):
            with pytest.raises(RunMismatchError) as raised:
                await call
            assert (raised.value.stored, raised.value.requested) == ("double", "other")

    asyncio.run(main())
    assert effects == ["noted", 1]


def test_arguments_that_do_not_fit_are_refused_before_anything_is_recorded():
    """A call with the wrong arguments is a ``TypeError`` and leaves no run behind."""
    store, effects = MemoryStore(), Effects()
    double = doubler(store, effects)

    async def main():
        for call in (double("1", 2), double.run("a"), double.submit("a", 1, 2)):
            with pytest.raises(TypeError):
                await call
        assert await Runs(store).list() == []

    asyncio.run(main())


# ``resume`` and ``submit``.


def test_resume_of_an_unknown_run():
    """There is nothing to resume under an id that was never begun."""

    async def main():
        with pytest.raises(RunNotFoundError):
            await doubler(MemoryStore(), Effects()).resume("never")

    asyncio.run(main())


def test_submit_records_without_executing():
    """A submitted run is pending; ``resume`` executes it with its arguments."""
    store, effects = MemoryStore(), Effects()
    double = doubler(store, effects)

    async def main():
        await double.submit("a", 4)
        assert effects == []
        info = await Runs(store).get("a")
        assert (info.status, info.held, info.attempts) == ("pending", 0, 0)
        assert await double.resume("a") == 8

    asyncio.run(main())


def test_submit_leaves_a_recorded_run_alone():
    """Submitting again changes neither a pending run nor a finished one."""
    store, effects = MemoryStore(), Effects()
    double = doubler(store, effects)

    async def main():
        await double.submit("a", 4)
        await double.submit("a", 5)
        assert await double.resume("a") == 8
        await double.submit("a", 6)
        assert await double.resume("a") == 8

    asyncio.run(main())


def test_arguments_that_cannot_be_stored():
    """They are no obstacle to ``run``; ``submit`` and ``resume`` name the place."""
    store = MemoryStore()

    @durable(store=store)
    async def work(number: int, connection: object):
        if number:
            raise ValueError

    async def main():
        with pytest.raises(ValueError):
            await work.run("a", 1, object())
        with pytest.raises(NotSerializableError, match="connection"):
            await work.resume("a")
        with pytest.raises(NotSerializableError, match="connection"):
            await work.submit("b", 1, object())
        assert [run.run_id for run in await Runs(store).list()] == ["a"]
        assert (await Runs(store).get("a")).status == "failed"
        await work.run("a", 0, object())

    asyncio.run(main())


def test_stored_arguments_come_back_as_they_were():
    """``resume`` gives the function values equal to those of the first call, of their types."""

    @dataclass(frozen=True)
    class Order:
        number: int
        tags: tuple[str, ...]

    seen = []

    @durable(store=MemoryStore())
    async def work(order: Order, /, *rest: int, name: str, **more: Order):
        seen.append((order, rest, name, more))

    async def main():
        order = Order(1, ("a", "b"))
        await work.submit("a", order, 2, 3, name="n", other=order)
        await work.resume("a")
        assert seen == [(order, (2, 3), "n", {"other": order})]

    Order.__qualname__ = "Order"
    asyncio.run(main())


# Plain calls.


def test_a_plain_call_goes_on_with_the_unfinished_run_of_its_arguments():
    """Called again with equal arguments after a failure, it doesn't repeat its steps."""
    effects, trouble = Effects(), [ValueError()]

    @durable(store=MemoryStore())
    async def work(a: int, b: int = 2):
        await step("note", effects.do, a)
        if trouble:
            raise trouble.pop()
        return a + b

    async def main():
        with pytest.raises(ValueError):
            await work(1)
        assert await work(a=1, b=2) == 3
        assert await work(2) == 4

    asyncio.run(main())
    assert effects == [1, 2]


def test_a_plain_call_after_the_end_is_a_new_beginning():
    """When the last run of these arguments has finished, everything is done anew."""
    store, effects = MemoryStore(), Effects()
    double = doubler(store, effects)

    async def main():
        assert await double(1) == 2
        (first,) = await Runs(store).list()
        assert await double(1) == 2
        (second,) = await Runs(store).list()
        assert second.run_id == first.run_id
        assert second.attempts == 1
        assert second.fence > first.fence

    asyncio.run(main())
    assert effects == ["noted", 1, "noted", 1]


def test_a_plain_call_while_somebody_else_executes_is_busy():
    """A run that is executed under its id, not by a plain call, can't be joined."""

    async def main():
        gates = Gates()
        wait = waiting(MemoryStore(), gates)
        run_id = f"waiting:{wait.definition.fingerprint((1,), {})}"
        first = asyncio.create_task(wait.run(run_id, 1))
        await gates.reached.wait()
        with pytest.raises(RunBusyError):
            await wait(1)
        gates.go.set()
        await first

    asyncio.run(main())


def test_simultaneous_plain_calls_join_one_run():
    """Equal calls at the same time execute once; each gets a value of its own."""
    effects = Effects()

    @durable(store=MemoryStore())
    async def work(number: int) -> list[int]:
        await step("note", effects.do, number)
        return [number]

    async def main():
        first, second, other = await asyncio.gather(work(1), work(number=1), work(2))
        assert first == second == [1]
        assert first is not second
        assert other == [2]

    asyncio.run(main())
    assert sorted(effects) == [1, 2]


def test_a_joined_failure_reaches_everybody():
    """When the joined run fails, each of the callers gets its error, and none runs it again."""
    attempts = []

    @durable(store=MemoryStore())
    async def work():
        attempts.append(1)
        await asyncio.sleep(0)
        raise ValueError("for all")

    async def main():
        results = await asyncio.gather(work(), work(), return_exceptions=True)
        assert [str(result) for result in results] == ["for all", "for all"]

    asyncio.run(main())
    assert attempts == [1]


def test_when_the_leader_is_cancelled_a_joined_call_takes_over():
    """A caller that joined goes on with the run, without repeating what was done."""

    async def main():
        effects, gates = Effects(), Gates()

        @durable(store=MemoryStore())
        async def work():
            await step("first", effects.do, 1)
            return await step("wait", gates.wait)

        leader = asyncio.create_task(work())
        await gates.reached.wait()
        follower = asyncio.create_task(work())
        await asyncio.sleep(0)
        gates.reached.clear()
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        await gates.reached.wait()
        gates.go.set()
        assert await follower == "gone on"
        assert effects == [1]

    asyncio.run(main())


def test_a_cancelled_follower_leaves_the_leader_alone():
    """Whoever joined can go without the run noticing."""

    async def main():
        gates = Gates()
        wait = waiting(MemoryStore(), gates)
        leader = asyncio.create_task(wait())
        await gates.reached.wait()
        follower = asyncio.create_task(wait())
        await asyncio.sleep(0)
        follower.cancel()
        with pytest.raises(asyncio.CancelledError):
            await follower
        gates.go.set()
        assert await leader == "gone on"

    asyncio.run(main())


def test_plain_calls_join_across_event_loops():
    """A call in another thread's loop joins the run of this process, too."""
    store, effects = MemoryStore(), Effects()
    started, go = threading.Event(), threading.Event()

    @durable(store=store)
    async def work() -> int:
        effects.append("began")
        await step("wait", wait_in_thread)
        return 7

    def wait_in_thread() -> None:
        started.set()
        go.wait(10)

    async def join():
        other = asyncio.create_task(work())
        await asyncio.sleep(0)  # it waits for the other thread's call now
        go.set()
        return await other

    results = []
    thread = threading.Thread(target=lambda: results.append(asyncio.run(work())))
    thread.start()
    started.wait(10)
    results.append(asyncio.run(join()))
    thread.join()
    assert results == [7, 7]
    assert effects == ["began"]


def test_arguments_without_a_fingerprint():
    """A plain call with them is refused and says to use ``run``, which works."""

    @durable(store=MemoryStore())
    async def work(thing: object):
        return "worked"

    async def main():
        with pytest.raises(TypeError, match=r"'thing'.*\.run\("):
            await work(object())
        assert await work.run("a", object()) == "worked"

    asyncio.run(main())


# Methods.


def test_self_is_no_part_of_arguments_or_fingerprint():
    """Methods of equal arguments are one run, whatever object they are called on."""
    store = MemoryStore()

    class Shop:
        def __init__(self, name):
            self.name = name

        @durable(store=store, name="sell")
        async def sell(self, item: str) -> str:
            if self.name == "closed":
                raise ValueError
            return f"{item} from {self.name}"

    async def main():
        with pytest.raises(ValueError):
            await Shop("closed").sell("tea")
        assert await Shop("open").sell("tea") == "tea from open"
        assert len(await Runs(store).list()) == 1
        await Shop("closed").sell.submit("a", "tea")
        assert await Shop("open").sell.resume("a") == "tea from open"
        assert await Shop("open").sell.options(version=3).run("b", item="tea") == "tea from open"

    asyncio.run(main())


def test_class_methods():
    """``durable`` above ``classmethod`` works, on the class and on its instances."""

    class Shop:
        @durable(store=MemoryStore())
        @classmethod
        async def sell(cls, item: str) -> str:
            return f"{item} from {cls.__name__}"

    class Stall(Shop): ...

    async def main():
        assert await Shop.sell("tea") == "tea from Shop"
        assert await Stall.sell("tea") == "tea from Stall"
        assert await Stall().sell.run("a", "tea") == "tea from Stall"
        assert await Shop.sell.options(lease=5).run("a", "tea") == "tea from Stall"

    asyncio.run(main())


def test_static_methods():
    """``durable`` below ``staticmethod`` works."""

    class Shop:
        @staticmethod
        @durable(store=MemoryStore())
        async def sell(item: str) -> str:
            return item

    assert asyncio.run(Shop.sell("tea")) == "tea"
    assert asyncio.run(Shop().sell.run("a", "tea")) == "tea"


def test_what_a_url_keeps_in_memory_lives_as_long_as_the_function():
    """Methods and ``options`` share the store that was opened for their function's URL."""
    effects = Effects()

    class Shop:
        @durable(store="memory://")
        async def sell(self):
            effects.append("sold")

    async def main():
        shop = Shop()
        await shop.sell.run("a")
        gc.collect()
        await shop.sell.run("a")
        gc.collect()
        await shop.sell.options(lease=5).run("a")

    asyncio.run(main())
    assert effects == ["sold"]


# The end of a run.


def test_kept_for_nothing():
    """``keep=0`` removes a run at its end, and the memory that it ever ran."""
    store, effects = MemoryStore(), Effects()
    double = doubler(store, effects, keep=0)

    async def main():
        assert await double.run("a", 1) == 2
        assert await Runs(store).list() == []
        with pytest.raises(RunNotFoundError):
            await double.resume("a")
        assert await double.run("a", 1) == 2

    asyncio.run(main())
    assert effects == ["noted", 1, "noted", 1]


def test_a_result_that_cannot_be_stored_fails_the_run():
    """Success is never reported for what isn't stored, and the run can go on."""
    store, results = MemoryStore(), [object(), 5]

    @durable(store=store)
    async def work():
        return results.pop(0)

    async def main():
        with pytest.raises(NotSerializableError, match="the result of run 'a'"):
            await work.run("a")
        assert (await Runs(store).get("a")).status == "failed"
        assert await work.run("a") == 5

    asyncio.run(main())


def test_the_first_result_is_what_the_stored_one_will_be():
    """What the first call returns has passed through its stored form, too."""

    items = [1, 2]

    @durable(store=MemoryStore())
    async def work() -> list[int]:
        return items

    async def main():
        first = await work.run("a")
        assert first is not items
        assert first == await work.run("a") == [1, 2]

    asyncio.run(main())


def test_cancelling_leaves_the_run_resumable_and_nobody_holds_it():
    """A cancelled call gives the lease back; done steps stay done."""
    store = MemoryStore()

    async def main():
        effects, gates = Effects(), Gates()

        @durable(store=store)
        async def work():
            await step("first", effects.do, 1)
            return await step("wait", gates.wait)

        task = asyncio.create_task(work.run("a"))
        await gates.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        info = await Runs(store).get("a")
        assert (info.status, info.held) == ("pending", 0)
        gates.go.set()
        assert await work.run("a") == "gone on"
        assert effects == [1]

    asyncio.run(main())


def test_a_cancelled_run_never_goes_on():
    """``run``, ``resume`` and ``submit`` refuse it; a plain call is a new beginning."""
    store, effects = MemoryStore(), Effects()
    double = doubler(store, effects)

    async def main():
        run_id = f"double:{double.definition.fingerprint((4,), {})}"
        await double.submit(run_id, 4)
        await mark(store, run_id, "cancelled", "double")
        for call in (double.run(run_id, 4), double.resume(run_id), double.submit(run_id, 4)):
            with pytest.raises(RunCancelledError):
                await call
        assert effects == []
        assert await double(4) == 8

    asyncio.run(main())


def test_run_inside_a_durable_function_is_independent():
    """``g.run(id)`` within another durable function is a run of its own."""
    store, effects = MemoryStore(), Effects()
    double = doubler(store, effects)

    @durable(store=store)
    async def outer():
        return await double.run("inner", 1)

    async def main():
        assert await outer.run("outer") == 2
        assert [run.run_id for run in await Runs(store).list()] == ["inner", "outer"]

    asyncio.run(main())


# Stores.


@pytest.mark.parametrize(
    "make", [MemoryStore, FiveMethodStore, flaky_memory, lambda: FlakyStore(FiveMethodStore())]
)
def test_any_store_will_do(make):
    """Five methods are enough: run, busy, failure, resume, list, delete, all of it."""
    store = make()

    async def main():
        gates, effects = Gates(), Effects()

        @durable(store=store, name="work")
        async def work(fail: bool = False):
            await step("first", effects.do, 1)
            if fail:
                raise ValueError
            return await step("wait", gates.wait)

        with pytest.raises(ValueError):
            await work.run("a", True)
        task = asyncio.create_task(work.options(version=1).run("b"))
        await until(gates.reached, task)
        same = durable(store=store, name="work")(work.__wrapped__)
        with pytest.raises(RunBusyError):
            await same.run("b")
        runs = Runs(store)
        with pytest.raises(RunBusyError):
            await runs.delete("b")
        gates.go.set()
        assert await task == "gone on"
        assert [(run.run_id, run.status) for run in await runs.list()] == [
            ("a", "failed"),
            ("b", "finished"),
        ]
        with pytest.warns(DurableWarning, match="other arguments"):
            assert await same.run("a") == "gone on"
        assert await runs.delete_finished(0) == 2
        assert await runs.list() == []
        assert effects == [1, 1]

    asyncio.run(main())


def test_two_event_loops_one_store():
    """What one loop began another goes on with."""
    store, effects = MemoryStore(), Effects()
    double = doubler(store, effects)
    assert asyncio.run(double.run("a", 1)) == 2
    assert asyncio.run(double.run("a", 1)) == 2
    assert asyncio.run(double(3)) == 6
    assert len(effects) == 4


def test_a_program_leaves_no_sessions_behind():
    """Nothing of a store stays in the library once its users are gone."""
    store = FiveMethodStore()
    watched = weakref.ref(store)
    asyncio.run(doubler(store, Effects()).run("a", 1))
    del store
    gc.collect()
    assert watched() is None

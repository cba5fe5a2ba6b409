"""What is durable when, what happens when the store fails, and what each thing costs it."""

import asyncio
import copy
import pickle
from collections.abc import Sequence

import pytest
from flows import Effects, Gates, abandoned, flaky_memory, under_clock

from durable import MemoryStore, Runs, StoreError, current_run, durable, step
from durable.store import Append, Refusal
from durable.testing import ManualClock

DURABILITIES = ["sync", "async", "exit"]


async def steps_on_record(store, run_id="a"):
    """Return the steps that a process which began now would find."""
    return list((await Runs(store.wrapped).state(run_id)).steps)


def counting(store, effects, count, **options):
    @durable(store=store, name="count", **options)
    async def work():
        for number in range(count):
            await step(f"step {number}", effects.do, number)
        return count

    return work


# The three durabilities.


def test_sync_returns_when_the_result_is_durable():
    """By default a step's result is on record when ``step`` returns."""
    store, effects, found = flaky_memory(), Effects(), []

    @durable(store=store)
    async def work():
        await step("first", effects.do)
        found.append(await steps_on_record(store))
        await step("second", effects.do)
        found.append(await steps_on_record(store))

    asyncio.run(work.run("a"))
    assert found == [["first"], ["first", "second"]]


def test_async_commits_while_the_next_step_runs():
    """A step returns before its result is committed; the next one runs meanwhile."""
    store, effects = flaky_memory(), Effects()

    async def main():
        work = counting(store, effects, 2, durability="async")
        gate = store.hold("append")
        task = asyncio.create_task(work.run("a"))
        await gate.reached.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        assert effects == [0, 1]
        assert await steps_on_record(store) == []
        assert not task.done()
        gate.set()
        assert await task == 2
        assert await steps_on_record(store) == ["step 0", "step 1"]

    asyncio.run(main())


def test_exit_commits_at_the_end():
    """Nothing is written before the end, and then everything at once."""
    store, effects = flaky_memory(), Effects()
    work = counting(store, effects, 50, durability="exit")
    asyncio.run(work.run("a"))
    assert store.calls == {"claim": 1, "append": 1}
    assert len(asyncio.run(steps_on_record(store))) == 50


@pytest.mark.parametrize("durability", DURABILITIES)
def test_every_end_flushes(durability):
    """After a failure as after a cancellation, all completed steps are on record."""
    store = flaky_memory()

    async def main():
        effects, gates = Effects(), Gates()

        @durable(store=store, durability=durability)
        async def work(fail: bool):
            await step("first", effects.do, 1)
            await step("second", effects.do, 2)
            if fail:
                raise ValueError
            await step("wait", gates.wait)

        with pytest.raises(ValueError):
            await work.run("a", True)
        assert await steps_on_record(store) == ["first", "second"]
        task = asyncio.create_task(work.run("b", False))
        await gates.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await steps_on_record(store, "b") == ["first", "second"]
        assert effects == [1, 2, 1, 2]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("durability", "again"), [("sync", []), ("async", []), ("exit", ["first"])]
)
def test_what_a_killed_process_repeats(durability, again):
    """Only the durability "exit" repeats a step that had completed before the last await."""
    store = flaky_memory()

    async def test(clock):
        effects, gates = Effects(), Gates()

        @durable(store=store, durability=durability)
        async def work():
            await step("first", effects.do, "first")
            return await step("wait", gates.wait)

        await abandoned(work, "a", store, gates)
        effects.clear()
        await clock.advance(31)
        gates.go.set()
        assert await work.run("a") == "gone on"
        assert effects == again

    under_clock(test)


# A failing store.


@pytest.mark.parametrize("durability", DURABILITIES)
def test_transient_failures_are_tried_again(durability):
    """A store that fails now and then costs nothing but time."""
    store, effects = flaky_memory(), Effects()

    async def test(clock):
        store.fail("claim", times=2)
        store.fail("append", times=3)
        assert await counting(store, effects, 5, durability=durability).run("a") == 5

    under_clock(test)
    assert effects == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_lost_reply_is_no_conflict(durability):
    """A write that was committed before its reply was lost is recognised when it is repeated."""
    store, effects = flaky_memory(), Effects()

    async def test(clock):
        work = counting(store, effects, 3, durability=durability)
        store.fail("claim", "append", when="after", times=2)
        assert await work.run("a") == 3
        store.fail("append", when="after", skip=2)
        assert await work.run("b") == 3
        info = await Runs(store).get("a")
        assert (info.steps, info.attempts, info.status) == (3, 1, "finished")

    under_clock(test)
    assert effects == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("operation", ["claim", "append"])
@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_store_that_stays_away_fails_the_run(durability, operation):
    """The call ends in ``StoreError``, also when the function itself went well."""
    store, effects = flaky_memory(), Effects()

    async def test(clock):
        work = counting(store, effects, 1, durability=durability)
        store.fail(operation, times=None)
        with pytest.raises(StoreError) as raised:
            await work.run("a")
        assert raised.value.operation == operation
        store.heal()
        await clock.advance(31)
        assert await work.run("a") == 1

    under_clock(test)


def test_swallowing_the_error_does_not_make_it_a_success():
    """A function that goes on after a failed write still ends in ``StoreError``."""
    store, effects, after = flaky_memory(), Effects(), []

    @durable(store=store)
    async def work():
        for number in range(3):
            try:
                await step(f"step {number}", effects.do, number)
            except StoreError:
                after.append(number)
        return "success"

    async def test(clock):
        store.fail("append", times=4)
        with pytest.raises(StoreError):
            await work.run("a")

    under_clock(test)
    assert effects == [0]
    assert after == [0, 1, 2]


def test_a_failure_of_its_own_does_not_hide_that_nothing_was_saved():
    """When the function turns the store's error into another, the caller still gets it."""
    store, effects = flaky_memory(), Effects()
    driver = ConnectionError("gone")

    @durable(store=store)
    async def work():
        try:
            await step("first", effects.do)
        except StoreError:
            raise LookupError("mine") from None

    async def test(clock):
        error = StoreError("append", "a")
        error.__cause__ = driver
        store.fail("append", times=None, error=error)
        with pytest.raises(StoreError) as raised:
            await work.run("a")
        assert raised.value.__cause__ is driver

    under_clock(test)


@pytest.mark.parametrize("durability", ["async", "exit"])
def test_a_failed_background_write_is_raised_at_the_end(durability):
    """What couldn't be written in the background fails the run, at its end at the latest."""
    store, effects = flaky_memory(), Effects()

    async def test(clock):
        store.fail("append", times=None)
        with pytest.raises(StoreError):
            await counting(store, effects, 1, durability=durability).run("a")

    under_clock(test)
    assert effects == [0]


def test_no_step_starts_after_a_failed_background_write():
    """The next step raises the error instead of starting."""
    store = flaky_memory()

    async def test(clock):
        effects, gates = Effects(), Gates()

        @durable(store=store, durability="async")
        async def work():
            await step("first", effects.do, 1)
            await gates.wait()
            await step("second", effects.do, 2)

        store.fail("append", times=None)
        task = asyncio.create_task(work.run("a"))
        await gates.reached.wait()
        for _ in range(50):
            await asyncio.sleep(0)  # the write fails, four times
        assert store.calls["append"] == 4
        gates.go.set()
        with pytest.raises(StoreError):
            await task
        assert effects == [1]

    under_clock(test)


def test_the_errors_of_one_failed_batch_are_told_apart():
    """Each run gets an error of its own that survives copying and pickling."""
    store, effects = flaky_memory(), Effects()

    async def test(clock):
        work = counting(store, effects, 1)
        store.fail("append", times=None)
        errors = await asyncio.gather(work.run("a"), work.run("b"), return_exceptions=True)
        assert [error.key for error in errors] == ["a", "b"]
        for error in errors:
            assert str(pickle.loads(pickle.dumps(error))) == str(copy.copy(error)) == str(error)

    under_clock(test)


# What it costs.


def cost(store, work):
    """Return the calls to the store that ``work`` makes."""
    store.reset()
    asyncio.run(work)
    return dict(store.calls)


def test_round_trips_of_a_run():
    """One to begin, one for each fresh step, one to end."""
    store, effects = flaky_memory(), Effects()
    assert cost(store, counting(store, effects, 0).run("a")) == {"claim": 1, "append": 1}
    assert cost(store, counting(store, effects, 7).run("b")) == {"claim": 1, "append": 8}


@pytest.mark.parametrize("count", [1, 300])
def test_a_replay_asks_the_store_a_constant_number_of_times(count):
    """However many steps are replayed, one call begins and one ends."""
    store, effects = flaky_memory(), Effects()

    @durable(store=store)
    async def work(fail: bool = False):
        for number in range(count):
            await step(f"step {number}", effects.do, number)
        await current_run().set("seen", 1)
        if len(effects) == count:
            effects.append("failed once")
            raise ValueError

    with pytest.raises(ValueError):
        asyncio.run(work.run("a"))
    assert cost(store, work.run("a")) == {"claim": 1, "append": 2}  # the variable, and the end
    assert len(effects) == count + 1


def test_a_finished_run_costs_one_round_trip():
    """Its result comes with the answer to the claim, which changes nothing."""
    store, effects = flaky_memory(), Effects()
    work = counting(store, effects, 3)
    asyncio.run(work.run("a"))
    before = asyncio.run(Runs(store).get("a"))
    assert cost(store, work.run("a")) == {"claim": 1}
    assert asyncio.run(Runs(store).get("a")) == before


def test_submitting_costs_one_round_trip():
    """A submission is one claim."""
    store, effects = flaky_memory(), Effects()
    assert cost(store, counting(store, effects, 3).submit("a")) == {"claim": 1}


def test_what_a_step_writes_does_not_grow():
    """The characters written are in proportion to the number of steps."""
    store, effects = flaky_memory(), Effects()
    cost(store, counting(store, effects, 100).run("a"))
    hundred = store.written
    cost(store, counting(store, effects, 200).run("b"))
    assert store.written < 2.1 * hundred


def test_concurrent_steps_share_commits():
    """A hundred steps that end together need far fewer round trips than a hundred."""
    store, effects = flaky_memory(), Effects()

    @durable(store=store)
    async def work():
        await asyncio.gather(*(step(f"step {n}", effects.do, n) for n in range(100)))

    assert cost(store, work.run("a"))["append"] <= 5


def test_concurrent_runs_share_commits():
    """Steps of different runs that end together go out in one batch."""
    store, effects = flaky_memory(), Effects()
    work = counting(store, effects, 5)

    async def main():
        await asyncio.gather(*(work.run(f"run {number}") for number in range(50)))

    assert cost(store, main())["append"] < 50


class BreakingStore(MemoryStore):
    """A memory store whose appends raise ``error`` while there is one."""

    error: Exception | None = None

    async def append(self, batch: Sequence[Append]) -> Sequence[int | Refusal]:
        if self.error is not None:
            raise self.error
        return await super().append(batch)


def test_a_store_that_raises_anything_ends_the_run_in_a_store_error() -> None:
    """What a store raises at an append, whatever it is, becomes ``StoreError`` with its cause."""
    store, broken = BreakingStore(), OSError("no space")

    async def breaks() -> None:
        store.error = broken

    @durable(store=store)
    async def job() -> None:
        await step("a", breaks)

    async def main() -> None:
        with ManualClock(autojump=True), pytest.raises(StoreError) as caught:
            await job.run("r")
        assert caught.value.__cause__ is broken

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_run_cancelled_while_its_append_is_tried_again_comes_to_an_end() -> None:
    """Cancelled during the wait before the next try, the run ends when the try is settled."""
    store = BreakingStore()

    async def breaks() -> None:
        store.error = StoreError("append", "r", "out of order")

    @durable(store=store)
    async def job() -> None:
        await step("a", breaks)

    async def main() -> None:
        with ManualClock() as manual:
            run = asyncio.ensure_future(job.run("r"))
            while not manual.sleeping:  # noqa: ASYNC110 - the clock offers no event for it
                await asyncio.sleep(0)
            run.cancel()
            store.error = None
            await manual.advance(10)
            with pytest.raises(asyncio.CancelledError):
                await run
        assert "a" in (await Runs(store).state("r")).steps

    asyncio.run(asyncio.wait_for(main(), 20))

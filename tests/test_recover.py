"""``recover``: going on with what dead processes left, however often and by whomever."""

import asyncio

import pytest
from flows import Effects, Gates, abandoned, flaky_memory, under_clock, until

from durable import (
    MemoryStore,
    NotSerializableError,
    RecoveryReport,
    RunBusyError,
    Runs,
    StateFormatError,
    StoreError,
    durable,
    recover,
    step,
)


def worker(store, effects, gates=None, name="work", **options):
    @durable(store=store, name=name, **options)
    async def work(item: str = "", fail: bool = False) -> str:
        await step("first", effects.do, item)
        if gates is not None:
            await step("wait", gates.wait)
        if fail:
            raise ValueError(item)
        return item

    return work


def test_abandoned_and_submitted_runs_go_on():
    """Runs of dead processes go on where they stopped, submitted ones begin."""
    store = flaky_memory()

    async def test(clock):
        effects, gates = Effects(), Gates()
        work = worker(store, effects, gates)
        await abandoned(work, "crashed", store, gates, "c")
        await work.submit("submitted", "s")
        await clock.advance(31)
        gates.go.set()
        assert await recover(work) == RecoveryReport(finished=("crashed", "submitted"))
        assert effects == ["c", "s"]
        assert await work.run("crashed") == "c"

    under_clock(test)


def test_held_failed_and_ended_runs_are_left_alone():
    """It takes neither what somebody executes, nor what failed, finished or is another's."""
    store = MemoryStore()

    async def main():
        effects, gates = Effects(), Gates()
        work, plain = worker(store, effects, gates), worker(store, effects)
        busy = asyncio.create_task(work.run("busy"))
        await until(gates.reached, busy)
        await plain.run("finished")
        with pytest.raises(ValueError):
            await plain.run("failed", fail=True)
        await worker(store, effects, name="other").submit("other")
        assert await recover(plain) == RecoveryReport()
        gates.go.set()
        await busy

    asyncio.run(main())


def test_it_reports_what_failed_and_goes_on_with_the_rest():
    """A function that raises, or arguments that weren't stored, don't stop the others."""
    store = flaky_memory()

    async def test(clock):
        effects, gates = Effects(), Gates()
        work = worker(store, effects, gates)

        @durable(store=store, name="work")
        async def given(thing):
            await step("wait", gates.wait)

        await abandoned(given, "a", store, gates, object())
        await work.submit("b", "b", fail=True)
        await work.submit("c", "c")
        await clock.advance(31)
        gates.go.set()
        report = await recover(work)
        assert report.finished == ("c",)
        assert isinstance(report.failed["a"], NotSerializableError)
        assert isinstance(report.failed["b"], ValueError)
        assert (await Runs(store).get("b")).status == "failed"
        assert (await Runs(store).get("a")).held == 0

    under_clock(test)


def test_one_bad_record_does_not_stop_the_others():
    """An unreadable run is reported, left as it is, and the rest recovered."""
    store, effects = MemoryStore(), Effects()
    work = worker(store, effects)

    async def main():
        for run_id in "abc":
            await work.submit(run_id, run_id)
        lines = store._runs["b"].lines
        lines[0] = damaged = lines[0].replace('"b"', '"x"', 1)
        report = await recover(work)
        assert sorted(report.finished) == ["a", "c"]
        assert isinstance(report.failed["b"], StateFormatError)
        assert sorted(effects) == ["a", "c"]
        assert lines == [damaged]
        again = await recover(work)
        assert list(again.failed) == ["b"]

    asyncio.run(main())


def test_limit():
    """At most ``limit`` runs are taken, over all functions."""
    store, effects = MemoryStore(), Effects()
    work, other = worker(store, effects), worker(store, effects, name="other")

    async def main():
        for number in range(3):
            await work.submit(f"a{number}")
            await other.submit(f"b{number}")
        assert (await recover(work, other, limit=4)).finished == ("a0", "a1", "a2", "b0")
        assert (await recover(work, other, limit=1)).finished == ("b1",)
        assert (await recover(work, other)).finished == ("b2",)
        assert await recover(work, other) == RecoveryReport()

    asyncio.run(main())


def test_more_runs_than_a_page():
    """However many there are, all are recovered."""
    store, effects = MemoryStore(), Effects()
    work = worker(store, effects)

    async def main():
        for number in range(250):
            await work.submit(f"run {number}")
        assert len((await recover(work)).finished) == 250

    asyncio.run(main())


def test_a_crash_during_recovery_strands_nothing():
    """What a dying recovery leaves is taken by the next one."""
    store = flaky_memory()

    async def test(clock):
        effects, gates = Effects(), Gates()
        work = worker(store, effects, gates)
        await work.submit("a", "a")
        await work.submit("b", "b")
        task = asyncio.create_task(recover(work))
        await until(gates.reached, task)
        store.fail(times=None)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        store.heal()
        await clock.advance(31)
        gates.go.set()
        assert sorted((await recover(work)).finished) == ["a", "b"]
        assert sorted(effects) == ["a", "b"]

    under_clock(test)


def test_a_cancelled_recovery_gives_the_leases_back():
    """After Ctrl-C the runs can be recovered at once."""
    store = MemoryStore()

    async def main():
        effects, gates = Effects(), Gates()
        work = worker(store, effects, gates)
        await work.submit("a", "a")
        task = asyncio.create_task(recover(work))
        await until(gates.reached, task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gates.go.set()
        assert (await recover(work)).finished == ("a",)

    asyncio.run(main())


@pytest.mark.parametrize("ends", ["while held", "before"])
def test_two_recoveries_at_once_share_the_runs(ends):
    """Each run is executed by one of them; the other reports it as skipped."""
    store = flaky_memory()

    async def main():
        effects, gates = Effects(), Gates()
        work = worker(store, effects, gates)
        await work.submit("a", "a")
        held = store.hold("claim")
        slow = asyncio.create_task(recover(work))
        await until(held.reached, slow)
        quick = asyncio.create_task(recover(work))
        await until(gates.reached, quick)
        if ends == "before":
            gates.go.set()
            assert (await quick).finished == ("a",)
        held.set()
        assert await slow == RecoveryReport(skipped=("a",))
        gates.go.set()
        assert (await quick).finished == ("a",)
        assert effects == ["a"]

    asyncio.run(main())


def test_a_run_that_failed_meanwhile_is_skipped():
    """What failed after it was listed isn't executed again: failed runs are for people."""
    store = flaky_memory()

    async def main():
        effects = Effects()
        work = worker(store, effects)
        await work.submit("a", "a", fail=True)
        listed = store.hold("list_runs", when="after")
        recovery = asyncio.create_task(recover(work))
        await until(listed.reached, recovery)
        with pytest.raises(ValueError):
            await work.resume("a")
        listed.set()
        assert await recovery == RecoveryReport(skipped=("a",))
        assert (await Runs(store).get("a")).attempts == 1

    asyncio.run(main())


def test_a_busy_run_that_the_function_itself_met_is_its_failure():
    """``RunBusyError`` about another run isn't taken for somebody being quicker."""
    store = MemoryStore()

    @durable(store=store)
    async def work():
        raise RunBusyError("another")

    async def main():
        await work.submit("a")
        assert list((await recover(work)).failed) == ["a"]

    asyncio.run(main())


def test_another_store():
    """``store=`` says where to look instead of in each function's own."""
    own, other, effects = MemoryStore(), MemoryStore(), Effects()

    async def main():
        await worker(other, effects).submit("a", "a")
        assert await recover(worker(own, effects)) == RecoveryReport()
        assert (await recover(worker(own, effects), store=other)).finished == ("a",)
        assert await Runs(own).list() == []

    asyncio.run(main())


def test_only_durable_functions_are_recovered():
    """Anything else is refused at once, as is a limit that isn't a number above 0."""

    async def plain(): ...

    async def main():
        with pytest.raises(TypeError, match="durable functions, got function"):
            await recover(plain)
        with pytest.raises(TypeError, match="store"):
            await recover(worker(MemoryStore(), Effects()), store=5)
        with pytest.raises(ValueError, match="limit"):
            await recover(worker(MemoryStore(), Effects()), limit=0)

    asyncio.run(main())


def test_a_store_that_cannot_be_listed():
    """When it stays away, the caller learns it."""
    store = flaky_memory()

    async def test(clock):
        store.fail("list_runs", times=None)
        with pytest.raises(StoreError):
            await recover(worker(store, Effects()))
        store.heal()
        store.fail("list_runs", times=2)
        assert await recover(worker(store, Effects())) == RecoveryReport()

    under_clock(test)


def test_a_store_that_fails_one_run():
    """A ``StoreError`` in one run is reported; the others go on."""
    store, effects = flaky_memory(), Effects()

    async def test(clock):
        work = worker(store, effects)
        await work.submit("a", "a")
        await work.submit("b", "b")
        store.fail("claim", times=4)
        report = await recover(work, limit=1)
        assert isinstance(report.failed["a"], StoreError)
        assert (await recover(work)).finished == ("a", "b")

    under_clock(test)

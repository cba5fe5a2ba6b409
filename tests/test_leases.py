"""Who may execute a run: leases, fences, and what happens when they are lost."""

import asyncio
import logging

import pytest
from flows import Effects, Gates, abandoned, flaky_memory, under_clock, until

from durable import (
    DurableError,
    LeaseLostError,
    MemoryStore,
    RunBusyError,
    RunLost,
    Runs,
    StoreError,
    current_run,
    durable,
    recover,
    step,
)


class Crashes(Effects):
    """Effects, and a step to be killed in."""

    def __init__(self):
        super().__init__()
        self.gates = Gates()


def job(store, crashes, **options):
    @durable(store=store, name="job", **options)
    async def job() -> str:
        await step("first", lambda: crashes.append(current_run().fence))
        result = await step("wait", crashes.gates.wait)
        await step("last", crashes.do, "last")
        return result

    return job


def test_takeover_after_the_lease_has_lapsed():
    """A dead process's run is busy until its lease lapses, and then goes on where it stopped."""
    store = flaky_memory()

    async def test(clock):
        crashes = Crashes()
        work = job(store, crashes, lease=30)
        await abandoned(work, "a", store, crashes.gates)
        await clock.advance(20)
        with pytest.raises(RunBusyError):
            await work.run("a")
        await clock.advance(11)
        crashes.gates.go.set()
        assert await work.run("a") == "gone on"
        assert crashes == [crashes[0], "last"]
        info = await Runs(store).get("a")
        assert info.fence == crashes[0] + 1
        assert info.attempts == 2

    under_clock(test)


async def overtaken(clock, store, crashes, **options):
    """Return the task of an owner that stalls in a step, and whose run was taken over."""
    slow = asyncio.create_task(job(store, crashes, **options).run("a"))
    await until(crashes.gates.reached, slow)
    await clock.advance(31)
    winner = Crashes()
    winner.gates.go.set()
    assert await job(store, winner).run("a") == "gone on"
    assert winner == ["last"]
    return slow


def test_the_old_owner_learns_it_at_its_next_write_and_writes_nothing():
    """It ends in ``LeaseLostError``, starts no further step, and changes nothing."""
    store = MemoryStore()

    async def test(clock):
        crashes, events = Crashes(), []
        slow = await overtaken(clock, store, crashes, on_event=events.append)
        info, log = await Runs(store).get("a"), await store.read("a")
        crashes.gates.go.set()
        with pytest.raises(LeaseLostError) as raised:
            await slow
        assert raised.value.run_id == "a"
        assert "last" not in crashes
        assert await Runs(store).get("a") == info
        assert (await store.read("a")).lines == log.lines
        assert [type(event).__name__ for event in events].count("RunLost") == 1

    under_clock(test)


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_a_lost_lease_is_never_a_success(durability):
    """Whatever the durability, and whatever the function catches, the call ends in the error."""
    store = MemoryStore()

    async def test(clock):
        gates = Gates()

        @durable(store=store, name="stubborn", durability=durability)
        async def stubborn():
            try:
                await step("wait", gates.wait)
                await step("next", gates.wait)
            except DurableError:
                raise KeyError("something else") from None
            return "success"

        slow = asyncio.create_task(stubborn.run("a"))
        await gates.reached.wait()
        await clock.advance(31)
        await Runs(store).delete("a")
        gates.go.set()
        with pytest.raises(LeaseLostError):
            await slow
        assert await Runs(store).list() == []

    under_clock(test)


def test_a_renewal_that_is_refused_stops_the_run():
    """A run taken over while it works in a step starts no further one, whatever it catches."""
    store = flaky_memory()

    async def main():
        gates, effects, lost = Gates(), Effects(), asyncio.Event()

        @durable(store=store, lease=0.03, durability="exit", on_event=lambda event: tell(event))
        async def work():
            await step("wait", gates.wait)
            await step("last", effects.do, "last")

        def tell(event):
            if isinstance(event, RunLost):
                lost.set()

        task = asyncio.create_task(work.run("a"))
        await until(gates.reached, task)
        await store.wrapped.delete_run("a", held=True)
        await until(lost, task)
        gates.go.set()
        with pytest.raises(LeaseLostError):
            await task
        assert effects == []

    asyncio.run(main())


def test_failed_renewals_keep_trying(caplog):
    """Renewals that fail don't end the run; the next one that works keeps it."""
    store = flaky_memory()

    async def main():
        crashes = Crashes()
        store.fail("renew", times=3)
        gate = store.hold("renew", skip=3, when="after")
        task = asyncio.create_task(job(store, crashes, lease=0.05).run("a"))
        await gate.reached.wait()
        assert (await Runs(store).get("a")).held > 0
        crashes.gates.go.set()
        gate.set()
        assert await task == "gone on"

    with caplog.at_level(logging.WARNING, logger="durable"):
        asyncio.run(main())
    assert sum("renewing the lease" in each.getMessage() for each in caplog.records) == 3


def test_the_lease_is_renewed_while_the_run_lives():
    """A step that lasts longer than the lease doesn't lose it."""
    store = flaky_memory()

    async def main():
        crashes = Crashes()
        gate = store.hold("renew", skip=4, when="after")
        task = asyncio.create_task(job(store, crashes, lease=0.03).run("a"))
        await gate.reached.wait()
        with pytest.raises(RunBusyError):
            await job(store, crashes).run("a")
        gate.set()
        crashes.gates.go.set()
        assert await task == "gone on"

    asyncio.run(main())


def test_a_lapsed_lease_that_nobody_took_is_no_loss():
    """A loop that was blocked for longer than its lease goes on if nobody came meanwhile."""
    store = MemoryStore()

    async def test(clock):
        crashes = Crashes()
        task = asyncio.create_task(job(store, crashes).run("a"))
        await until(crashes.gates.reached, task)
        await clock.advance(100)
        crashes.gates.go.set()
        assert await task == "gone on"

    under_clock(test)


def test_a_blocked_loop_is_fenced():
    """An owner that missed its renewals unnoticed can't write behind its successor."""
    store = MemoryStore()

    async def test(clock):
        crashes = Crashes()
        slow = await overtaken(clock, store, crashes)
        state = await Runs(store).state("a")
        crashes.gates.go.set()
        with pytest.raises(LeaseLostError):
            await slow
        assert await Runs(store).state("a") == state

    under_clock(test)


def test_the_lease_is_given_back_at_a_failure():
    """A failed run can be gone on with at once, by anybody."""
    store = MemoryStore()

    @durable(store=store)
    async def fails():
        raise ValueError

    async def main():
        for _ in range(2):
            with pytest.raises(ValueError):
                await fails.run("a")
            assert (await Runs(store).get("a")).held == 0

    asyncio.run(main())


@pytest.mark.parametrize("when", ["before", "after"])
def test_cancelled_while_it_claims(when):
    """Whoever is cancelled while the claim is on its way leaves no lease behind."""
    store = flaky_memory()

    async def main():
        crashes = Crashes()
        work = job(store, crashes)
        gate = store.hold("claim", when=when)
        task = asyncio.create_task(work.run("a"))
        await gate.reached.wait()
        task.cancel()
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert crashes == []
        crashes.gates.go.set()
        assert await work.run("a") == "gone on"

    asyncio.run(main())


def test_cancelled_twice_while_it_ends():
    """A second cancellation doesn't keep the lease from being given back."""
    store = flaky_memory()

    async def main():
        crashes = Crashes()
        task = asyncio.create_task(job(store, crashes).run("a"))
        await until(crashes.gates.reached, task)
        gate = store.hold("append")
        task.cancel()
        await gate.reached.wait()
        task.cancel()
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await Runs(store).get("a")).held == 0

    asyncio.run(main())


def test_nothing_is_left_of_a_run_that_ended():
    """No task and no timer outlives the call."""
    store = MemoryStore()

    async def main():
        crashes = Crashes()
        crashes.gates.go.set()
        await job(store, crashes, lease=0.001).run("a")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


# Recoveries.


def test_recoveries_are_counted_and_a_run_that_always_crashes_is_parked():
    """Taken from dead processes ``max_recoveries`` times, it is marked as failed."""
    store = flaky_memory()

    async def test(clock):
        crashes = Crashes()
        work = job(store, crashes, max_recoveries=2)
        await abandoned(work, "a", store, crashes.gates)
        for count in (1, 2):
            await clock.advance(31)
            crashes.gates.reached.clear()
            task = asyncio.create_task(recover(work))
            await until(crashes.gates.reached, task)
            assert (await Runs(store).get("a")).recoveries == count
            store.fail(times=None)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            store.heal()
        await clock.advance(31)
        crashes.gates.reached.clear()
        report = await recover(work)
        assert report.parked == ("a",)
        assert not crashes.gates.reached.is_set()
        info = await Runs(store).get("a")
        assert (info.status, info.held) == ("failed", 0)
        assert "2 times" in info.error
        assert await recover(work) == type(report)()
        crashes.gates.go.set()
        assert await work.resume("a") == "gone on"

    under_clock(test)


def test_a_released_run_counts_as_no_recovery():
    """Runs that were submitted or cancelled aren't recovered from a crash."""
    store = MemoryStore()

    async def main():
        crashes = Crashes()
        crashes.gates.go.set()
        work = job(store, crashes, max_recoveries=1)
        await work.submit("a")
        assert (await recover(work)).finished == ("a",)
        assert (await Runs(store).get("a")).recoveries == 0

    asyncio.run(main())


def test_going_on_by_hand_forgets_the_recoveries():
    """``run`` and ``resume`` begin to count anew."""
    store = flaky_memory()

    async def test(clock):
        crashes = Crashes()
        work = job(store, crashes, max_recoveries=1)
        for _ in range(4):
            await abandoned(work, "a", store, crashes.gates)
            await clock.advance(31)
        assert (await Runs(store).get("a")).recoveries == 0
        crashes.gates.go.set()
        assert (await recover(work)).finished == ("a",)

    under_clock(test)


# Expiry.


def test_an_abandoned_run_expires_after_its_ttl():
    """``ttl`` counts from the last write or renewal, and not while the run is held."""
    store = flaky_memory()

    async def test(clock):
        crashes = Crashes()
        work = job(store, crashes, ttl=100, lease=30)
        await abandoned(work, "a", store, crashes.gates)
        await clock.advance(125)
        assert len(await Runs(store).list()) == 1
        await clock.advance(6)
        assert await Runs(store).list() == []

    under_clock(test)


@pytest.mark.parametrize("end", ["failed", "cancelled", "submitted", "refused"])
def test_every_unfinished_run_expires(end):
    """Failed, cancelled by a signal, submitted or refused: ``ttl`` seconds later it is gone."""
    store = MemoryStore()

    async def test(clock):
        crashes = Crashes()
        work = job(store, crashes, ttl=100)

        @durable(store=store, name="job", ttl=100)
        async def fails():
            raise ValueError

        if end == "failed":
            with pytest.raises(ValueError):
                await fails.run("a")
        elif end == "cancelled":
            task = asyncio.create_task(work.run("a"))
            await until(crashes.gates.reached, task)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await work.submit("a")
        if end == "refused":
            with pytest.raises(DurableError):
                await work.options(version=2).run("a")
        await clock.advance(99)
        assert len(await Runs(store).list()) == 1
        await clock.advance(2)
        assert await Runs(store).list() == []

    under_clock(test)


@pytest.mark.parametrize(("keep", "stays"), [(50, False), (None, True)])
def test_an_ended_run_stays_as_long_as_keep_says(keep, stays):
    """``keep`` seconds, or for good; the ``ttl`` of unfinished runs doesn't count."""
    store = MemoryStore()

    async def test(clock):
        crashes = Crashes()
        crashes.gates.go.set()
        await job(store, crashes, keep=keep, ttl=10).run("a")
        await clock.advance(49)
        assert len(await Runs(store).list()) == 1
        await clock.advance(10_000_000)
        assert bool(await Runs(store).list()) is stays

    under_clock(test)


def test_keep_is_seven_days_by_default():
    """A result can be had for a week."""
    store = MemoryStore()

    async def test(clock):
        crashes = Crashes()
        crashes.gates.go.set()
        await job(store, crashes).run("a")
        await clock.advance(7 * 24 * 3600 - 1)
        assert len(await Runs(store).list()) == 1
        await clock.advance(2)
        assert await Runs(store).list() == []

    under_clock(test)


def test_the_error_says_what_failed_when_the_lease_cannot_be_given_back():
    """A store that fails as a refused run is given back doesn't hide the refusal."""
    store = flaky_memory()

    async def test(clock):
        crashes = Crashes()
        await job(store, crashes).submit("a")
        store.fail("append", times=None)
        with pytest.raises(DurableError, match="version"):
            await job(store, crashes, version=2).run("a")
        store.heal()
        with pytest.raises(RunBusyError):
            await job(store, crashes).run("a")

    under_clock(test)


def test_store_errors_are_store_errors():
    """A claim that can't be made leaves nothing behind."""
    store = flaky_memory()

    async def test(clock):
        store.fail("claim", times=None)
        with pytest.raises(StoreError):
            await job(store, Crashes()).run("a")
        store.heal()
        assert await Runs(store).list() == []

    under_clock(test)

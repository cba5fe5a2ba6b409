"""Every store keeps every promise of its contract, and the checks can tell one that doesn't."""

import asyncio
import importlib

import pytest
from broken_stores import BROKEN_JOURNALS, BROKEN_STORES, Unsorted
from five_method_store import FiveMethodStore
from stores import IN_MEMORY, JOURNALS_IN_MEMORY, ON_DISK

from durable._clock import clock
from durable._errors import StoreError
from durable._memory import MemoryStore
from durable.store import Journal, KeyValueStore, SwappingStore
from durable.testing import (
    FlakyStore,
    ManualClock,
    check_journal,
    check_store,
    journal_checks,
    store_checks,
)


def run(check, make):
    """Run one check under a clock that a test moves by hand."""

    async def main():
        with ManualClock() as manual:
            await check(make, age=lambda _, seconds: manual.advance(seconds))

    asyncio.run(main())


@pytest.mark.parametrize("check", store_checks(), ids=str)
@pytest.mark.parametrize("make", IN_MEMORY.values(), ids=IN_MEMORY)
def test_store(make, check):
    """A store keeps this promise of ``KeyValueStore``."""
    run(check, make)


@pytest.mark.parametrize("check", journal_checks(), ids=str)
@pytest.mark.parametrize("make", JOURNALS_IN_MEMORY.values(), ids=JOURNALS_IN_MEMORY)
def test_journal(make, check):
    """A journal keeps this promise of ``Journal``."""
    run(check, make)


@pytest.mark.parametrize("check", [*store_checks(), *journal_checks()], ids=str)
@pytest.mark.parametrize("name", ON_DISK)
def test_store_on_disk(name, check, tmp_path):
    """A store on disk keeps the promise, also between two clients."""
    kind = ON_DISK[name]
    paths = (tmp_path / str(number) for number in range(100))
    places = {}

    def make():
        path = next(paths)
        store = kind.open(path)
        places[store] = path
        return store

    def age(store, seconds):
        kind.age(places[store], "durable", seconds)

    asyncio.run(check(make, again=lambda store: kind.open(places[store]), age=age))


def test_all_at_once_in_real_time():
    """``check_store`` and ``check_journal`` check everything, and may wait for real."""

    async def main():
        await check_store(MemoryStore)
        await check_journal(MemoryStore)

    asyncio.run(main())


def test_every_check_says_what_it_checks():
    """Each check has a name of its own and a sentence."""
    checks = [*store_checks(), *journal_checks()]

    assert len({check.name for check in checks}) == len(checks)
    assert all(check.promise.endswith(".") for check in checks)


def test_every_check_function_is_listed():
    """No check was written and then forgotten."""
    modules = ("store", "claims", "runs", "log")
    listed = {check.name for check in (*store_checks(), *journal_checks())}
    for module in modules:
        found = vars(importlib.import_module(f"durable._testing_{module}"))
        for name, value in found.items():
            code = getattr(value, "__code__", None)
            if code and code.co_varnames[: code.co_argcount] == ("site",):
                assert name in listed


def test_flaky_store_offers_what_is_wrapped():
    """A flaky store is a journal, or can swap, exactly when the wrapped store can."""
    bare = FlakyStore(FiveMethodStore())
    full = FlakyStore(MemoryStore())

    assert isinstance(bare, KeyValueStore)
    assert not isinstance(bare, (Journal, SwappingStore))
    assert isinstance(full, Journal)
    assert isinstance(full, SwappingStore)


@pytest.mark.parametrize(
    ("broken", "name"), [*BROKEN_STORES.items(), *BROKEN_JOURNALS.items()], ids=str
)
def test_a_broken_store_is_caught(broken, name):
    """The check of the promise that a store breaks fails."""
    (check,) = (each for each in (*store_checks(), *journal_checks()) if each.name == name)

    with pytest.raises((AssertionError, KeyError, AttributeError)):
        run(check, broken)


def test_all_broken_promises_are_told_together():
    """``check_store`` raises one group that names each broken promise."""
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(check_store(Unsorted))

    notes = [note for error in caught.value.exceptions for note in error.__notes__]
    assert any("many_keys_are_sorted" in note for note in notes)
    assert all(isinstance(error, AssertionError) for error in caught.value.exceptions)


def test_a_manual_clock_wakes_sleepers_in_order():
    """Sleepers wake when the clock has advanced past them, each seeing its own time."""

    async def main():
        woken = []

        async def sleeper(seconds):
            await clock().sleep(seconds)
            woken.append((seconds, clock().time()))
            if seconds == 1:
                await clock().sleep(1.5)
                woken.append(("again", clock().time()))

        with ManualClock(start=100.0) as manual:
            tasks = [asyncio.ensure_future(sleeper(seconds)) for seconds in (3, 1, 2)]
            await manual.advance(0.5)
            assert (woken, manual.sleeping) == ([], 3)
            await manual.advance(2.5)
            await asyncio.gather(*tasks)
            assert woken == [(1, 101.0), (2, 102.0), ("again", 102.5), (3, 103.0)]
            assert manual.monotonic() == 103.0
        assert clock().time() > 1e9

    asyncio.run(main())


def test_a_manual_clock_can_jump():
    """With ``autojump`` a sleep advances the time at once; randomness repeats itself."""

    async def main():
        with ManualClock(start=0.0, autojump=True) as manual:
            await clock().sleep(3600)
            assert manual.time() == 3600
            with pytest.raises(ValueError, match="forward"):
                await manual.advance(-1)
        assert [ManualClock().random() for _ in range(2)] == [ManualClock().random()] * 2

    asyncio.run(main())


def test_a_flaky_store_fails_delays_and_counts():
    """Faults happen to the calls they were asked for, before or after the effect, and no others."""

    async def main():
        flaky = FlakyStore(MemoryStore())
        flaky.fail("set", skip=1, times=2)
        await flaky.set("a", "12")
        for _ in range(2):
            with pytest.raises(StoreError, match="made to fail"):
                await flaky.set("a", "345")
        flaky.fail("delete", when="after", error=OSError)
        with pytest.raises(OSError):
            await flaky.delete("a")
        assert await flaky.get("a") is None
        gate = flaky.hold("set")
        task = asyncio.ensure_future(flaky.set("b", "6789"))
        await gate.reached.wait()
        assert await flaky.get("b") is None
        gate.set()
        await task
        assert await flaky.get("b") == "6789"
        assert flaky.calls == {"set": 4, "delete": 1, "get": 3}
        assert (flaky.written, flaky.read_back) == (6, 4)

    asyncio.run(main())

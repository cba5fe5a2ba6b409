"""The journal on five methods: crashes between any two writes, and damaged data."""

import asyncio

import pytest
from five_method_store import FiveMethodStore
from kv_helpers import ENDED, add, all_lines, claim_of, copied, filled

from durable._errors import StateFormatError, StoreError
from durable._kv_journal import KeyValueJournal
from durable.store import Append, HeadChange, ListQuery
from durable.testing import FlakyStore, ManualClock


def test_a_merge_cut_in_half_anywhere_loses_nothing():
    """After a crash at any point of a merge the log is whole, and the next owner tidies up."""

    async def main():
        whole, _, _ = await filled(64)
        for cut in (*range(1, 8), *range(8, 70, 6), 68, 69):
            flaky = FlakyStore(copied(whole.wrapped))
            journal = KeyValueJournal(flaky)
            claimed = await journal.claim(claim_of(owner="a"))
            flaky.fail("set", "delete", skip=cut, times=None)
            try:
                for number in (65, 66):
                    await add(journal, claimed, number, "x", owner="a")
            except StoreError:
                pass
            await journal.settle()
            later = copied(flaky.wrapped)
            fresh = KeyValueJournal(later)
            taken = await fresh.claim(claim_of(owner="b"))
            assert taken.took_over
            count = len(taken.log.lines)
            assert count in (64, 65, 66)
            for number in range(count + 1, count + 70):
                await add(fresh, taken, number, "y", owner="b")
            await fresh.settle()
            assert len(await all_lines(fresh)) == count + 69
            assert sum(":l:" in key for key in later.data) < 80

    asyncio.run(main())


async def scenario_create(journal):
    await journal.claim(claim_of(owner="new", begin=("n1", "n2"), restart=ENDED))


async def scenario_large(journal):
    await journal.claim(claim_of("large", owner="new", begin=("L" * 20_000, "n2")))


async def scenario_epoch(journal):
    claimed = await journal.claim(claim_of(owner="new", begin=()))
    change = HeadChange(version=2)
    first = claimed.log.head.sequence + 1
    await add(journal, claimed, first, "n1", "n2", owner="new", epoch=True, head=change)


async def scenario_end(journal):
    claimed = await journal.claim(claim_of(owner="new", begin=()))
    change = HeadChange(status="finished", release=True)
    first = claimed.log.head.sequence + 1
    await add(journal, claimed, first, "e1", "e2" * 9000, owner="new", head=change)


async def scenario_delete(journal):
    await journal.delete_run("run", held=True)


async def scenario_remove(journal):
    claimed = await journal.claim(claim_of(owner="new", begin=()))
    change = HeadChange(status="finished", release=True, expires_in=0)
    first = claimed.log.head.sequence + 1
    await add(journal, claimed, first, "end", owner="new", head=change)


async def scenario_deposit(journal):
    await journal.deposit("run", "k2", "v2")


OLD = ["begin", *(f"{n}" for n in range(2, 80))]
SCENARIOS = {
    scenario_create: ("run", [OLD, ["n1", "n2"]]),
    scenario_large: ("large", [None, ["L" * 20_000, "n2"]]),
    scenario_epoch: ("run", [OLD, ["n1", "n2"]]),
    scenario_end: ("run", [OLD, [*OLD, "e1", "e2" * 9000]]),
    scenario_delete: ("run", [OLD, None]),
    scenario_remove: ("run", [OLD, None]),
    scenario_deposit: ("run", [OLD]),
}


async def recorded_before(status):
    store = FiveMethodStore()
    journal = KeyValueJournal(store)
    claimed = await journal.claim(claim_of())
    await journal.deposit("run", "k", "v")
    for number in range(2, 80):
        await add(journal, claimed, number, f"{number}")
    await add(journal, claimed, 80, head=HeadChange(status=status, release=True))
    await journal.settle()
    return store


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.__name__)
def test_a_crash_between_any_two_writes_leaves_old_or_new(scenario, when):
    """Whatever write a process dies at, the next one finds the old state or the new one."""
    run_id, states = SCENARIOS[scenario]

    async def main():
        seen = []
        status = "finished" if scenario is scenario_create else "paused"
        before = await recorded_before(status)
        for cut in range(200):
            flaky = FlakyStore(copied(before))
            flaky.fail("set", "delete", skip=cut, times=1 if when == "after" else None, when=when)
            if when == "after":
                flaky.fail("set", "delete", skip=cut + 1, times=None)
            journal = KeyValueJournal(flaky)
            try:
                await scenario(journal)
                done = True
            except StoreError:
                done = False
            await journal.settle()
            fresh = KeyValueJournal(copied(flaky.wrapped))
            found = await fresh.read(run_id)
            lines = None if found is None else list(found.lines)
            assert lines in states
            if found is not None and lines == states[-1] and scenario is scenario_end:
                assert found.head.status == "finished"
                assert found.head.held == 0
            if found is not None and scenario is scenario_epoch:
                assert found.head.version == 1 + (lines == states[-1])
            if done:
                assert lines == states[-1]
            seen.append(lines)
            # Whatever was left over, a new run under this id has nothing of it.
            await fresh.delete_run(run_id, held=True)
            claimed = await fresh.claim(claim_of(run_id, "later", begin=("later",)))
            assert (list(claimed.log.lines), claimed.log.inbox) == (["later"], {})
            if done and flaky.calls["set"] + flaky.calls["delete"] <= cut:
                break
        assert seen[-1] == states[-1]

    asyncio.run(main())


async def persistently(method, *args):
    """Return what ``method`` returns once the store doesn't fail."""
    for _ in range(5):
        try:
            return await method(*args)
        except StoreError:
            continue
    raise AssertionError("it never succeeded")


@pytest.mark.parametrize("when", ["before", "after"])
def test_every_failed_write_can_be_sent_again(when):
    """A store that fails each write once, before or after its effect, costs retries and no more."""

    async def main():
        for cut in range(25):
            flaky = FlakyStore(FiveMethodStore())
            flaky.fail("set", skip=cut, when=when)
            journal = KeyValueJournal(flaky)
            claimed = await persistently(journal.claim, claim_of(begin=("begin", "L" * 9000)))
            assert claimed.granted
            fence = claimed.log.head.fence
            for number in range(3, 21):
                change = HeadChange(version=number) if number % 7 == 0 else None
                if number == 20:
                    change = HeadChange(status="finished", release=True)
                member = Append("run", "first", fence, number, (f"{number}",), change)
                assert list(await persistently(journal.append, [member])) == [0]
            log = await KeyValueJournal(copied(flaky.wrapped)).read("run")
            expected = ["begin", "L" * 9000, *(f"{n}" for n in range(3, 21))]
            assert list(log.lines) == expected
            assert (log.head.status, log.head.version, log.head.attempts) == ("finished", 14, 1)

    asyncio.run(main())


def test_a_failed_write_does_not_lose_the_lease():
    """After a write whose outcome is unknown a renewed lease still holds, and one given back
    doesn't."""

    async def main():
        with ManualClock() as clock:
            flaky = FlakyStore(FiveMethodStore())
            journal = KeyValueJournal(flaky)
            claimed = await journal.claim(claim_of(lease=30))
            await clock.advance(29)
            await journal.renew("run", "first", claimed.log.head.fence, 30)
            flaky.fail("set")
            with pytest.raises(StoreError):
                await add(journal, claimed, 2, "two")
            await clock.advance(20)
            assert not (await journal.claim(claim_of(owner="b"))).granted
            flaky.fail("set", when="after")
            with pytest.raises(StoreError):
                await add(journal, claimed, 2, head=HeadChange(release=True))
            assert (await journal.claim(claim_of(owner="b"))).granted

    asyncio.run(main())


def damage_value(data, key):
    value, expires = data[key]
    data[key] = (value[:-1] + ("x" if value[-1] != "x" else "y"), expires)


def remove_key(data, key):
    del data[key]


def move_value(data, key):
    other = next(each for each in sorted(data) if ":l:" in each and each != key)
    data[key] = data[other]


def not_text(data, key):
    data[key] = (b"bytes", None)


def empty_value(data, key):
    data[key] = ("", None)


CHANGES = (damage_value, move_value, not_text, empty_value)
DAMAGE = [
    *((harm, which) for harm in CHANGES for which in ("part", "segment", "head", "inbox")),
    (remove_key, "segment"),
]


@pytest.mark.parametrize(("harm", "which"), DAMAGE)
def test_damage_is_told(harm, which):
    """A part, segment, head or deposit that was changed, lost or moved is a StateFormatError."""

    async def main():
        flaky, journal, _ = await filled(150)
        await journal.deposit("run", "k", "v")
        data = flaky.wrapped.data
        parts = sorted(key for key in data if ":l:" in key)
        kinds = {
            "part": next(key for key in parts if "-0-" in key),
            "segment": next(key for key in parts if "-1-" in key),
            "head": next(key for key in data if ":h:" in key),
            "inbox": next(key for key in data if ":i:" in key),
        }
        harm(data, kinds[which])
        before = dict(data)
        with pytest.raises(StateFormatError):
            await KeyValueJournal(flaky).read("run")
        with pytest.raises(StateFormatError):
            await KeyValueJournal(flaky).claim(claim_of(owner="b"))
        assert data == before

    asyncio.run(main())


def test_lost_lines_that_the_head_knows_of_are_told():
    """When the last lines before a head change are gone, the head tells."""

    async def main():
        flaky, journal, claimed = await filled(10)
        await add(journal, claimed, 11, head=HeadChange(status="paused"))
        remove_key(flaky.wrapped.data, next(k for k in flaky.wrapped.data if ":10-10-" in k))
        with pytest.raises(StateFormatError, match="missing"):
            await KeyValueJournal(flaky).read("run")

    asyncio.run(main())


def test_one_damaged_head_does_not_hide_the_others(caplog):
    """A list leaves a damaged run out, and logs it."""

    async def main():
        store = FiveMethodStore()
        journal = KeyValueJournal(store)
        for run_id in "abc":
            await journal.claim(claim_of(run_id))
        damage_value(store.data, "durable:h:b")
        found = await KeyValueJournal(store).list_runs(ListQuery())
        assert [head.run_id for head in found] == ["a", "c"]
        assert "'b'" in caplog.text

    asyncio.run(main())

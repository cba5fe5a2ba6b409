"""The journal on five methods: flat cost, merging, leases, prefixes, loops and threads."""

import asyncio
import threading

import pytest
from five_method_store import FiveMethodStore
from kv_helpers import add, all_lines, claim_of, copied, filled

from durable._errors import LeaseLostError, StoreError
from durable._kv_journal import KeyValueJournal
from durable._kv_segments import LARGEST, Part, next_merge, packed, quoted
from durable._memory import MemoryStore
from durable.store import Append, HeadChange, ListQuery
from durable.testing import FlakyStore, ManualClock


@pytest.fixture(scope="module")
def long_run():
    """A run of 10,000 steps: its data, and what its steps cost (calls by name, and bytes)."""

    async def main():
        flaky, journal, claimed = await filled(99)
        costs = {}
        for start, end in ((100, 200), (200, 9_900), (9_900, 10_001)):
            calls, written = flaky.calls.copy(), flaky.written
            for number in range(start, end):
                await add(journal, claimed, number, "x" * 100)
            await journal.settle()
            costs[start] = flaky.calls - calls, flaky.written - written
        return flaky.wrapped, costs, flaky.written

    return asyncio.run(main())


def test_the_cost_of_a_step_is_flat(long_run):
    """Steps 9,900 to 10,000 cost as many calls and bytes as steps 100 to 200."""
    _, costs, _ = long_run
    (early, early_bytes), (late, late_bytes) = costs[100], costs[9_900]

    assert late["set"] <= 101 + 3
    assert late["keys"] == late["get"] == 0
    assert late.total() <= early.total() + 130
    assert late_bytes <= early_bytes + 2 * 64 * 120


def test_bytes_written_grow_linearly(long_run):
    """All writes of 10,000 steps together are a small multiple of what the steps hold."""
    _, _, written = long_run

    assert written < 5 * 10_000 * 101


def test_ten_thousand_steps_load_with_few_reads(long_run):
    """A new process reads 10,000 steps with fewer than 250 calls."""

    async def main():
        fresh = FlakyStore(copied(long_run[0]))
        log = await KeyValueJournal(fresh).read("run")

        assert len(log.lines) == 10_000
        assert not log.more
        assert fresh.calls.total() < 250

    asyncio.run(main())


def test_large_lines_are_not_rewritten():
    """Lines of half a megabyte and more are written once."""

    async def main():
        flaky, journal, _ = await filled(200, size=LARGEST // 2 + 1)

        assert flaky.written < 200 * (LARGEST // 2 + 200)
        assert len(await all_lines(journal)) == 200

    asyncio.run(main())


def test_members_of_one_run_share_a_write():
    """Two hundred appends of one run in one batch are one key."""

    async def main():
        flaky, journal, claimed = await filled(1)
        flaky.reset()
        fence = claimed.log.head.fence
        batch = [Append("run", "first", fence, n, (f"{n}",)) for n in range(2, 202)]

        assert list(await journal.append(batch)) == [0] * 200
        assert flaky.calls == {"set": 1}
        assert len(await all_lines(journal)) == 201

    asyncio.run(main())


def test_a_merge_does_not_hold_up_appends():
    """While a merge waits for the store, further appends are committed."""

    async def main():
        flaky, journal, claimed = await filled(60)
        gate = flaky.hold("set", skip=5)  # the merge's own write follows the 64th part
        for number in range(61, 66):
            await add(journal, claimed, number, "x")
        await gate.reached.wait()
        for number in range(66, 90):
            await add(journal, claimed, number, "x")
        gate.set()
        await journal.settle()

        assert len(await all_lines(journal)) == 89
        assert sum(":l:" in key for key in flaky.wrapped.data) < 30

    asyncio.run(main())


def test_a_failed_merge_fails_no_run_and_is_tried_again(caplog):
    """A merge's error is logged; the next merge makes up for it."""

    async def main():
        flaky, journal, claimed = await filled(60)
        flaky.fail("set", skip=5)
        for number in range(61, 66):
            await add(journal, claimed, number, "x")
        await journal.settle()
        assert "unmerged" in caplog.text
        for number in range(66, 140):
            await add(journal, claimed, number, "x")
        await journal.settle()

        assert len(await all_lines(journal)) == 139
        assert sum(":l:" in key for key in flaky.wrapped.data) < 30

    asyncio.run(main())


def test_the_lease_is_given_back_after_the_merge():
    """An append that releases the run waits for the merge under way."""

    async def main():
        flaky, journal, claimed = await filled(60)
        gate = flaky.hold("set", skip=5)
        for number in range(61, 66):
            await add(journal, claimed, number, "x")
        await gate.reached.wait()
        change = HeadChange(status="finished", release=True)
        end = asyncio.ensure_future(add(journal, claimed, 66, "end", head=change))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not end.done()
        gate.set()
        await end

        assert len(await all_lines(journal)) == 66

    asyncio.run(main())


def test_a_run_whose_process_died_is_taken_over():
    """Leases end with the journal; the next one takes a held run over, with a higher fence."""

    async def main():
        store = FiveMethodStore()
        first = await KeyValueJournal(store).claim(claim_of(lease=1e6))
        journal = KeyValueJournal(store)
        (head,) = await journal.list_runs(ListQuery(claimable=True))
        second = await journal.claim(claim_of(owner="second"))

        assert head.held == 0
        assert (second.granted, second.took_over) == (True, True)
        assert second.log.head.fence == first.log.head.fence + 1
        assert second.log.head.recoveries == 1

    asyncio.run(main())


def test_a_late_writer_can_not_mix_its_lines_into_its_successors():
    """Lines that an earlier owner writes through another journal don't count."""

    async def main():
        store = FiveMethodStore()
        old, new = KeyValueJournal(store), KeyValueJournal(store)
        lost = await old.claim(claim_of())
        await add(old, lost, 2, "two")
        taken = await new.claim(claim_of(owner="second"))
        await add(old, lost, 3, "late", "later", "latest")
        await add(new, taken, 3, "three", owner="second")
        await add(old, lost, 6, "very late")
        expected = ["begin", "two", "three"]
        assert await all_lines(KeyValueJournal(store)) == expected
        with pytest.raises(StoreError, match="something else"):
            await add(old, lost, 7, "end", head=HeadChange(status="finished"))
        with pytest.raises(LeaseLostError):
            await add(old, lost, 7, "end", head=HeadChange(status="finished"))
        third = KeyValueJournal(store)
        await third.claim(claim_of(owner="third"))
        assert await all_lines(third) == expected
        assert await all_lines(KeyValueJournal(store)) == expected

    asyncio.run(main())


def test_a_foreign_error_arrives_as_a_store_error():
    """Whatever the user's store raises is the cause of a ``StoreError``; a cancel stays one."""

    async def main():
        flaky, journal, claimed = await filled(3)
        flaky.fail("set", error=OSError("disk full"))
        with pytest.raises(StoreError) as caught:
            await add(journal, claimed, 4, "x")
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.operation == "set"
        flaky.fail("get", error=asyncio.CancelledError)
        with pytest.raises(asyncio.CancelledError):
            await journal.read("run")
        await add(journal, claimed, 4, "x")

    asyncio.run(main())


def test_a_failing_run_does_not_stop_the_others():
    """When the store fails for one run of a batch the other runs' lines are written."""

    async def main():
        flaky = FlakyStore(FiveMethodStore())
        journal = KeyValueJournal(flaky)
        claims = [await journal.claim(claim_of(f"run-{n}")) for n in range(5)]
        batch = [
            Append(f"run-{n}", "first", c.log.head.fence, 2, ("x",)) for n, c in enumerate(claims)
        ]
        flaky.fail("set", skip=1)
        with pytest.raises(StoreError):
            await journal.append(batch)
        counts = [len(await all_lines(journal, f"run-{n}")) for n in range(5)]
        assert sorted(counts) == [1, 2, 2, 2, 2]
        assert list(await journal.append(batch)) == [0] * 5
        assert [len(await all_lines(journal, f"run-{n}")) for n in range(5)] == [2] * 5

    asyncio.run(main())


def test_prefixes_never_see_each_other():
    """Two journals on one store with different prefixes are apart, whatever the prefixes."""

    async def main():
        store = FiveMethodStore()
        journals = [KeyValueJournal(store, prefix=p) for p in ("a", "a:h", "a:h:x", "*", "a*", "%")]
        for number, journal in enumerate(journals):
            claimed = await journal.claim(claim_of("x", begin=(f"{number}",)))
            await add(journal, claimed, 2, f"line {number}")
        for number, journal in enumerate(journals):
            assert len(await journal.list_runs(ListQuery())) == 1
            assert await all_lines(journal, "x") == [f"{number}", f"line {number}"]
        assert await journals[0].delete_run("x", held=True)
        assert not any(key.startswith("a:") for key in store.data)
        assert len(await journals[1].list_runs(ListQuery())) == 1
        with pytest.raises(ValueError, match="prefix"):
            KeyValueJournal(store, prefix="")

    asyncio.run(main())


def test_deleting_leaves_nothing():
    """A deleted, removed or purged run leaves no key behind, nor does an interrupted deletion."""

    async def main():
        with ManualClock() as clock:
            store = FiveMethodStore()
            flaky = FlakyStore(store)
            journal = KeyValueJournal(flaky)
            for run_id in ("deleted", "removed", "expired", "interrupted"):
                claimed = await journal.claim(claim_of(run_id))
                for number in range(2, 10):
                    await add(journal, claimed, number, "x")
                await journal.deposit(run_id, "k", "v")
                expires = {"removed": 0, "expired": 5}.get(run_id)
                change = HeadChange(status="finished", release=True, expires_in=expires)
                await add(journal, claimed, 10, head=change)
            await journal.delete_run("deleted")
            flaky.fail("delete", skip=1, times=None)
            await journal.delete_run("interrupted")
            flaky.heal()
            await clock.advance(10)
            fresh = KeyValueJournal(store)
            while await fresh.purge(3):
                pass
            assert store.data == {}

    asyncio.run(main())


def test_a_new_epoch_deletes_the_old_lines():
    """After a new epoch the old lines' keys go."""

    async def main():
        flaky, journal, claimed = await filled(100)
        await add(journal, claimed, 101, "new", epoch=True)
        await journal.settle()
        assert [key for key in flaky.wrapped.data if ":l:" in key] == []
        assert await all_lines(journal) == ["new"]

    asyncio.run(main())


def test_one_journal_serves_several_loops_and_threads():
    """Tasks of several event loops in several threads take turns, and lose nothing."""
    store = FiveMethodStore()
    journal = KeyValueJournal(store)
    claimed = asyncio.run(journal.claim(claim_of()))
    numbers, failures = iter(range(2, 10_000)), []
    turn = threading.Lock()

    async def work():
        for _ in range(40):
            await asyncio.gather(*(journal.deposit("run", f"{n}", "v") for n in range(5)))
            with turn:
                pass
            await journal.read("run")

    def thread():
        try:
            asyncio.run(work())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=thread) for _ in range(4)]
    for each in threads:
        each.start()

    async def appends():
        for _ in range(300):
            await add(journal, claimed, next(numbers), "x")

    asyncio.run(appends())
    for each in threads:
        each.join()

    assert failures == []
    assert len(asyncio.run(all_lines(journal))) == 301


def test_a_loop_that_was_closed_in_the_middle_blocks_nobody():
    """A run that a closed loop was working on can be used from the next one."""
    flaky = FlakyStore(FiveMethodStore())
    journal = KeyValueJournal(flaky)
    claimed = asyncio.run(journal.claim(claim_of()))
    gate = flaky.hold("set")

    async def stuck():
        task = asyncio.ensure_future(add(journal, claimed, 2, "two"))
        await gate.reached.wait()
        task.cancel()

    asyncio.run(stuck())

    assert asyncio.run(add(journal, claimed, 2, "two")) == 0


def test_a_cancelled_append_is_finished_before_the_next():
    """The write of a cancelled append doesn't land behind later ones."""

    async def main():
        flaky, journal, claimed = await filled(1)
        gate = flaky.hold("set")
        task = asyncio.ensure_future(add(journal, claimed, 2, "two"))
        await gate.reached.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        other = asyncio.ensure_future(add(journal, claimed, 2, "two"))
        await asyncio.sleep(0.01)
        assert not other.done()
        gate.set()
        await other
        assert flaky.calls["set"] == 2  # creation, and the append: the second one found it there

    asyncio.run(main())


def test_merges_rewrite_each_line_a_few_times():
    """Ten thousand parts end in few, and no part is rewritten more than its level says."""
    parts = []
    moved = 0
    for number in range(1, 10_001):
        part = Part(number, number, 0, 1)
        part.size = 600
        parts.append(part)
        while (due := next_merge(parts)) is not None:
            group, level = due
            assert all(each.level < level for each in group)
            for pack in packed(group):
                merged = Part(pack[0].first, pack[-1].last, level, 1)
                merged.size = sum(each.size for each in pack)
                at = parts.index(pack[0])
                parts[at : at + len(pack)] = [merged]
                moved += merged.size
                assert merged.size <= LARGEST

    assert [part.first for part in parts[1:]] == [part.last + 1 for part in parts[:-1]]
    assert len(parts) < 140
    assert moved < 3 * 10_000 * 600


def test_components_of_keys_are_told_apart():
    """Quoting keeps separators and wildcards out, and different texts different."""
    texts = [
        "a",
        "a:b",
        "a%3Ab",
        "*",
        "%2A",
        "a*",
        "[a]",
        "?",
        "\\",
        "/",
        "..",
        "",
        "\0",
        "😀",
        "é",
    ]

    assert len({quoted(text) for text in texts}) == len(texts)
    assert not any(set(quoted(text)) & set(":*[]?\\/") for text in texts)


def test_it_works_on_a_store_whose_patterns_match_more():
    """A store that takes other characters for wildcards, too, shows no other run's keys."""

    class Loose(FiveMethodStore):
        async def keys(self, pattern):
            return sorted(self.data)

    async def main():
        journal = KeyValueJournal(Loose())
        for run_id in ("a", "b"):
            claimed = await journal.claim(claim_of(run_id, begin=(run_id,)))
            await add(journal, claimed, 2, run_id * 2)
            await journal.deposit(run_id, "k", run_id)
        fresh = KeyValueJournal(journal._gate.store)
        assert await all_lines(fresh, "a") == ["a", "aa"]
        assert await fresh.delete_run("a", held=True)
        assert (await fresh.read("b")).inbox == {"k": "b"}

    asyncio.run(main())


def test_it_says_what_it_is():
    """The guarantees name the limits, and the repr the store."""
    journal = KeyValueJournal(MemoryStore())

    assert journal.guarantees.leases == "process"
    assert journal.guarantees.durable
    assert "process" in journal.guarantees.note
    assert repr(journal) == "KeyValueJournal(MemoryStore())"

"""The conformance checks of ``Journal`` about the log and the inbox, and helpers for all."""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

from durable._errors import LeaseLostError, StoreError
from durable._testing_site import ODD_KEYS, Check, Site, expect, expect_equal
from durable.store import Append, Claim, Claimed, HeadChange, Journal, RunLog

JournalSite: TypeAlias = Site[Journal]

#: Unfinished statuses, from which a run goes on.
OPEN = frozenset({"pending", "running", "paused", "failed"})
ENDED = frozenset({"finished", "cancelled"})


def claim_of(run_id: str = "run", owner: str = "first", **changes: Any) -> Claim:
    """Return an ordinary claim with ``changes``."""
    fields: dict[str, Any] = {"name": "job", "lease": 30.0, "statuses": OPEN, "begin": ("begin",)}
    return Claim(run_id=run_id, owner=owner, **{**fields, **changes})


async def held(
    journal: Journal, run_id: str = "run", owner: str = "first", **changes: Any
) -> Claimed:
    """Claim a run that nobody holds and return the grant."""
    claimed = await journal.claim(claim_of(run_id, owner, **changes))
    if claimed is None or not claimed.granted:
        raise AssertionError(f"a claim of {run_id[:20]!r}, which nobody holds, was not granted")
    return claimed


def adding(
    claimed: Claimed, first: int, *lines: str, owner: str = "first", **changes: Any
) -> Append:
    """Return an append of ``lines`` by the holder of ``claimed``."""
    head = claimed.log.head
    return Append(head.run_id, owner, head.fence, first, lines, **changes)


async def add(
    journal: Journal, claimed: Claimed, first: int, *lines: str, owner: str = "first", **other: Any
) -> int:
    """Append ``lines`` and return the inbox count; an ``AssertionError`` if it's refused."""
    (result,) = await journal.append([adding(claimed, first, *lines, owner=owner, **other)])
    if not isinstance(result, int):
        raise AssertionError(f"an append by the owner was refused: {result!r}") from result
    return result


async def refused(journal: Journal, member: Append, error: type[Exception], promise: str) -> None:
    """Check that ``member`` is refused with ``error``."""
    (result,) = await journal.append([member])
    expect(isinstance(result, error), f"{promise}: expected {error.__name__}, got {result!r}")


async def log_of(journal: Journal, run_id: str = "run", log: RunLog | None = None) -> list[str]:
    """Return all lines of a run, by pages, beginning with ``log`` if given."""
    page = await journal.read(run_id) if log is None else log
    lines: list[str] = []
    position = None
    while page is not None:
        if page.lines and position is not None:
            expect_equal(page.first, position, "a page begins where the last one ended")
        lines += page.lines
        position = page.first + len(page.lines)
        expect(bool(page.lines) or not page.more, "a page that isn't the last one has lines")
        expect(len(lines) < 100_000, "a log comes to an end")
        if not page.more:
            return lines
        page = await journal.read(run_id, after=position - 1)
    raise AssertionError(f"the run {run_id[:20]!r} is gone")


async def appends_are_kept(site: JournalSite) -> None:
    """What the owner appends is in the log, in order, for every later reader."""
    journal = site.store
    claimed = await held(journal)
    expect_equal(await add(journal, claimed, 2, "two"), 0, "an append gives the inbox count")
    await add(journal, claimed, 3, "three", "four", "five")
    await add(journal, claimed, 6)
    await add(journal, claimed, 6, "")
    expected = ["begin", "two", "three", "four", "five", ""]
    expect_equal(await log_of(journal), expected, "the log has what was appended")
    expect_equal(await log_of(await site.second()), expected, "so a second client reads it")
    log = await journal.read("run")
    expect(log is not None and log.head.sequence == 6, "the head's sequence counts the lines")


async def batches_keep_order(site: JournalSite) -> None:
    """Members of one run in a batch are applied in order, each answered in its own place."""
    journal = site.store
    one, two = await held(journal, "one"), await held(journal, "two")
    await journal.deposit("two", "key", "1")
    batch = [
        adding(one, 2, "a"),
        adding(two, 2, "A"),
        adding(one, 3, "b", "c"),
        adding(one, 5, "d", head=HeadChange(version=3)),
        adding(two, 3, "B"),
        adding(one, 6, "e"),
    ]
    expect_equal(list(await journal.append(batch)), [0, 1, 0, 0, 1, 0], "answers are in order")
    expect_equal(await log_of(journal, "one"), ["begin", *"abcde"], "one run's members in order")
    expect_equal(await log_of(journal, "two"), ["begin", *"AB"], "the other run's in order")
    expect_equal(list(await journal.append([])), [], "an empty batch has no answers")


async def strangers_are_refused(site: JournalSite) -> None:
    """An append by anyone but the present owner is a ``LeaseLostError`` and changes nothing."""
    journal = site.store
    claimed = await held(journal)
    fence = claimed.log.head.fence
    finish = HeadChange(status="finished", release=True)
    for owner, number in (("other", fence), ("first", fence - 1), ("first", fence + 1)):
        member = Append("run", owner, number, 2, ("x",), finish)
        await refused(journal, member, LeaseLostError, f"owner {owner}, fence off {number - fence}")
    unknown = Append("unknown", "first", fence, 1, ("x",))
    await refused(journal, unknown, LeaseLostError, "an append to a run that isn't recorded")
    expect_equal(await journal.read("unknown"), None, "a refused append creates no run")
    log = await journal.read("run")
    expect(log is not None and log.head.status == "running", "a refused append changes no head")
    expect_equal(await log_of(journal), ["begin"], "a refused append adds no line")


async def losers_are_fenced_off(site: JournalSite) -> None:
    """After a takeover the earlier owner's appends are refused; others in the batch are not."""
    journal = site.store
    lost = await held(journal, lease=site.short)
    other = await held(journal, "other")
    await add(journal, lost, 2, "two")
    await site.lapse()
    second = await site.second()
    taken = await held(second, owner="second")
    result = await journal.append([adding(lost, 3, "late"), adding(other, 2, "fine")])
    expect(isinstance(result[0], LeaseLostError), f"the loser is refused, got {result[0]!r}")
    expect_equal(result[1], 0, "a refused member doesn't affect the others of its batch")
    await add(second, taken, 3, "three", owner="second")
    await refused(journal, adding(lost, 4, "late"), LeaseLostError, "the loser stays refused")
    repeated = adding(lost, 2, "two")
    await refused(journal, repeated, LeaseLostError, "even what it wrote in time isn't repeated")
    expect_equal(await log_of(journal), ["begin", "two", "three"], "the log is the new owner's")
    expect_equal(await log_of(journal, "other"), ["begin", "fine"], "the other run goes on")


async def a_lapsed_lease_still_writes(site: JournalSite) -> None:
    """A lease that lapsed but that nobody took still lets its owner append."""
    claimed = await held(site.store, lease=site.short)
    await site.lapse()
    await add(site.store, claimed, 2, "two")
    expect_equal(await log_of(site.store), ["begin", "two"], "a lapsed, untaken owner may append")


async def repeats_are_recognised(site: JournalSite) -> None:
    """An append that is sent again after a lost reply is accepted, and stands once."""
    journal = site.store
    claimed = await held(journal)
    await add(journal, claimed, 2, "two")
    await add(journal, claimed, 2, "two")
    await add(journal, claimed, 3, "three", "four")
    await add(journal, claimed, 3, "three", "four")
    await add(journal, claimed, 2, "two")
    await add(journal, claimed, 4, "four")
    await add(journal, claimed, 5, "five")
    end = HeadChange(status="paused", wake_at=5.0)
    await add(journal, claimed, 6, "six", head=end)
    await add(journal, claimed, 6, "six", head=end)
    expected = ["begin", "two", "three", "four", "five", "six"]
    expect_equal(await log_of(journal), expected, "what is repeated stands once")
    log = await journal.read("run")
    expect(log is not None and log.head.status == "paused", "its head change holds")
    expect(log is not None and log.head.sequence == 6, "the sequence counts it once")


async def wrong_numbers_are_refused(site: JournalSite) -> None:
    """Other lines under numbers that are taken, or a gap, are a ``StoreError``; nothing changes."""
    journal = site.store
    claimed = await held(journal)
    await add(journal, claimed, 2, "two", "three")
    end = HeadChange(status="finished")
    for first, lines, what in (
        (2, ("other",), "other content under a taken number"),
        (3, ("three", "four"), "lines of which only some are on record"),
        (2, ("two", "other"), "lines of which only some are the same"),
        (1, ("other",), "other content in place of the first line"),
        (5, ("five",), "a gap"),
        (50, ("fifty",), "a wide gap"),
        (0, ("zero",), "the number 0"),
        (-1, ("minus one",), "a negative number"),
    ):
        member = adding(claimed, first, *lines, head=end)
        await refused(journal, member, StoreError, f"{what} is refused")
    other = adding(claimed, 2, "other", epoch=True)
    await refused(journal, other, StoreError, "a new epoch over a taken number is refused")
    expect_equal(await log_of(journal), ["begin", "two", "three"], "the log stays as it was")
    log = await journal.read("run")
    expect(log is not None and log.head.status == "running", "a refused append changes no head")
    mixed = [adding(claimed, 9, "x"), adding(claimed, 4, "four")]
    result = await journal.append(mixed)
    expect(isinstance(result[0], StoreError), "a gap is refused inside a batch")
    expect_equal(result[1], 0, "the rest of the batch stands")


async def epochs_begin_anew(site: JournalSite) -> None:
    """After an epoch append nothing of the earlier lines is ever given again."""
    journal = site.store
    claimed = await held(journal)
    for number in range(2, 150):
        await add(journal, claimed, number, f"old {number}")
    await journal.deposit("run", "answer", "1")
    await add(journal, claimed, 150, "new", "too", epoch=True, head=HeadChange(version=2))
    await add(journal, claimed, 150, "new", "too", epoch=True, head=HeadChange(version=2))
    for reader in (journal, await site.second()):
        log = await reader.read("run")
        expect(log is not None and log.first == 150, "the log begins with the epoch's number")
        expect_equal(await log_of(reader), ["new", "too"], "nothing older is given")
        expect(log is not None and log.head.version == 2, "an epoch changes the head with it")
        expect(log is not None and log.inbox == {"answer": "1"}, "an epoch leaves the inbox")
        log = await reader.read("run", after=20)
        expect(log is not None and log.first == 150, "reading after an old number starts there")
    await add(journal, claimed, 152, "more")
    again = await journal.claim(claim_of(owner="first"))
    expect_equal(
        await log_of(journal, log=again.log if again else None),
        ["new", "too", "more"],
        "a claim gives nothing older either",
    )


async def reading_goes_on(site: JournalSite) -> None:
    """``read`` gives the lines beyond ``after``; of an absent run, None."""
    journal = site.store
    expect_equal(await journal.read("run"), None, "read of an absent run is None")
    claimed = await held(journal, begin=("1", "2"))
    await add(journal, claimed, 3, "3", "4", "5")
    await add(journal, claimed, 6, "6")
    for after in range(7):
        log = await journal.read("run", after=after)
        expect(log is not None, "the run is there")
        if log is not None:
            expect_equal(log.first, after + 1, f"read(after={after}) begins behind it")
            expect_equal(list(log.lines), list("123456"[after:]), f"read(after={after}) lines")
    log = await journal.read("run", after=40)
    expect(log is not None and not log.lines and not log.more, "beyond the end there is no line")


async def long_logs_come_by_pages(site: JournalSite) -> None:
    """A log of 3,000 lines comes back whole, page by page, from ``read`` and from ``claim``."""
    journal = site.store
    claimed = await held(journal)
    expected = ["begin"]
    while len(expected) < 3_000:
        lines = [f"line {len(expected) + each}" for each in range(1, 1 + len(expected) % 40)]
        await add(journal, claimed, len(expected) + 1, *lines)
        expected += lines
    expect_equal(await log_of(journal), expected, "reading by pages gives every line once")
    second = await site.second()
    again = await second.claim(claim_of())
    log = again.log if again else None
    expect_equal(await log_of(second, log=log), expected, "so does claiming")
    for after in (1, 1000, 1001, 2998):
        log = await journal.read("run", after=after)
        expect_equal(await log_of(journal, log=log), expected[after:], f"and after {after}")


async def large_lines_fit(site: JournalSite) -> None:
    """Lines of a megabyte come back as they were, in the log's beginning, middle and end."""
    journal = site.store
    expected = ["b" * 1_000_000, "x" * 1_000_000, "small", "😀" * 250_000, "e" * 1_000_000]
    claimed = await held(journal, begin=(expected[0],))
    for number, line in enumerate(expected[1:-1], 2):
        await add(journal, claimed, number, line)
    end = HeadChange(status="finished", release=True)
    await add(journal, claimed, 5, expected[-1], head=end)
    for reader in (journal, await site.second()):
        expect_equal(await log_of(reader), expected, "large lines come back as they were")


async def lines_are_any_text(site: JournalSite) -> None:
    """A line is any text without line breaks; what only looks like one in Unicode is kept."""
    lines = ["é", "e\u0301", "😀", "\u2028", "a\u2029b", "\x85", "\ufeffx", "\U0010ffff", "\x7f"]
    lines += ["", " ", " x ", "\\n", "%s", "{}", "'", '"', '{"a":[1,"\\u0000"]}', "a,b;c|d"]
    claimed = await held(site.store, begin=tuple(lines))
    await add(site.store, claimed, len(lines) + 1, *lines)
    for number, line in enumerate(lines, 2 * len(lines) + 1):
        await add(site.store, claimed, number, line)
    expect_equal(await log_of(site.store), lines * 3, "lines come back as they were")


async def the_first_deposit_wins(site: JournalSite) -> None:
    """The first value under a key stands; the same one again is accepted, another is not."""
    journal = site.store
    expect_equal(await journal.deposit("run", "k", "1"), None, "there is no run to deposit in")
    claimed = await held(journal)
    second = await site.second()
    for depositor in (journal, second):
        found = await depositor.deposit("run", "k", "1")
        expect(found is not None and found.accepted, "a value, or the same again, is accepted")
        expect(found is not None and found.value == "1", "the value stands")
        expect(found is not None and found.status == "running", "the run's status is told")
    found = await second.deposit("run", "k", "2")
    expect(found is not None and not found.accepted, "another value is not accepted")
    expect(found is not None and found.value == "1", "the first value stands and is told")
    await second.deposit("run", "K", "")
    log = await journal.read("run")
    expect_equal(log.inbox if log else None, {"k": "1", "K": ""}, "the inbox has what stands")
    expect_equal(log.head.inbox if log else None, 2, "the head counts the inbox's entries")
    expect_equal(await add(journal, claimed, 2, "two"), 2, "an append tells the count")
    again = await journal.claim(claim_of())
    expect(again is not None and len(again.log.inbox) == 2, "a claim gives the inbox")
    expect_equal(await log_of(journal), ["begin", "two"], "deposits are not in the log")


async def one_of_many_deposits_wins(site: JournalSite) -> None:
    """Of deposits at once under one key exactly one is accepted, and all are told which."""
    await held(site.store)
    clients = (site.store, await site.second())
    calls = (clients[n % 2].deposit("run", "k", f"value {n}") for n in range(20))
    found = [each for each in await asyncio.gather(*calls) if each is not None]
    winners = [each for each in found if each.accepted]
    expect_equal(len(winners), 1, "exactly one deposit wins")
    expect_equal({each.value for each in found}, {winners[0].value}, "all see the winner's value")


async def ended_runs_take_nothing(site: JournalSite) -> None:
    """A run that has ended takes no deposits; one that waits or has failed does."""
    journal = site.store
    for status in sorted(OPEN | ENDED):
        claimed = await held(journal, status)
        await journal.deposit(status, "before", "1")
        change = HeadChange(status=status, release=True)  # type: ignore[arg-type]
        await add(journal, claimed, 2, head=change)
        found = await journal.deposit(status, "k", "1")
        is_open = status in OPEN
        expect(found is not None and found.status == status, f"the status {status} is told")
        expect(
            found is not None and found.accepted == is_open and (found.value == "1") == is_open,
            f"a {status} run {'takes' if is_open else 'refuses'} deposits",
        )
        log = await journal.read(status)
        expect(log is not None and ("k" in log.inbox) == is_open, "nothing refused is stored")


async def inbox_keys_are_apart(site: JournalSite) -> None:
    """Inbox keys are any text, and those of one run are never those of another."""
    journal = site.store
    for run_id in ("a", "a:b", "a:b:c", "a*", "a%"):
        await held(journal, run_id)
        for key in ("c", "b:c", "b:c:d", "*", "%2A"):
            await journal.deposit(run_id, key, f"{run_id} {key}")
    for run_id in ("a", "a:b", "a:b:c", "a*", "a%"):
        log = await journal.read(run_id)
        expected = {key: f"{run_id} {key}" for key in ("c", "b:c", "b:c:d", "*", "%2A")}
        expect_equal(log.inbox if log else None, expected, f"the inbox of {run_id!r} is its own")
    await held(journal, "odd")
    for key in ODD_KEYS:
        await journal.deposit("odd", key, f"😀 {key[:5]!r}")
    log = await journal.read("odd")
    expected = {key: f"😀 {key[:5]!r}" for key in ODD_KEYS}
    expect(log is not None and log.inbox == expected, "odd inbox keys come back as they were")


async def cancelled_appends_are_whole(site: JournalSite) -> None:
    """A cancelled append is there or not, never in part, and can be sent again."""
    journal = site.store
    claimed = await held(journal)
    expected, number = ["begin"], 2
    for pauses in range(8):
        lines = [f"{pauses}-{each}" for each in range(3)]
        task = asyncio.ensure_future(journal.append([adding(claimed, number, *lines)]))
        for _ in range(pauses):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        found = await log_of(journal)
        expect(found in (expected, expected + lines), "a cancelled append is whole or absent")
        await add(journal, claimed, number, *lines)
        expected += lines
        number += 3
        expect_equal(await log_of(journal), expected, "sent again, it stands once")


async def runs_do_not_wait_for_each_other(site: JournalSite) -> None:
    """Fifty runs may append twenty times each at once, through two clients."""
    clients = (site.store, await site.second())

    async def work(number: int) -> None:
        journal, run_id = clients[number % 2], f"run-{number}"
        claimed = await held(journal, run_id)
        for step in range(2, 22):
            await add(journal, claimed, step, f"{number} {step}")

    await asyncio.gather(*(work(number) for number in range(50)))
    for number in range(50):
        expected = ["begin", *(f"{number} {step}" for step in range(2, 22))]
        expect_equal(await log_of(site.store, f"run-{number}"), expected, "each log is its own")


LOG_CHECKS: tuple[Check[Journal], ...] = tuple(
    Check(function)
    for function in (
        appends_are_kept,
        batches_keep_order,
        strangers_are_refused,
        losers_are_fenced_off,
        a_lapsed_lease_still_writes,
        repeats_are_recognised,
        wrong_numbers_are_refused,
        epochs_begin_anew,
        reading_goes_on,
        long_logs_come_by_pages,
        large_lines_fit,
        lines_are_any_text,
        the_first_deposit_wins,
        one_of_many_deposits_wins,
        ended_runs_take_nothing,
        inbox_keys_are_apart,
        cancelled_appends_are_whole,
        runs_do_not_wait_for_each_other,
    )
)

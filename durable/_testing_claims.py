"""The conformance checks of ``Journal`` about claims and leases."""

from __future__ import annotations

import asyncio
from typing import Any

from durable._errors import LeaseLostError
from durable._testing_log import ENDED, OPEN, JournalSite, add, adding, claim_of, held, log_of
from durable._testing_site import Check, expect, expect_equal, expect_raises
from durable.store import Claimed, Head, HeadChange, Journal, ListQuery


async def head_of(journal: Journal, run_id: str = "run") -> Head:
    """Return the run's head; an ``AssertionError`` if it's gone."""
    log = await journal.read(run_id)
    if log is None:
        raise AssertionError(f"the run {run_id[:20]!r} is gone")
    return log.head


async def release(
    journal: Journal, claimed: Claimed, first: int = 2, owner: str = "first", **change: object
) -> None:
    """Give the lease back in an append that makes the run ``paused`` or as ``change`` says."""
    fields = {"status": "paused", **change}
    head = HeadChange(release=True, **fields)  # type: ignore[arg-type]
    await add(journal, claimed, first, owner=owner, head=head)


async def ids(journal: Journal, **query: object) -> list[str]:
    """Return the ids of the runs that the query lists."""
    found = await journal.list_runs(ListQuery(**query))  # type: ignore[arg-type]
    return [head.run_id for head in found]


async def claims_create(site: JournalSite) -> None:
    """A claim of a run that isn't recorded creates it, held and running, with its first lines."""
    claimed = await held(site.store, begin=("b1", "b2"), version=3)
    head = claimed.log.head
    expect_equal(
        (head.run_id, head.name, head.status, head.version), ("run", "job", "running", 3), "head"
    )
    expect_equal((head.attempts, head.recoveries, head.sequence), (1, 0, 2), "its counts")
    expect_equal((head.inbox, head.error, head.wake_at, head.expires_at), (0, "", None, None), "")
    expect(0 < head.held <= 30, f"a lease of 30 s was granted, the head says {head.held}")
    expect_equal(head.created_at, head.updated_at, "created and changed at one time")
    expect(abs(claimed.now - head.created_at) < 5, "the store's time is told")
    expect_equal((claimed.before, claimed.took_over), (None, False), "there was no run before")
    expect_equal((list(claimed.log.lines), claimed.log.first), (["b1", "b2"], 1), "the lines")
    expect_equal(await log_of(await site.second()), ["b1", "b2"], "a second client reads them")


async def claims_without_begin_create_nothing(site: JournalSite) -> None:
    """A claim without first lines of a run that isn't recorded is None and creates nothing."""
    expect_equal(await site.store.claim(claim_of(begin=())), None, "there is nothing to claim")
    expect_equal(await site.store.read("run"), None, "nothing was created")
    expect_equal(await ids(site.store), [], "nothing is listed")
    await held(site.store)
    await release(site.store, await held(site.store))
    again = await held(site.store, owner="second", begin=())
    expect_equal(list(again.log.lines), ["begin"], "an existing run needs no first lines")


async def held_runs_are_refused(site: JournalSite) -> None:
    """While somebody holds a run no other claim is granted, and nothing changes."""
    first = await held(site.store)
    await add(site.store, first, 2, "two")
    second = await site.second()
    variants: list[dict[str, Any]] = [
        {},
        {"restart": OPEN | ENDED},
        {"begin": ()},
        {"reset": True, "version": 9},
    ]
    for changes in variants:
        other = await second.claim(claim_of(owner="second", **changes))
        expect(other is not None and not other.granted, f"a held run is refused ({changes})")
        if other is not None:
            expect_equal(other.before, "running", "the refusal tells the status")
            expect_equal(list(other.log.lines), ["begin", "two"], "and the run as it is")
            expect(not other.took_over and other.log.head.held > 0, "nobody took it over")
            expect_equal(other.log.head.fence, first.log.head.fence, "the fence stays")
            head = other.log.head
            expect_equal((head.attempts, head.version), (1, 1), "the counts too")
    await add(site.store, first, 3, "three")


async def one_of_many_claims_wins(site: JournalSite) -> None:
    """Of claims at once exactly one is granted, to create a run and to take one over."""
    clients = (site.store, await site.second())
    for expected in (1, 2):
        calls = (
            clients[n % 2].claim(claim_of(owner=f"{expected}-{n}", lease=site.short))
            for n in range(20)
        )
        answers = [each for each in await asyncio.gather(*calls) if each is not None]
        expect_equal(sum(each.granted for each in answers), 1, "exactly one claim is granted")
        expect_equal((await head_of(site.store)).attempts, expected, "one attempt is counted")
        expect_equal(await log_of(site.store), ["begin"], "the first lines stand once")
        await site.lapse()


async def other_names_are_refused(site: JournalSite) -> None:
    """A claim under another function's name is not granted, whatever else it says."""
    await release(site.store, await held(site.store))
    variants: list[dict[str, Any]] = [{}, {"restart": OPEN}, {"unheld": True}]
    for changes in variants:
        other = await site.store.claim(claim_of(owner="second", name="Job", **changes))
        expect(other is not None and not other.granted, f"another name is refused ({changes})")
        expect(other is not None and other.log.head.name == "job", "the recorded name is told")
        expect(other is not None and other.before == "paused", "and the status")


async def statuses_decide(site: JournalSite) -> None:
    """A claim is granted for the statuses that it names, and for no other."""
    journal = site.store
    for status in sorted(OPEN | ENDED):
        claimed = await held(journal, status, begin=(status,))
        await release(journal, claimed, status=status)
        others = (OPEN | ENDED) - {status}
        other = await journal.claim(claim_of(status, "second", statuses=others))
        expect(other is not None and not other.granted, f"{status} isn't among the statuses")
        expect(other is not None and other.before == status, f"{status} is told")
        empty = claim_of(status, "third", statuses=others, begin=(), restart=frozenset({status}))
        other = await journal.claim(empty)
        expect(other is not None and not other.granted, "a restart without lines isn't granted")
        last = await held(journal, status, "fourth", statuses=frozenset({status}))
        expect_equal(last.before, status, "a granted claim tells the status before")
        expect_equal(last.log.head.status, "running", "a claimed run is running")
        expect_equal(list(last.log.lines), [status], "a claim adds no lines to a recorded run")


async def claims_are_repeatable(site: JournalSite) -> None:
    """The present owner's claim, sent again, is granted as it was; nothing changes."""
    first = await held(site.store)
    await add(site.store, first, 2, "two", head=HeadChange(version=2))
    variants: list[dict[str, Any]] = [{}, {"restart": OPEN}, {"begin": ("other",), "reset": True}]
    for changes in variants:
        again = await site.store.claim(claim_of(**changes))
        expect(again is not None and again.granted, f"the owner's claim is granted ({changes})")
        if again is not None:
            head = again.log.head
            expect_equal(head.fence, first.log.head.fence, "the fence stays")
            expect_equal((head.attempts, head.version), (1, 2), "the counts stay")
            expect_equal(list(again.log.lines), ["begin", "two"], "the log stays")
    await add(site.store, first, 3, "three")


async def fences_grow(site: JournalSite) -> None:
    """Each claim raises the fence and the attempts; a lease given back is no recovery."""
    fence = 0
    for number in range(1, 6):
        claimed = await held(site.store, owner=f"owner-{number}")
        head = claimed.log.head
        expect(head.fence > fence, f"the fence grows: {fence}, {head.fence}")
        expect_equal((head.attempts, head.recoveries), (number, 0), "attempts and recoveries")
        expect(not claimed.took_over, "a lease that was given back isn't taken over")
        await release(site.store, claimed, owner=f"owner-{number}", error="e", wake_at=9.0)
        log = await site.store.read("run")
        expect(log is not None and log.head.held == 0, "a run that was released isn't held")
        fence = head.fence
    claimed = await held(site.store)
    expect_equal((claimed.log.head.error, claimed.log.head.wake_at), ("", None), "a claim clears")


async def fences_outlive_runs(site: JournalSite) -> None:
    """A run that is deleted and recorded anew has a higher fence, and nothing of the old one."""
    journal = site.store
    first = await held(journal)
    await add(journal, first, 2, "old", "older")
    await journal.deposit("run", "k", "1")
    await journal.delete_run("run", held=True)
    await asyncio.sleep(0.01)
    await site.lapse(0.1)
    second = await held(journal, owner="second", begin=("new",))
    expect(second.log.head.fence > first.log.head.fence, "the fence outlives the deletion")
    expect_equal((second.before, second.log.head.attempts), (None, 1), "it is a new run")
    expect_equal(
        (second.log.inbox, second.log.head.inbox), (dict[str, str](), 0), "its inbox is empty"
    )
    await refused_everywhere(journal, first)
    await add(journal, second, 2, "two", owner="second")
    expect_equal(await log_of(journal), ["new", "two"], "nothing of the old log comes back")
    expect_equal(await log_of(await site.second()), ["new", "two"], "for a second client neither")


async def refused_everywhere(journal: Journal, lost: Claimed) -> None:
    """Check that the holder of ``lost`` can neither append nor renew."""
    head = lost.log.head
    (result,) = await journal.append([adding(lost, head.sequence + 1, "late")])
    expect(isinstance(result, LeaseLostError), f"the earlier owner can't append: {result!r}")
    call = journal.renew(head.run_id, "first", head.fence, 30)
    await expect_raises(LeaseLostError, call, "the earlier owner can't renew")


async def lapsed_leases_are_taken(site: JournalSite) -> None:
    """A lapsed lease can be taken; that is a recovery, which ``reset`` sets back to 0."""
    journal = site.store
    first = await held(journal, lease=site.short)
    await site.lapse()
    expect_equal((await head_of(journal)).held, 0, "a lapsed lease isn't held")
    second = await held(await site.second(), owner="second", lease=site.short)
    expect(second.took_over, "a lapsed lease is taken over")
    expect_equal(second.before, "running", "the status before is told")
    head = second.log.head
    expect_equal((head.attempts, head.recoveries), (2, 1), "an attempt and a recovery")
    await refused_everywhere(journal, first)
    await site.lapse()
    third = await held(journal, owner="third", lease=site.short)
    expect_equal(third.log.head.recoveries, 2, "recoveries add up")
    await site.lapse()
    fourth = await held(journal, owner="fourth", reset=True)
    expect_equal((fourth.took_over, fourth.log.head.recoveries), (True, 0), "reset counts anew")
    expect_equal(fourth.log.head.attempts, 4, "reset leaves the attempts")


async def restarts_begin_anew(site: JournalSite) -> None:
    """A claim of a run in a ``restart`` status begins a new epoch, of which alone is read."""
    journal = site.store
    first = await held(journal, lease=site.short)
    await add(journal, first, 2, *(f"old {number}" for number in range(99)))
    await site.lapse()
    second = await held(journal, owner="second")
    await add(journal, second, 101, "end", owner="second")
    await release(journal, second, 102, owner="second", status="finished", error="e")
    third = await held(
        journal,
        owner="third",
        begin=("new", "too"),
        statuses=frozenset(),
        restart=ENDED,
        version=7,
    )
    head = third.log.head
    expect_equal((third.before, head.status, head.version), ("finished", "running", 7), "head")
    expect_equal((head.attempts, head.recoveries, head.error), (1, 0, ""), "counts begin anew")
    expect(head.fence > second.log.head.fence, "the fence goes on growing")
    expect_equal((list(third.log.lines), third.log.first), (["new", "too"], 102), "the new lines")
    expect_equal(head.sequence, 103, "numbers go on")
    await add(journal, third, 104, "more", owner="third")
    for reader in (journal, await site.second()):
        expect_equal(await log_of(reader), ["new", "too", "more"], "nothing old is ever read")
        log = await reader.read("run", after=3)
        expect(log is not None and log.first == 102, "reading behind an old number neither")
    await refused_everywhere(journal, first)


async def submissions_wait(site: JournalSite) -> None:
    """An unheld claim records a pending run without a lease, and leaves an existing one alone."""
    journal = site.store
    for _ in range(2):
        made = await journal.claim(claim_of(owner="web", unheld=True))
        expect(made is not None and made.granted, "a submission is recorded, or was already")
        head = await head_of(journal)
        expect_equal((head.status, head.held, head.attempts), ("pending", 0, 0), "it waits")
    other = await journal.claim(claim_of(owner="other", unheld=True, begin=("x",)))
    expect(other is not None and not other.granted, "a second submission leaves the run alone")
    expect_equal(await log_of(journal), ["begin"], "its lines are not added")
    worker = await held(await site.second(), owner="worker", begin=())
    expect_equal((worker.before, worker.took_over), ("pending", False), "a worker takes it")
    expect_equal((worker.log.head.attempts, worker.log.head.recoveries), (1, 0), "its 1st attempt")
    await add(journal, worker, 2, "two", owner="worker")
    other = await journal.claim(claim_of(owner="web2", unheld=True, restart=OPEN))
    expect(other is not None and not other.granted, "a running run is left alone as well")


async def heads_change_with_lines(site: JournalSite) -> None:
    """An append's head change holds with its lines: status, version, error, wake-up, release."""
    journal = site.store
    claimed = await held(journal)
    change = HeadChange(status="paused", version=5, error="boom", wake_at=1234.5)
    await add(journal, claimed, 2, "two", head=change)
    head = await head_of(await site.second())
    expect_equal((head.status, head.version, head.error), ("paused", 5, "boom"), "what was set")
    expect_equal((head.wake_at, head.sequence), (1234.5, 2), "the wake-up and the line")
    expect(head.held > 0, "the lease is kept unless it is released")
    await add(journal, claimed, 3, head=HeadChange(status="failed"))
    head = await head_of(journal)
    expect_equal((head.status, head.version, head.error), ("failed", 5, "boom"), "None leaves")
    expect_equal(head.wake_at, None, "each change replaces the wake-up time")
    await release(journal, claimed, 3, status=None)
    head = await head_of(journal)
    expect_equal((head.status, head.held), ("failed", 0), "release alone gives the lease back")


async def renewals_extend(site: JournalSite) -> None:
    """``renew`` lets the lease run on, also one that lapsed but that nobody took."""
    journal, short = site.store, site.short
    claimed = await held(journal, lease=short)
    fence = claimed.log.head.fence
    await journal.deposit("run", "k", "1")
    expect_equal(await journal.renew("run", "first", fence, short), 1, "it gives the inbox count")
    await site.lapse()
    await journal.renew("run", "first", fence, short * 1000)
    await site.lapse()
    other = await (await site.second()).claim(claim_of(owner="second"))
    expect(other is not None and not other.granted, "a renewed lease holds")
    expect((await head_of(journal)).held > short * 900, "for as long as was asked")
    await add(journal, claimed, 2, "two")


async def released_runs_can_not_be_renewed(site: JournalSite) -> None:
    """A renewal that arrives after the lease was given back is a ``LeaseLostError``."""
    claimed = await held(site.store)
    await release(site.store, claimed, status="finished", expires_in=3600.0)
    call = site.store.renew("run", "first", claimed.log.head.fence, 30)
    await expect_raises(LeaseLostError, call, "the lease was given back")
    head = await head_of(site.store)
    expect_equal((head.status, head.held), ("finished", 0.0), "the run stays released")
    expect(head.expires_at is not None, "the run still expires")


async def losers_can_not_renew(site: JournalSite) -> None:
    """``renew`` by anyone but the present owner, or of an absent run, is a ``LeaseLostError``."""
    journal = site.store
    await expect_raises(LeaseLostError, journal.renew("run", "first", 1, 30), "no such run")
    first = await held(journal, lease=site.short)
    fence = first.log.head.fence
    await expect_raises(LeaseLostError, journal.renew("run", "x", fence, 30), "another owner")
    await expect_raises(LeaseLostError, journal.renew("run", "first", fence + 1, 30), "a fence")
    await site.lapse()
    await held(journal, owner="second", lease=site.short)
    await site.lapse()
    await refused_everywhere(journal, first)


CLAIM_CHECKS: tuple[Check[Journal], ...] = tuple(
    Check(function)
    for function in (
        claims_create,
        claims_without_begin_create_nothing,
        held_runs_are_refused,
        one_of_many_claims_wins,
        other_names_are_refused,
        statuses_decide,
        claims_are_repeatable,
        fences_grow,
        fences_outlive_runs,
        lapsed_leases_are_taken,
        restarts_begin_anew,
        submissions_wait,
        heads_change_with_lines,
        renewals_extend,
        losers_can_not_renew,
        released_runs_can_not_be_renewed,
    )
)

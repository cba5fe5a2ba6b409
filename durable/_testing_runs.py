"""The conformance checks of ``Journal`` about listing, removal, expiry and run ids."""

from __future__ import annotations

import msgspec

from durable._errors import LeaseLostError, RunBusyError
from durable._testing_claims import head_of, ids, refused_everywhere, release
from durable._testing_log import ENDED, OPEN, JournalSite, add, adding, claim_of, held, log_of
from durable._testing_site import ODD_KEYS, Check, expect, expect_equal, expect_raises
from durable.store import Append, Claimed, Head, HeadChange, Journal, KeyValueStore, ListQuery


async def lists_are_ordered(site: JournalSite) -> None:
    """``list_runs`` gives heads ordered by run id, by pages, under literal prefixes."""
    journal = site.store
    expect_equal(await ids(journal), [], "a fresh store lists nothing")
    for run_id in ODD_KEYS:
        await held(journal, run_id)
    everything = sorted(ODD_KEYS)
    expect_equal(await ids(journal, limit=1000), everything, "every run, in order")
    expect_equal(await ids(journal, limit=7), everything[:7], "no more than the limit")
    expect_equal(len(await ids(journal)), min(100, len(everything)), "100 unless told otherwise")
    pages, after = list[str](), None
    while (page := await ids(journal, limit=7, after=after)) and len(pages) < 1000:
        pages += page
        after = page[-1]
    expect_equal(pages, everything, "pages give every run once")
    for prefix in ODD_KEYS:
        starts = [run_id for run_id in everything if run_id.startswith(prefix)]
        found = await ids(journal, prefix=prefix, limit=1000)
        expect_equal(found, starts, f"the prefix {prefix[:20]!r} is literal")
    expect_equal(await ids(journal, prefix="*"), [], "a star in a prefix stands for itself")


async def lists_are_chosen(site: JournalSite) -> None:
    """``list_runs`` chooses by status, name, holder, and by all of them together."""
    journal = site.store
    for name in ("one", "two"):
        for status in sorted(OPEN | ENDED):
            claimed = await held(journal, f"{name}-{status}", name=name)
            await release(journal, claimed, status=status)
        await held(journal, f"{name}-held", name=name)
    expect_equal(
        await ids(journal, names=frozenset({"one"}), status=ENDED),
        ["one-cancelled", "one-finished"],
        "by name and status",
    )
    running = frozenset({"running"})
    expect_equal(
        await ids(journal, status=running),
        ["one-held", "one-running", "two-held", "two-running"],
        "by status",
    )
    expect_equal(
        await ids(journal, status=running, claimable=True),
        ["one-running", "two-running"],
        "those that nobody holds",
    )
    expect_equal(
        await ids(journal, status=OPEN, names=frozenset({"two"}), claimable=True, limit=2),
        ["two-failed", "two-paused"],
        "with a limit",
    )
    expect_equal(
        await ids(journal, prefix="two-", status=ENDED, after="two-cancelled"),
        ["two-finished"],
        "with a prefix, after one",
    )
    for empty in ({"status": frozenset[str]()}, {"names": frozenset({"three"})}):
        expect_equal(await ids(journal, **empty), [], f"what nothing fits: {empty}")
    (head,) = await (await site.second()).list_runs(ListQuery(prefix="one-held"))
    expect_equal(head, with_lease_of(await head_of(journal, "one-held"), head), "heads are whole")


def with_lease_of(head: Head, other: Head) -> Head:
    """Return ``head`` with the remaining lease of ``other``: time passes between two looks."""
    return msgspec.structs.replace(head, held=other.held)


async def lapsed_runs_are_claimable(site: JournalSite) -> None:
    """``claimable`` lists a run once its lease has lapsed."""
    await held(site.store, "short", lease=site.short)
    await held(site.store, "long", lease=site.short * 1000)
    await site.lapse()
    expect_equal(await ids(site.store, claimable=True), ["short"], "a lapsed lease is nobody's")


async def old_runs_are_listed(site: JournalSite) -> None:
    """``before`` lists the runs whose head last changed longer ago than so many seconds."""
    journal, short = site.store, site.short
    old, changed = await held(journal, "old"), await held(journal, "changed")
    await site.lapse()
    await held(journal, "new", lease=short * 1000)
    await add(journal, changed, 2, head=HeadChange(status="paused"))
    await add(journal, old, 2, "a line changes no head")
    expect_equal(await ids(journal, before=short), ["old"], "what changed longer ago")
    expect_equal(await ids(journal, before=short * 1000), [], "nothing is that old")


async def deletions_are_whole(site: JournalSite) -> None:
    """``delete_run`` removes a run with everything it has; a held one only if told to."""
    journal = site.store
    expect_equal(await journal.delete_run("run"), False, "there is nothing to delete")
    claimed = await held(journal)
    await add(journal, claimed, 2, "two")
    await journal.deposit("run", "k", "1")
    second = await site.second()
    await expect_raises(RunBusyError, second.delete_run("run"), "a held run is not deleted")
    expect_equal(await log_of(journal), ["begin", "two"], "the held run is whole")
    expect_equal(await second.delete_run("run", held=True), True, "unless it is told so")
    await expect_absent(journal, "run")
    await refused_everywhere(journal, claimed)
    expect_equal(await journal.delete_run("run", held=True), False, "it is gone")
    await release(journal, await held(journal))
    expect_equal(await journal.delete_run("run"), True, "a released run can be deleted")
    await expect_absent(second, "run")


async def expect_absent(journal: Journal, run_id: str) -> None:
    """Check that the run is as if it had never been, for every method that doesn't create."""
    expect_equal(await journal.read(run_id), None, f"{run_id!r} is gone: read")
    expect_equal(await journal.deposit(run_id, "k", "1"), None, f"{run_id!r} is gone: deposit")
    expect_equal(await journal.claim(claim_of(run_id, "x", begin=())), None, f"{run_id!r}: claim")
    expect_equal(await journal.delete_run(run_id), False, f"{run_id!r} is gone: delete")
    expect(run_id not in await ids(journal, limit=1000), f"{run_id!r} is gone: list")


async def appends_can_remove(site: JournalSite) -> None:
    """``expires_in=0`` removes the run with the append; sent again, it is accepted."""
    journal = site.store
    claimed = await held(journal)
    await add(journal, claimed, 2, "two")
    await journal.deposit("run", "k", "1")
    end = HeadChange(status="finished", release=True, expires_in=0)
    await add(journal, claimed, 3, "end", head=end)
    await expect_absent(journal, "run")
    await add(journal, claimed, 3, "end", head=end)
    other = Append("unknown", "first", 1, 1, ("x",), HeadChange(expires_in=0))
    expect_equal(list(await journal.append([other])), [0], "so for a run long gone")
    await expect_absent(await site.second(), "run")
    new = await held(journal, owner="second", begin=("new",))
    await add(journal, new, 2, "two", owner="second")
    (result,) = await journal.append([adding(claimed, 3, "end", head=end)])
    expect(isinstance(result, LeaseLostError), f"a removal by an earlier owner: {result!r}")
    expect_equal(await log_of(journal), ["new", "two"], "the new run has nothing of the old")


async def ended_runs_expire(site: JournalSite) -> None:
    """A run whose head change says ``expires_in`` is gone after so many seconds, not sooner."""
    journal, short = site.store, site.short
    for run_id, expires_in in (("short", short), ("long", short * 1000), ("never", None)):
        claimed = await held(journal, run_id)
        await journal.deposit(run_id, "k", "1")
        await release(journal, claimed, status="finished", expires_in=expires_in)
    expires = (await head_of(journal, "long")).expires_at
    expect(expires is not None and expires > 0, "the head tells when it expires")
    await site.lapse()
    await expect_absent(await site.second(), "short")
    expect_equal(await ids(journal), ["long", "never"], "the others stay")
    new = await held(journal, "short", begin=("new",))
    head = new.log.head
    expect_equal((new.before, head.attempts, head.sequence), (None, 1, 1), "a new run begins")
    expect_equal(
        (list(new.log.lines), new.log.inbox), (["new"], dict[str, str]()), "with nothing of the old"
    )
    expect_equal(head.expires_at, None, "nor its expiry")


async def unfinished_runs_expire(site: JournalSite) -> None:
    """A run with a ttl is gone that long after its lease has lapsed, not while it is held."""
    journal, short = site.store, site.short
    lapsed = await held(journal, "lapsed", lease=short, ttl=short)
    await held(journal, "held", lease=short * 1000, ttl=short / 10)
    await held(journal, "no-ttl", lease=short)
    await journal.claim(claim_of("submitted", unheld=True, ttl=short))
    await site.lapse(2.5)
    expect_equal(await ids(journal), ["held", "no-ttl"], "what is held or has no ttl stays")
    await refused_everywhere(journal, lapsed)
    await expect_absent(journal, "lapsed")
    await expect_absent(journal, "submitted")
    expect((await head_of(journal, "held")).held > 0, "a held run doesn't expire")


async def renewals_put_off_expiry(site: JournalSite) -> None:
    """A renewal counts the ttl anew, and so does a claim."""
    journal, short = site.store, site.short
    claimed = await held(journal, lease=short, ttl=short * 10)
    await site.lapse(6)
    await journal.renew("run", "first", claimed.log.head.fence, short)
    await site.lapse(6)
    expect_equal(await log_of(await site.second()), ["begin"], "a renewal puts the expiry off")
    await held(journal, owner="second", lease=short, ttl=short * 10)
    await site.lapse(6)
    expect_equal(await log_of(journal), ["begin"], "a claim puts it off")
    await site.lapse(6)
    await expect_absent(journal, "run")


async def held_runs_do_not_expire(site: JournalSite) -> None:
    """``expires_in`` of a run that is still held takes effect only when nobody holds it."""
    journal, short = site.store, site.short
    claimed = await held(journal, lease=short * 1000)
    await add(journal, claimed, 2, "two", head=HeadChange(expires_in=short))
    await site.lapse()
    expect_equal(await log_of(journal), ["begin", "two"], "a held run stays")
    await release(journal, claimed, 3, expires_in=short)
    await site.lapse()
    await expect_absent(journal, "run")


async def purging_is_bounded(site: JournalSite) -> None:
    """``purge`` removes what has expired, at most ``limit`` at a time, and nothing else."""
    journal, short = site.store, site.short
    for number in range(7):
        claimed = await held(journal, f"old-{number}")
        await add(journal, claimed, 2, "two")
        await release(journal, claimed, 3, status="finished", expires_in=short)
    await held(journal, "kept", lease=short * 1000)
    if isinstance(journal, KeyValueStore):
        await journal.set("expired", "1", ttl=short)
        await journal.set("kept", "1")
    await site.lapse()
    for _ in range(20):
        removed = await journal.purge(3)
        expect(0 <= removed <= 3, f"purge(3) removed {removed}")
        if not removed:
            break
    expect_equal(await journal.purge(), 0, "purging comes to an end")
    expect_equal(await ids(journal), ["kept"], "only the unexpired run is left")
    expect_equal(await log_of(journal, "kept"), ["begin"], "and it is whole")
    if isinstance(journal, KeyValueStore):
        expect_equal(await journal.get("kept"), "1", "an unexpired key stays")


async def odd_ids_are_apart(site: JournalSite) -> None:
    """Run ids that look alike, or are special elsewhere, never mix."""
    journal = site.store
    grants: dict[str, Claimed] = {}
    for number, run_id in enumerate(ODD_KEYS):
        grants[run_id] = await held(journal, run_id, begin=(f"begin {number}",))
        await journal.deposit(run_id, "k", str(number))
    for number, run_id in enumerate(ODD_KEYS):
        await add(journal, grants[run_id], 2, f"line {number}")
    for run_id in ODD_KEYS[::3]:
        expect_equal(await journal.delete_run(run_id, held=True), True, f"{run_id[:20]!r} is there")
    second = await site.second()
    for number, run_id in enumerate(ODD_KEYS):
        log = await second.read(run_id)
        if number % 3 == 0:
            expect_equal(log, None, f"{run_id[:20]!r} was deleted")
            continue
        found = None if log is None else (log.head.run_id, list(log.lines), log.inbox)
        own = (run_id, [f"begin {number}", f"line {number}"], {"k": str(number)})
        expect_equal(found, own, f"the run {run_id[:20]!r} has what is its own")


RUN_CHECKS: tuple[Check[Journal], ...] = tuple(
    Check(function)
    for function in (
        lists_are_ordered,
        lists_are_chosen,
        lapsed_runs_are_claimable,
        old_runs_are_listed,
        deletions_are_whole,
        appends_can_remove,
        ended_runs_expire,
        unfinished_runs_expire,
        renewals_put_off_expiry,
        held_runs_do_not_expire,
        purging_is_bounded,
        odd_ids_are_apart,
    )
)

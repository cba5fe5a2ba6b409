"""What the tests of ``KeyValueJournal`` share."""

from five_method_store import FiveMethodStore

from durable._kv_journal import KeyValueJournal
from durable.store import Append, Claim
from durable.testing import FlakyStore

OPEN = frozenset({"pending", "running", "paused", "failed"})
ENDED = frozenset({"finished", "cancelled"})


def claim_of(run_id="run", owner="first", **changes):
    fields = {"name": "job", "lease": 30.0, "statuses": OPEN, "begin": ("begin",)}
    return Claim(run_id=run_id, owner=owner, **{**fields, **changes})


async def add(journal, claimed, first, *lines, owner="first", **other):
    head = claimed.log.head
    member = Append(head.run_id, owner, head.fence, first, lines, **other)
    (result,) = await journal.append([member])
    if isinstance(result, Exception):
        raise result
    return result


async def all_lines(journal, run_id="run"):
    lines, more, first = [], True, 1
    while more:
        log = await journal.read(run_id, after=first - 1)
        lines += log.lines
        first, more = log.first + len(log.lines), log.more
    return lines


def copied(store):
    """Return a new store with the same data: what a new process finds after a crash."""
    copy = FiveMethodStore()
    copy.data = dict(store.data)
    return copy


async def filled(count, size=100, begin=("begin",)):
    """Return a counted store, its journal, and a run with ``count`` lines."""
    flaky = FlakyStore(FiveMethodStore())
    journal = KeyValueJournal(flaky)
    claimed = await journal.claim(claim_of(begin=begin))
    for number in range(len(begin) + 1, count + 1):
        await add(journal, claimed, number, f"{number}".ljust(size, "."))
    await journal.settle()
    return flaky, journal, claimed

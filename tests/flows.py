"""What the tests of runs share: effects to count, and processes that die without a word."""

import asyncio
from contextlib import suppress

from durable import MemoryStore
from durable.store import Append, Claim, HeadChange
from durable.testing import FlakyStore, ManualClock


class Effects(list):
    """What was really done, in order; ``do`` is a step's function that does it."""

    async def do(self, value=None):
        self.append(value)
        return value


class Gates:
    """A step's function that tells that it was reached, and waits until it is let go."""

    def __init__(self):
        self.reached = asyncio.Event()
        self.go = asyncio.Event()

    async def wait(self):
        self.reached.set()
        await self.go.wait()
        return "gone on"


def flaky_memory():
    """Return a memory store behind one that fails on demand."""
    return FlakyStore(MemoryStore())


async def until(event, task):
    """Return when ``event`` is set; raise if ``task`` ends before."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
    if not waiting.done():
        waiting.cancel()
        raise AssertionError(f"it ended too early: {task}")


async def die(task, store):
    """End ``task`` as if its process were killed: nothing more of it reaches ``store``."""
    store.fail(times=None)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    store.heal()


async def abandoned(function, run_id, store, gates, *args):
    """Leave a run behind as a process does that was killed within the step that ``gates`` is."""
    gates.reached.clear()
    task = asyncio.create_task(function.run(run_id, *args))
    await until(gates.reached, task)
    await die(task, store)


def under_clock(test):
    """Run ``await test(clock)`` under a clock whose sleeps take no time."""

    async def main():
        with ManualClock(autojump=True) as clock:
            return await test(clock)

    return asyncio.run(main())


async def mark(store, run_id, status, name):
    """Bring a run into ``status`` by the store alone, as a later version may have."""
    claim = Claim(
        run_id=run_id, name=name, owner="hand", lease=9.0, statuses=frozenset({"pending"})
    )
    claimed = await store.claim(claim)
    head = claimed.log.head
    change = HeadChange(status=status, release=True)
    await store.append([Append(run_id, "hand", head.fence, head.sequence + 1, (), change)])

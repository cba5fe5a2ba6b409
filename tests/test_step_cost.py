"""What a step costs doesn't grow: counted in calls and characters, not in time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from step_helpers import Boom, go

from durable import MemoryStore, durable, step
from durable.testing import FlakyStore


async def work(number: int) -> str:
    return "x" * 100


class Measured:
    """A run of ``count`` steps, one after the other, and what each of them wrote."""

    def __init__(self, count: int) -> None:
        self.store = FlakyStore(MemoryStore())
        self.written: list[int] = []
        self.fails = True

        @durable(store=self.store)
        async def flow() -> None:
            for number in range(count):
                before = self.store.written
                await step(f"s{number:05}", work, number)
                self.written.append(self.store.written - before)
            if self.fails:
                raise Boom

        self.flow: Any = flow


def test_a_step_writes_its_own_record_and_nothing_else() -> None:
    """The 200th costs as much as the second, and all of them little more than their values."""
    run = Measured(200)
    with pytest.raises(Boom):
        go(run.flow.run("r"))
    assert max(run.written[1:]) - min(run.written[1:]) < 40
    assert sum(run.written) < 200 * (100 + 250)
    assert run.store.calls["append"] == 201


@pytest.mark.parametrize("count", [10, 300])
def test_a_replay_asks_the_store_a_constant_number_of_times(count: int) -> None:
    """However many steps are on record; and it writes none of them again."""
    run = Measured(count)
    with pytest.raises(Boom):
        go(run.flow.run("r"))
    run.store.reset()
    run.written.clear()
    run.fails = False
    go(run.flow.run("r"))
    assert sum(run.written) == 0
    assert sum(run.store.calls.values()) <= 3


def test_nothing_of_the_library_is_left_behind() -> None:
    """When a run has ended, in whatever way, no task of it is alive."""

    async def slow() -> None:
        await asyncio.Event().wait()

    @durable(store=FlakyStore(MemoryStore()))
    async def flow(ends: str) -> None:
        task = asyncio.create_task(step("slow", slow))
        await step("quick", work, 1)
        if ends == "cancelled":
            task.cancel()
            raise Boom

    async def main() -> Iterator[asyncio.Task[Any]]:
        await flow.run("returned", "returned")
        with pytest.raises(Boom):
            await flow.run("cancelled", "cancelled")
        return iter(asyncio.all_tasks() - {asyncio.current_task()})

    assert not list(go(main()))

"""A fresh step, one after the other, against the bare driver's equally durable write.

Blocks of bare writes and of steps take turns, so that both see the same disk and the same
neighbours. The result is checked before anything is printed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks._measure import FLOORS, close, make_store, row, scratch, spread
from durable import MemoryStore, durable, step

ROUNDS, BLOCK = 30, 30


async def work(item: int) -> str:
    return f"result {item} " + "x" * 40


async def against_floor(kind: str, folder: Path) -> None:
    floors: list[float] = []
    steps: list[float] = []
    store = make_store(kind, folder)
    with FLOORS[kind](folder) as floor:

        @durable(store=store)
        async def job() -> int:
            for number in range(ROUNDS):
                for _ in range(BLOCK):
                    start = perf_counter()
                    await floor.awaited()
                    floors.append(perf_counter() - start)
                for item in range(number * BLOCK, (number + 1) * BLOCK):
                    start = perf_counter()
                    value = await step(f"item-{item}", work, item)
                    steps.append(perf_counter() - start)
                    assert value.startswith(f"result {item} ")
            return len(steps)

        assert await job.run("bench") == ROUNDS * BLOCK == len(floor.read())
    await close(store)
    print(f"{kind}: a fresh step, sequential")
    row("bare write through asyncio.to_thread", spread(floors))
    row("step", spread(steps))
    row("ratio of the medians", f"{median(steps) / median(floors):9.2f}", "≤ 1.1")


async def on_memory() -> None:
    calls: list[float] = []
    steps: list[float] = []

    @durable(store=MemoryStore())
    async def job() -> int:
        for item in range(5000):
            start = perf_counter()
            await work(item)
            calls.append(perf_counter() - start)
            start = perf_counter()
            await step(f"item-{item}", work, item)
            steps.append(perf_counter() - start)
        return len(steps)

    assert await job.run("bench") == 5000
    own = (median(steps) - median(calls)) * 1e6
    print("memory: a fresh step, sequential")
    row("the function alone", spread(calls))
    row("step", spread(steps))
    row("our own part of the median", f"{own:9.1f} µs", "≤ 15 µs")


async def main() -> None:
    for kind in FLOORS:
        with scratch() as folder:
            await against_floor(kind, folder)
    await on_memory()


if __name__ == "__main__":
    asyncio.run(main())

"""A step's cost doesn't grow: steps 9,900 to 10,000 of one run against steps 100 to 200.

Also the memory that a small step takes while its run is in progress.
"""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks._measure import close, make_store, row, scratch
from durable import durable, step

STEPS = 10_000


async def work(item: int) -> int:
    return item


async def cost(kind: str, folder: Path) -> None:
    store = make_store(kind, folder)
    times: list[float] = []

    @durable(store=store)
    async def job() -> int:
        for item in range(STEPS):
            start = perf_counter()
            await step(f"item-{item}", work, item)
            times.append(perf_counter() - start)
        return len(times)

    assert await job.run("bench") == STEPS
    await close(store)
    early, late = median(times[100:200]), median(times[9_900:10_000])
    print(f"{kind}: one run of {STEPS:,} steps")
    row("steps 100 to 200, median", f"{early * 1e6:9.1f} µs")
    row("steps 9,900 to 10,000, median", f"{late * 1e6:9.1f} µs")
    row("ratio", f"{late / early:9.2f}", "≤ 1.2")


async def memory(kind: str, folder: Path) -> None:
    store = make_store(kind, folder)
    before = after = 0

    @durable(store=store, durability="async")
    async def job() -> None:
        nonlocal before, after
        for item in range(STEPS):
            await step(f"item-{item}", work, item)
            if item == 99:
                tracemalloc.start()
                before = tracemalloc.get_traced_memory()[0]
        await asyncio.sleep(0)
        after = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()

    await job.run("bench")
    await close(store)
    taken = (after - before) / (STEPS - 100)
    row(f"{kind}: memory a small step", f"{taken:9.0f} bytes", "≤ 1,000 bytes")


async def main() -> None:
    for kind in ("memory", "sqlite", "file", "five methods"):
        with scratch() as folder:
            await cost(kind, folder)
    print("memory while the run is in progress")
    for kind in ("memory", "sqlite", "file"):
        with scratch() as folder:
            await memory(kind, folder)


if __name__ == "__main__":
    asyncio.run(main())

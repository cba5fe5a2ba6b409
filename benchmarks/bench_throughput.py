"""200 runs of 20 steps in one process, against the bare driver committing one row at a time."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks._measure import LINE, close, make_store, row, scratch, sqlite_floor
from durable import durable, step

RUNS, STEPS, REPEATS = 200, 20, 3


async def work(item: int) -> str:
    return f"result {item} " + "x" * 40


async def ours(kind: str, folder: Path) -> float:
    store = make_store(kind, folder)
    done = 0

    @durable(store=store)
    async def job() -> None:
        nonlocal done
        for item in range(STEPS):
            await step(f"item-{item}", work, item)
            done += 1

    start = perf_counter()
    await asyncio.gather(*(job.run(f"run-{number}") for number in range(RUNS)))
    taken = perf_counter() - start
    assert done == RUNS * STEPS
    await close(store)
    return RUNS * STEPS / taken


def bare_sqlite(folder: Path) -> float:
    with sqlite_floor(folder) as floor:
        start = perf_counter()
        for _ in range(RUNS * STEPS):
            floor.write()
        taken = perf_counter() - start
        assert len(floor.read()) == RUNS * STEPS
    return RUNS * STEPS / taken


def bare_file(folder: Path) -> float:
    data = f"{LINE}\n".encode()
    with ExitStack() as stack:
        files = [
            stack.enter_context((folder / f"{number}.log").open("ab", buffering=0))
            for number in range(RUNS)
        ]
        start = perf_counter()
        for _ in range(STEPS):
            for file in files:
                file.write(data)
                os.fdatasync(file.fileno())
        taken = perf_counter() - start
    return RUNS * STEPS / taken


BARE = {"sqlite": (bare_sqlite, "≥ 4"), "file": (bare_file, "≥ 1.5")}


async def main() -> None:
    for kind, (bare, goal) in BARE.items():
        bares, mine = [], []
        for _ in range(REPEATS):
            with scratch() as folder:
                bares.append(bare(folder))
            with scratch() as folder:
                mine.append(await ours(kind, folder))
        print(f"{kind}: {RUNS} runs of {STEPS} steps at once")
        row("bare driver, one row a commit, one at a time", f"{median(bares):9,.0f} /s")
        row("steps, begin and end of the runs included", f"{median(mine):9,.0f} /s")
        row("ratio", f"{median(mine) / median(bares):9.2f}", goal)


if __name__ == "__main__":
    asyncio.run(main())

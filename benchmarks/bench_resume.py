"""A replayed step, and resuming a run of 10,000 done steps, against the bare read of its rows.

Each measurement is repeated and the median taken; the steps' function counts its calls, which
must be none.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks._measure import close, make_store, row, scratch
from durable import KeyValueStore, durable, step
from durable.store import Journal

STEPS, REPEATS = 10_000, 7


class StopHereError(Exception):
    """Leaves the run unfinished."""


class Job:
    """A run whose steps are all done, and that always fails at its end."""

    def __init__(self, store: KeyValueStore) -> None:
        self.calls = 0
        self.replay = 0.0

        async def work(item: int) -> str:
            self.calls += 1
            return f"result {item}"

        @durable(store=store)
        async def job() -> None:
            keys = [f"item-{item}" for item in range(STEPS)]
            start = perf_counter()
            for item, key in enumerate(keys):
                await step(key, work, item)
            self.replay = perf_counter() - start
            raise StopHereError

        self._job = job.options(durability="async")

    async def go(self) -> float:
        """Return the seconds that one pass took."""
        start = perf_counter()
        try:
            await self._job.run("bench")
        except StopHereError:
            return perf_counter() - start
        raise AssertionError("the run should not finish")


async def measure(kind: str, folder: Path) -> None:
    store = make_store(kind, folder)
    job = Job(store)
    await job.go()
    assert job.calls == STEPS
    read = bare_reader(kind, folder, await stored_lines(store))
    passes, replays, reads = [], [], []
    for _ in range(REPEATS):
        passes.append(await job.go())
        replays.append(job.replay)
        start = perf_counter()
        found = await asyncio.to_thread(read)
        reads.append(perf_counter() - start)
        assert len(found) > STEPS
    assert job.calls == STEPS, "a replayed step was executed"
    await close(store)
    print(f"{kind}: a run of {STEPS:,} done steps is resumed")
    row("a replayed step", f"{median(replays) / STEPS * 1e6:9.2f} µs", "≤ 3 µs")
    row("bare read of its lines", f"{median(reads) * 1e3:9.1f} ms")
    row("the whole resume", f"{median(passes) * 1e3:9.1f} ms")
    beyond = (median(passes) - median(reads)) / STEPS * 1e6
    row("beyond the bare read, per step", f"{beyond:9.2f} µs", "≤ 4 µs")


async def stored_lines(store: KeyValueStore) -> list[str]:
    assert isinstance(store, Journal)
    log = await store.read("bench")
    assert log is not None
    assert not log.more
    return list(log.lines)


def bare_reader(kind: str, folder: Path, lines: list[str]) -> Callable[[], list[str]]:
    """Return what reads as many lines from the same medium without us."""
    if kind == "memory":
        return lambda: list(lines)
    if kind == "file":
        path = folder / "bare.log"
        path.write_text("\n".join(lines) + "\n")
        return lambda: path.read_text().splitlines()
    connection = sqlite3.connect(folder / "bare.db", check_same_thread=False)
    connection.execute(
        "CREATE TABLE log (run INTEGER, sequence INTEGER, line TEXT, "
        "PRIMARY KEY (run, sequence)) WITHOUT ROWID"
    )
    rows = [(1, number, line) for number, line in enumerate(lines, 1)]
    connection.executemany("INSERT INTO log VALUES (?, ?, ?)", rows)
    connection.commit()
    query = "SELECT line FROM log WHERE run = 1 ORDER BY sequence"
    return lambda: [line for (line,) in connection.execute(query)]


async def main() -> None:
    for kind in ("memory", "sqlite", "file"):
        with scratch() as folder:
            await measure(kind, folder)


if __name__ == "__main__":
    asyncio.run(main())

"""Many steps at once, of which only the missing ones run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from durable._progress import progress_bar
from durable._run import Call

T = TypeVar("T")
R = TypeVar("R")


async def map_steps(
    call: Call,
    title: str,
    work: Sequence[tuple[str, T]],
    perform: Callable[[str, T], Awaitable[R]],
    *,
    limit: int | None,
    progress: bool,
) -> list[R]:
    """Return ``perform(key, item)`` for each of ``work``, in order, at most ``limit`` at once.

    After the first failure no new item starts; it is raised when those under way have ended.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
        raise TypeError(f"limit must be an int or None, got {type(limit).__name__}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    now = call.run.time()
    results: dict[int, R] = {}
    missing: list[int] = []
    for index, (key, item) in enumerate(work):
        record = call.scope.steps.get(key)
        if record is not None and (record.expires_at is None or record.expires_at > now):
            results[index] = await perform(key, item)
        else:
            missing.append(index)
    with progress_bar(title, len(work), len(results), shown=progress) as advance:
        failures: list[BaseException] = []
        indices = iter(missing)
        workers = min(len(missing), limit or len(missing))

        async def drain(indices: Iterator[int]) -> None:
            for index in indices:
                if failures:
                    return
                try:
                    results[index] = await perform(*work[index])
                except Exception as error:
                    failures.append(error)
                    return
                advance()

        await asyncio.gather(*(drain(indices) for _ in range(workers)))
        if failures:
            raise failures[0]
    return [results[index] for index in range(len(work))]

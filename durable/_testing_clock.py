"""A clock that stands still until it is told to advance."""

from __future__ import annotations

import asyncio
import heapq
import random
from contextvars import Token
from itertools import count

from durable._clock import Clock, active

#: Lets tasks that were just woken run until they wait again.
_TURNS = 20


class ManualClock:
    """Time for tests: it stands still until ``advance``, and randomness is the same every time.

    ``with ManualClock() as clock:`` puts it in force for the tasks begun inside. With
    ``autojump=True`` a sleep advances the time at once, so nothing waits.
    """

    def __init__(
        self, start: float = 1_700_000_000.0, *, autojump: bool = False, seed: int = 0
    ) -> None:
        self._now = start
        self._autojump = autojump
        self._random = random.Random(seed)
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()
        self._tokens: list[Token[Clock]] = []

    def __enter__(self) -> ManualClock:
        self._tokens.append(active.set(self))
        return self

    def __exit__(self, *exc_info: object) -> None:
        active.reset(self._tokens.pop())

    def time(self) -> float:
        """Return the seconds since the epoch, as far as this clock is concerned."""
        return self._now

    def monotonic(self) -> float:
        """Return the same."""
        return self._now

    def random(self) -> float:
        """Return the next of a fixed series of floats in [0, 1)."""
        return self._random.random()

    @property
    def sleeping(self) -> int:
        """How many tasks are asleep."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def sleep(self, seconds: float) -> None:
        """Return when the clock has advanced by ``seconds``; at once if it jumps by itself."""
        if self._autojump or seconds <= 0:
            self._now += max(0.0, seconds)
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), future))
        await future

    async def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass; sleepers wake in order, each at its own time, and get to run."""
        if seconds < 0:
            raise ValueError(f"time only moves forward, not by {seconds!r} s")
        end = self._now + seconds
        await _let_others_run()
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, future = heapq.heappop(self._sleepers)
            if future.done():
                continue
            self._now = max(self._now, at)
            future.set_result(None)
            await _let_others_run()
        self._now = end
        await _let_others_run()


async def _let_others_run() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)

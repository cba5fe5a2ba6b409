"""The only door to time, sleep and randomness.

Everything here goes through the ``Clock`` in a context variable, so that a test can put its own
in place for one task without touching any other.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextvars import ContextVar
from typing import Protocol


class Clock(Protocol):
    """Where time and randomness come from."""

    def time(self) -> float:
        """Return the seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go backwards."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""
        ...

    def random(self) -> float:
        """Return a float in [0, 1)."""
        ...


class SystemClock:
    """The machine's own time and randomness."""

    def time(self) -> float:
        """Return the seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that never go backwards."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""
        await asyncio.sleep(seconds)

    def random(self) -> float:
        """Return a float in [0, 1)."""
        return random.random()


_SYSTEM = SystemClock()

#: The clock in force in this context.
active: ContextVar[Clock] = ContextVar("durable_clock", default=_SYSTEM)


def clock() -> Clock:
    """Return the clock in force."""
    return active.get()

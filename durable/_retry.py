"""When a failed attempt is tried again, and after how long: pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

import msgspec

#: What to retry on: an exception type, several, or a predicate.
RetryOn: TypeAlias = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """Try a step again when it fails.

    ``attempts``: how often it is tried at most, the first time included. ``wait``: seconds
    before the second attempt; each later wait is twice the one before, up to ``max_wait``
    seconds. ``jitter``: each wait is made longer by a random share of itself, up to this
    fraction. ``on``: the exception type, the tuple of types or the predicate that says which
    failures are tried again.

    ```python
    await step.options(retry=Retry(attempts=5, on=ConnectionError))("fetch", fetch, url)
    ```
    """

    attempts: int = 3
    wait: float = 0.1
    max_wait: float = 30.0
    jitter: float = 0.1
    on: RetryOn = Exception

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int):
            raise TypeError(f"attempts must be an int, got {type(self.attempts).__name__}")
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")
        for name in ("wait", "max_wait", "jitter"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number, got {type(value).__name__}")
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
        if self.wait > self.max_wait:
            raise ValueError(
                f"wait ({self.wait:g}) is longer than max_wait ({self.max_wait:g}); give both"
            )
        _check_on(self.on)

    def delay(self, attempt: int, random: float) -> float:
        """Return the seconds to wait after ``attempt`` (from 1); ``random`` is in [0, 1)."""
        # 2**64 * wait is beyond any max_wait, and keeps the power from overflowing a float.
        base = min(self.wait * 2.0 ** min(attempt - 1, 64), self.max_wait)
        return float(base * (1 + self.jitter * random))

    def wants(self, error: Exception) -> bool:
        """Return whether ``error`` is one that is tried again."""
        on = self.on
        if isinstance(on, type):
            return isinstance(error, on)
        if callable(on):
            return bool(on(error))
        return isinstance(error, on)


def _check_on(on: object) -> None:
    types = cast("tuple[object, ...]", on if isinstance(on, tuple) else (on,))
    if not isinstance(on, tuple) and not isinstance(on, type) and callable(on):
        return
    for each in types:
        if not (isinstance(each, type) and issubclass(each, Exception)):
            raise TypeError(
                "on must be an exception type, a tuple of them or a function of the exception, "
                f"got {each!r}"
            )


#: A step without ``retry`` is tried once.
ONCE = Retry(attempts=1)

"""What every conformance check stands on: fresh stores, second clients, and time that passes."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

from durable._clock import clock

S = TypeVar("S")
T = TypeVar("T")

#: Returns a fresh, empty store.
Make: TypeAlias = Callable[[], S | Awaitable[S]]
#: Returns another client of the same data.
Again: TypeAlias = Callable[[S], S | Awaitable[S]]
#: Makes everything that the store holds older by so many seconds.
Age: TypeAlias = Callable[[S, float], Awaitable[None] | None]


class Site(Generic[S]):
    """A fresh store to check, and the means to look at it from elsewhere and later.

    ``store`` is the store. ``short`` is the number of seconds that a lease or ttl has which a
    check wants to see lapse.
    """

    def __init__(self, store: S, make: Make[S], again: Again[S] | None, age: Age[S] | None) -> None:
        self.store = store
        self.short = 0.05 if age is None else 60.0
        self._make = make
        self._again = again
        self._age = age
        self._opened: list[S] = [store]

    async def fresh(self) -> S:
        """Return one more empty store, closed after the check."""
        store = await _settled(self._make())
        self._opened.append(store)
        return store

    async def second(self) -> S:
        """Return a second client of the same data; the store itself where there is none."""
        if self._again is None:
            return self.store
        client = await _settled(self._again(self.store))
        self._opened.append(client)
        return client

    async def lapse(self, times: float = 1.5) -> None:
        """Let ``times`` the short duration pass: by ageing the store, or by waiting."""
        if self._age is None:
            await clock().sleep(self.short * times)
        else:
            await _settled(self._age(self.store, self.short * times))

    async def close(self) -> None:
        """Close what was opened and can be closed, the newest first."""
        for store in reversed(self._opened):
            aclose = getattr(store, "aclose", None)
            if aclose is not None:
                await _settled(aclose())


class Check(Generic[S]):
    """One promise of the contract.

    ``name`` names it, ``promise`` is its sentence. Calling it checks a fresh store and raises
    ``AssertionError`` when the promise is broken.
    """

    def __init__(self, function: Callable[[Site[S]], Awaitable[None]]) -> None:
        self.name: str = getattr(function, "__name__", "check")
        self.promise: str = (function.__doc__ or self.name).strip()
        self._function = function

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<check {self.name}: {self.promise}>"

    async def __call__(
        self, make: Make[S], *, again: Again[S] | None = None, age: Age[S] | None = None
    ) -> None:
        """Check a fresh store of ``make``; parameters as in ``durable.testing.check_store``."""
        site = Site(await _settled(make()), make, again, age)
        try:
            await self._function(site)
        finally:
            await site.close()


async def run_checks(
    checks: Sequence[Check[S]], make: Make[S], again: Again[S] | None, age: Age[S] | None
) -> None:
    """Run each check on its own fresh store; raise an ``ExceptionGroup`` of all that fail."""
    failures: list[Exception] = []
    for check in checks:
        try:
            await check(make, again=again, age=age)
        except Exception as error:
            error.add_note(f"while checking {check.name}: {check.promise}")
            failures.append(error)
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(checks)} promises are broken", failures)


def expect(holds: bool, broken: str) -> None:
    """Raise ``AssertionError`` with the sentence ``broken`` unless ``holds``."""
    if not holds:
        raise AssertionError(broken)


def expect_equal(found: object, expected: object, promise: str) -> None:
    """Raise ``AssertionError`` naming ``promise`` unless both are equal."""
    if found != expected:
        raise AssertionError(f"{promise}: expected {_short(expected)}, found {_short(found)}")


async def expect_raises(
    error: type[Exception] | tuple[type[Exception], ...], call: Awaitable[object], promise: str
) -> None:
    """Raise ``AssertionError`` naming ``promise`` unless ``call`` raises ``error``."""
    names = [error] if isinstance(error, type) else list(error)
    wanted = " or ".join(each.__name__ for each in names)
    try:
        result = await call
    except error:
        return
    except Exception as other:
        raise AssertionError(f"{promise}: expected {wanted}, was raised {other!r}") from other
    raise AssertionError(f"{promise}: expected {wanted}, it returned {_short(result)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:200]}… ({len(text)} characters)"


async def _settled(value: T | Awaitable[T]) -> T:
    if inspect.isawaitable(value):
        return await value
    return value


#: Keys and run ids that some store once got wrong.
ODD_KEYS: tuple[str, ...] = (
    *("a", "A", "a:1", "a_1", "a:b", "a:b:c", "a::", ":", "a b", " a", "a ", " ", "\t"),
    *("%", "_", "a%1", "%61", "%2F", "[a]", "[a-z]", "?", "a?", "\\", "a\\", "\\a", "^a$", "a+"),
    *(".", "..", ".a", "a.", "../a", "/", "/a", "a/", "a/b", "a//b", "~", "a\\..\\b", "CON"),
    *("\0", "a\0", "a\0b", "\n", "a\n", "a\nb", "\r\n", "\x7f", "\x1b[0m", "\u2028", "\ufeff"),
    *("'", '"', "';--", "$a", "{a}", "{a}:{b}", "#", "&", "|", "-", "--", "=", ",", ";", "<a>"),
    *(
        "é",
        "e\u0301",
        "ß",
        "ẞ",
        "\u0131",
        "\u0130",
        "😀",
        "a😀b",
        "\uffff",
        "\U0010ffff",
        "日本",
        "עב",
    ),
    *("null", "None", "0", "-1", "x" * 1000, "X" * 1000, "é" * 1000, "😀" * 1000),
)

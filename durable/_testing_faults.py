"""A store that fails, delays and loses replies on demand, and counts what is asked of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Literal, TypeAlias, TypeVar, cast

from durable._errors import StoreError
from durable.store import (
    Append,
    Claim,
    Claimed,
    Deposit,
    Guarantees,
    Head,
    Journal,
    KeyValueStore,
    ListQuery,
    Refusal,
    RunLog,
    SwappingStore,
)

T = TypeVar("T")
When: TypeAlias = Literal["before", "after"]


class Gate(asyncio.Event):
    """Holds a call until it is set; ``reached`` is set as soon as a call waits here."""

    def __init__(self) -> None:
        super().__init__()
        self.reached: asyncio.Event = asyncio.Event()


class _Fault:
    """What happens to the next calls of some operations. ``times`` None: to all of them."""

    def __init__(
        self, operations: Collection[str], when: When, times: int | None, skip: int
    ) -> None:
        self.operations = operations
        self.when = when
        self.times = times
        self.skip = skip
        self.error: BaseException | type[BaseException] | None = None
        self.gate: Gate | None = None

    def takes(self, operation: str) -> bool:
        """Return whether this call is one that it happens to, and count it."""
        if "*" not in self.operations and operation not in self.operations:
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True

    async def happen(self, operation: str, key: str) -> None:
        """Hold the call, or raise."""
        if self.gate is not None:
            self.gate.reached.set()
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        if self.gate is None:
            raise StoreError(operation, key, "it was made to fail")


class FlakyStore:
    """Wraps a store and does to its calls what a test asks for.

    It offers what the wrapped store offers: the five methods, ``swap`` and the journal's methods
    if they are there. Operations are named by their methods; ``"*"`` is all of them.
    ``calls`` counts the calls by name, failed ones included. ``written`` and ``read_back`` count
    the characters of values and lines that reached the store and came back.
    """

    def __new__(cls, store: KeyValueStore | Journal) -> FlakyStore:
        """Make an object that has the methods which the wrapped store has."""
        kinds: list[type] = []
        if isinstance(store, Journal):
            kinds.append(_FlakyJournal)
        if isinstance(store, SwappingStore):
            kinds.append(_FlakySwap)
        made = type(cls.__name__, (*kinds, cls), {}) if kinds else cls
        return cast("FlakyStore", object.__new__(made))

    def __init__(self, store: KeyValueStore | Journal) -> None:
        self.wrapped: Any = store
        self.calls: Counter[str] = Counter()
        self.written: int = 0
        self.read_back: int = 0
        self._faults: list[_Fault] = []

    def __repr__(self) -> str:
        return f"FlakyStore({self.wrapped!r})"

    def fail(
        self,
        *operations: str,
        times: int | None = 1,
        skip: int = 0,
        when: When = "before",
        error: BaseException | type[BaseException] | None = None,
    ) -> None:
        """Let the next ``times`` calls of ``operations`` fail (None: all of them, for good).

        ``skip`` calls go well first. ``when="after"`` loses the reply: the call has had its effect.
        ``error`` is what is raised; a ``StoreError`` by default.
        """
        fault = _Fault(operations or ("*",), when, times, skip)
        fault.error = error
        self._faults.append(fault)

    def hold(
        self, *operations: str, times: int | None = 1, skip: int = 0, when: When = "before"
    ) -> Gate:
        """Hold the next calls of ``operations``, before or after their effect.

        Returns the event that lets them go on once it's set; ``await gate.reached.wait()`` returns
        as soon as one of them waits.
        """
        fault = _Fault(operations or ("*",), when, times, skip)
        fault.gate = Gate()
        self._faults.append(fault)
        return fault.gate

    def heal(self) -> None:
        """Take back all faults that were asked for; held calls go on."""
        for fault in self._faults:
            if fault.gate is not None:
                fault.gate.set()
        self._faults.clear()

    def reset(self) -> None:
        """Let all counts begin at 0."""
        self.calls.clear()
        self.written = self.read_back = 0

    async def get(self, key: str) -> str | None:
        """Return the value under ``key``, or None."""
        value: str | None = await self._call("get", key, lambda: self.wrapped.get(key))
        self.read_back += len(value or "")
        return value

    async def set(self, key: str, value: str, *, ttl: float | None = None) -> None:
        """Put ``value`` under ``key``."""
        await self._call("set", key, lambda: self.wrapped.set(key, value, ttl=ttl), len(value))

    async def delete(self, key: str) -> bool:
        """Remove ``key``; return whether it was there."""
        return await self._call("delete", key, lambda: self.wrapped.delete(key))

    async def exists(self, key: str) -> bool:
        """Return whether there is a value under ``key``."""
        return await self._call("exists", key, lambda: self.wrapped.exists(key))

    async def keys(self, pattern: str) -> list[str]:
        """Return the keys that match ``pattern``, sorted."""
        return await self._call("keys", pattern, lambda: self.wrapped.keys(pattern))

    async def aclose(self) -> None:
        """Close the wrapped store if it can be closed."""
        if hasattr(self.wrapped, "aclose"):
            await self.wrapped.aclose()

    async def _call(
        self, operation: str, key: str, effect: Callable[[], Awaitable[T]], size: int = 0
    ) -> T:
        self.calls[operation] += 1
        faults = [fault for fault in list(self._faults) if fault.takes(operation)]
        self._faults = [fault for fault in self._faults if fault.times != 0]
        for fault in faults:
            if fault.when == "before":
                await fault.happen(operation, key)
        result = await effect()
        self.written += size
        for fault in faults:
            if fault.when == "after":
                await fault.happen(operation, key)
        return result


class _FlakySwap(FlakyStore):
    """A flaky store whose wrapped store can swap."""

    async def swap(
        self, key: str, expected: str | None, value: str, *, ttl: float | None = None
    ) -> bool:
        """Put ``value`` under ``key`` if what is there is ``expected``."""
        return await self._call(
            "swap", key, lambda: self.wrapped.swap(key, expected, value, ttl=ttl), len(value)
        )


class _FlakyJournal(FlakyStore):
    """A flaky store whose wrapped store is a journal."""

    @property
    def guarantees(self) -> Guarantees:
        """What the wrapped store promises; but its calls may suspend."""
        found: Guarantees = self.wrapped.guarantees
        return Guarantees(leases=found.leases, durable=found.durable, note=found.note)

    async def claim(self, claim: Claim) -> Claimed | None:
        """Claim a run."""
        return await self._call(
            "claim", claim.run_id, lambda: self.wrapped.claim(claim), _size(claim.begin)
        )

    async def append(self, batch: Sequence[Append]) -> Sequence[int | Refusal]:
        """Add lines to the logs of several runs."""
        size = sum(_size(member.lines) for member in batch)
        key = batch[0].run_id if batch else ""
        return await self._call("append", key, lambda: self.wrapped.append(batch), size)

    async def renew(self, run_id: str, owner: str, fence: int, lease: float) -> int:
        """Let the lease run on."""
        return await self._call(
            "renew", run_id, lambda: self.wrapped.renew(run_id, owner, fence, lease)
        )

    async def read(self, run_id: str, *, after: int = 0) -> RunLog | None:
        """Return the run, or None."""
        log: RunLog | None = await self._call(
            "read", run_id, lambda: self.wrapped.read(run_id, after=after)
        )
        self.read_back += 0 if log is None else _size(log.lines)
        return log

    async def deposit(self, run_id: str, key: str, value: str) -> Deposit | None:
        """Put ``value`` into the run's inbox."""
        return await self._call(
            "deposit", run_id, lambda: self.wrapped.deposit(run_id, key, value), len(value)
        )

    async def list_runs(self, query: ListQuery) -> list[Head]:
        """Return the heads that ``query`` describes."""
        return await self._call("list_runs", query.prefix, lambda: self.wrapped.list_runs(query))

    async def delete_run(self, run_id: str, *, held: bool = False) -> bool:
        """Remove a run."""
        return await self._call(
            "delete_run", run_id, lambda: self.wrapped.delete_run(run_id, held=held)
        )

    async def purge(self, limit: int = 100) -> int:
        """Remove expired runs and keys."""
        return await self._call("purge", "", lambda: self.wrapped.purge(limit))


def _size(lines: Sequence[str]) -> int:
    return sum(map(len, lines))

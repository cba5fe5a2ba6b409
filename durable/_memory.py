"""``MemoryStore``: both contracts on dictionaries; the reference that other stores are held to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from durable._clock import clock
from durable._errors import LeaseLostError, RunBusyError, StoreError
from durable._keys import check_key, check_text, check_ttl, key_matcher
from durable._leases import (
    HeadRow,
    change_head,
    check_holder,
    decide_claim,
    extend_lease,
    is_expired,
    matches,
    owns,
    removes,
    takes_deposits,
)
from durable.store import (
    Append,
    Claim,
    Claimed,
    Deposit,
    Guarantees,
    Head,
    ListQuery,
    Refusal,
    RunLog,
)

_GUARANTEES = Guarantees(
    leases="process", durable=False, note="what is in memory ends with the process", inline=True
)


class _Run:
    """One run: its head, the lines since its last epoch, and its inbox."""

    __slots__ = ("inbox", "lines", "row")

    def __init__(self, row: HeadRow) -> None:
        self.row = row
        self.lines: list[str] = []
        self.inbox: dict[str, str] = {}

    @property
    def sequence(self) -> int:
        return self.row.first + len(self.lines) - 1

    def log(self, now: float, after: int = 0) -> RunLog:
        first = max(self.row.first, after + 1)
        return RunLog(
            head=self.row.head(now, self.sequence),
            lines=tuple(self.lines[first - self.row.first :]),
            first=first,
            inbox=dict(self.inbox),
        )


class MemoryStore:
    """Keeps everything in this process's memory: for tests, and for runs that need no durability.

    Also the reference implementation of ``KeyValueStore`` and ``Journal``.
    """

    def __init__(self, **options: Any) -> None:
        if options:
            raise TypeError(f"MemoryStore takes no options, got {', '.join(sorted(options))}")
        self._values: dict[str, tuple[str, float | None]] = {}
        self._runs: dict[str, _Run] = {}

    @classmethod
    def from_url(cls, url: str, **options: Any) -> MemoryStore:
        """Return a new, empty store; the URL is ``memory://``."""
        if url != "memory://":
            raise ValueError(f"a memory store's URL is 'memory://', got {url!r}")
        return cls(**options)

    def __repr__(self) -> str:
        return "MemoryStore()"

    async def __aenter__(self) -> MemoryStore:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Do nothing: there is nothing to close. The data stay until the object goes."""

    # The five methods.

    async def get(self, key: str) -> str | None:
        """Return the value under ``key``, or None."""
        return self._live(check_key(key))

    async def set(self, key: str, value: str, *, ttl: float | None = None) -> None:
        """Put ``value`` under ``key``, for ``ttl`` seconds or for good."""
        check_key(key)
        check_text(value, "a value")
        expires = None if check_ttl(ttl) is None else clock().time() + (ttl or 0)
        self._values[key] = (value, expires)

    async def delete(self, key: str) -> bool:
        """Remove ``key``; return whether it was there."""
        present = self._live(check_key(key)) is not None
        self._values.pop(key, None)
        return present

    async def exists(self, key: str) -> bool:
        """Return whether there is a value under ``key``."""
        return self._live(check_key(key)) is not None

    async def keys(self, pattern: str) -> list[str]:
        """Return the keys that match ``pattern``, sorted."""
        fits = key_matcher(pattern)
        return sorted(
            key for key in list(self._values) if fits(key) and self._live(key) is not None
        )

    async def swap(
        self, key: str, expected: str | None, value: str, *, ttl: float | None = None
    ) -> bool:
        """Put ``value`` under ``key`` if what is there is ``expected``; return whether it was."""
        check_text(value, "a value")
        check_ttl(ttl)
        if self._live(check_key(key)) != expected:
            return False
        await self.set(key, value, ttl=ttl)
        return True

    def _live(self, key: str) -> str | None:
        entry = self._values.get(key)
        if entry is None:
            return None
        value, expires = entry
        if expires is not None and expires <= clock().time():
            del self._values[key]
            return None
        return value

    # The journal.

    @property
    def guarantees(self) -> Guarantees:
        """One process, and gone with it."""
        return _GUARANTEES

    async def claim(self, claim: Claim) -> Claimed | None:
        """Claim a run, creating it if need be."""
        now = clock().time()
        run = self._run(claim.run_id, now)
        row = None if run is None else run.row
        decision = decide_claim(row, claim, now, 0 if run is None else run.sequence)
        if decision.row is None:
            return None
        if run is None:
            run = self._runs[claim.run_id] = _Run(decision.row)
        if decision.epoch:
            run.lines[:] = claim.begin
        return Claimed(decision.granted, run.log(now), now, decision.before, decision.took_over)

    async def append(self, batch: Sequence[Append]) -> Sequence[int | Refusal]:
        """Add lines to the logs of several runs."""
        now = clock().time()
        return [self._append(member, now) for member in batch]

    def _append(self, member: Append, now: float) -> int | Refusal:
        run = self._run(member.run_id, now)
        if run is None and removes(member):
            return 0
        if run is None or not owns(run.row, member.owner, member.fence):
            return LeaseLostError(member.run_id, member.fence)
        lines, position = run.lines, member.first - run.row.first
        if position != len(lines):
            there = tuple(lines[position : position + len(member.lines)]) if position >= 0 else ()
            if there != member.lines:
                return StoreError("append", member.run_id, "the log has other lines there")
        elif member.epoch:
            lines[:] = member.lines
            run.row.first = member.first
        else:
            lines.extend(member.lines)
        if member.head is not None and not change_head(run.row, member.head, now):
            del self._runs[member.run_id]
        return run.row.inbox

    async def renew(self, run_id: str, owner: str, fence: int, lease: float) -> int:
        """Let the lease run on."""
        now = clock().time()
        run = self._run(run_id, now)
        row = check_holder(None if run is None else run.row, run_id, owner, fence)
        extend_lease(row, lease, now)
        return row.inbox

    async def read(self, run_id: str, *, after: int = 0) -> RunLog | None:
        """Return the run, or None."""
        now = clock().time()
        run = self._run(run_id, now)
        return None if run is None else run.log(now, after)

    async def deposit(self, run_id: str, key: str, value: str) -> Deposit | None:
        """Put ``value`` into the run's inbox; the first one wins."""
        run = self._run(run_id, clock().time())
        if run is None:
            return None
        if not takes_deposits(run.row):
            return Deposit(False, None, run.row.status)
        stands = run.inbox.setdefault(key, value)
        run.row.inbox = len(run.inbox)
        return Deposit(stands == value, stands, run.row.status)

    async def list_runs(self, query: ListQuery) -> list[Head]:
        """Return the heads that ``query`` describes, ordered by run id."""
        now = clock().time()
        found = sorted(self._matching(query, now), key=lambda run: run.row.run_id)
        return [run.row.head(now, run.sequence) for run in found[: query.limit]]

    def _matching(self, query: ListQuery, now: float) -> Iterable[_Run]:
        for run in self._runs.values():
            if not is_expired(run.row, now) and matches(run.row, query, now):
                yield run

    async def delete_run(self, run_id: str, *, held: bool = False) -> bool:
        """Remove a run; return whether it was there."""
        now = clock().time()
        run = self._run(run_id, now)
        if run is None:
            return False
        if run.row.lease_until > now and not held:
            raise RunBusyError(run_id, run.row.lease_until - now)
        del self._runs[run_id]
        return True

    async def purge(self, limit: int = 100) -> int:
        """Remove up to ``limit`` expired runs and keys."""
        now = clock().time()
        runs = [key for key, run in self._runs.items() if is_expired(run.row, now)][:limit]
        for key in runs:
            del self._runs[key]
        expired = [key for key, (_, at) in self._values.items() if at is not None and at <= now]
        keys = expired[: limit - len(runs)]
        for key in keys:
            del self._values[key]
        return len(runs) + len(keys)

    def _run(self, run_id: str, now: float) -> _Run | None:
        run = self._runs.get(run_id)
        if run is not None and is_expired(run.row, now):
            del self._runs[run_id]
            return None
        return run

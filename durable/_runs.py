"""``Runs``: to look at what a store holds, and to steer it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

import msgspec

from durable._begin import read_records
from durable._commit import persistently
from durable._errors import DurableError, RunBusyError, RunCancelledError, RunNotFoundError
from durable._format import format_line, line_seed
from durable._options import check_id, seconds
from durable._owners import owner_id
from durable._records import ENDED, Forgotten, RunRecords, Scope, Status
from durable._session import session_for
from durable._state import ResumeState, state_of
from durable.store import Append, Claim, Claimed, Head, HeadChange, KeyValueStore, ListQuery

_STATUSES = ("pending", "running", "paused", "failed", "finished", "cancelled")
_CHANGEABLE = frozenset({"pending", "running", "paused", "failed", "finished"})


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run.

    Times are seconds since the epoch by the store's clock. ``held``: for how many seconds its
    owner's lease still runs, 0 when nobody holds it. ``error``: the last failure. What follows
    ``children`` is filled in by ``Runs.get`` alone: ``steps`` counts the completed ones,
    ``result`` is the result as plain JSON types, ``children`` are the child runs, named
    ``parent/key``.
    """

    run_id: str
    name: str
    status: Status
    version: int = 1
    attempts: int = 0
    recoveries: int = 0
    fence: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0
    held: float = 0.0
    wake_at: float | None = None
    expires_at: float | None = None
    error: str = ""
    children: tuple[RunInfo, ...] = ()
    steps: int = 0
    result: Any = None
    variables: Mapping[str, Any] = {}


class Runs:
    """The runs in a store (a store, its URL, or None for the environment's)."""

    def __init__(self, store: KeyValueStore | str | None = None) -> None:
        self._session = session_for(store)
        self._journal = self._session.journal

    def __repr__(self) -> str:
        return f"Runs({self._session.store!r})"

    async def list(
        self,
        status: Status | Iterable[Status] | None = None,
        name: str | None = None,
        prefix: str = "",
        limit: int = 100,
        after: str | None = None,
    ) -> list[RunInfo]:
        """Return runs ordered by id.

        ``status``: of this status, or one of these. ``name``: of this function. ``prefix``: ids
        that begin with it, literally. At most ``limit``, beginning behind the id ``after``.
        Raises ``ValueError`` for an unknown status or a limit below 1.
        """
        query = ListQuery(
            status=_statuses(status),
            names=None if name is None else frozenset({name}),
            prefix=prefix,
            after=after,
            limit=check_limit(limit),
        )
        heads = await persistently(self._journal.list_runs, query)
        return [_info(head) for head in heads]

    async def get(self, run_id: str) -> RunInfo:
        """Return the run, or the child run ``parent/key``; raise ``RunNotFoundError``."""
        head, records, path = await self._read(run_id)
        info = _details(head, records)
        for key in path:
            child_id = f"{info.run_id}/{key}"
            info = next(each for each in info.children if each.run_id == child_id)
        return info

    async def state(self, run_id: str) -> ResumeState:
        """Return what is recorded of the run; raise ``RunNotFoundError``."""
        head, records, path = await self._read(run_id)
        version = records.begin.version if records.begin else 1
        name = "" if path else head.name
        return state_of(records.root.at(path), name, version)

    async def delete(self, run_id: str) -> bool:
        """Remove the run with everything it has; return whether there was one.

        Raises ``RunBusyError`` while somebody executes it.
        """
        check_id(run_id, "a run id")
        return await persistently(self._journal.delete_run, run_id)

    async def delete_finished(self, older_than: float | timedelta) -> int:
        """Remove the runs that ended longer ago than ``older_than``; return how many.

        ``older_than`` is in seconds, or a timedelta; 0 means all of them.
        """
        age, removed, after = seconds(older_than, "older_than", zero=True), 0, None
        while True:
            query = ListQuery(status=ENDED, before=age, after=after, limit=100)
            heads = await persistently(self._journal.list_runs, query)
            for head in heads:
                with suppress(RunBusyError):  # it has begun anew meanwhile
                    removed += await self.delete(head.run_id)
            if len(heads) < query.limit:
                return removed
            after = heads[-1].run_id

    async def forget_step(self, run_id: str, key: str) -> None:
        """Take a step's record back: the next pass runs it again.

        What the step asked for goes with it, child runs included; the other steps stay. A
        finished run is pending then, and goes on. Raises ``RunNotFoundError``, ``RunBusyError``
        while somebody executes it, ``RunCancelledError``, ``LookupError`` if no such step is
        recorded, and ``ValueError`` for a child run, whose parent's step is to be forgotten.
        """
        head, records, path = await self._read(run_id)
        if path:
            raise ValueError(
                f"{run_id!r} is a child run; forget the step {path[0]!r} of {head.run_id!r}"
            )
        _check_recorded(run_id, records.root, key)
        claim = Claim(
            run_id=run_id,
            name=head.name,
            owner=owner_id(),
            lease=30.0,
            statuses=_CHANGEABLE,
            version=head.version,
        )
        claimed = await persistently(self._journal.claim, claim)
        if claimed is None:
            raise RunNotFoundError(run_id)
        if not claimed.granted:
            if claimed.log.head.status == "cancelled":
                raise RunCancelledError(run_id)
            raise RunBusyError(run_id, claimed.log.head.held)
        await self._append_forgotten(claim, claimed, key, head)

    async def _append_forgotten(
        self, claim: Claim, claimed: Claimed, key: str, before: Head
    ) -> None:
        records = await read_records(self._journal, claimed.log)
        record = Forgotten(key=key, at=round(claimed.now, 6))
        line = format_line(record, line_seed(claim.run_id), records.sequence + 1)
        change = HeadChange(
            status="pending" if before.status in ENDED else before.status,
            error=before.error,
            release=True,
            expires_in=records.begin.ttl if records.begin else None,
        )
        append = Append(
            claim.run_id,
            claim.owner,
            claimed.log.head.fence,
            claimed.log.first + records.sequence,
            (line,),
            change,
        )
        (outcome,) = await persistently(self._journal.append, (append,))
        if isinstance(outcome, DurableError):
            raise outcome

    async def _read(self, run_id: str) -> tuple[Head, RunRecords, tuple[str, ...]]:
        """Return the head and records of the run, or of the run that ``run_id`` is a child of.

        The path leads from that run to the child.
        """
        check_id(run_id, "a run id")
        candidate = run_id
        while candidate:
            log = await persistently(self._journal.read, candidate)
            if log is not None:
                records = await read_records(self._journal, log)
                path = _path_to(records.root, run_id[len(candidate) + 1 :])
                if path is not None:
                    return log.head, records, path
            candidate = candidate.rpartition("/")[0]
        raise RunNotFoundError(run_id)


def _path_to(scope: Scope, rest: str) -> tuple[str, ...] | None:
    """Return the keys that lead from ``scope`` to the child run that ``rest`` names."""
    if not rest:
        return ()
    for key, child in scope.children.items():
        if rest == key:
            return (key,)
        if rest.startswith(f"{key}/"):
            path = _path_to(child, rest[len(key) + 1 :])
            if path is not None:
                return (key, *path)
    return None


def _info(head: Head) -> RunInfo:
    shared = set(RunInfo.__struct_fields__) & set(Head.__struct_fields__)
    return RunInfo(**{name: getattr(head, name) for name in shared})


def _details(head: Head, records: RunRecords) -> RunInfo:
    info = _info(head)
    ended = records.ended if head.status == "finished" else None
    encoded = records.begin is not None and records.begin.codec
    result = None
    if ended is not None and ended.stored and not encoded:
        result = msgspec.json.decode(ended.stored)
    return msgspec.structs.replace(
        info,
        steps=len(records.root.steps),
        result=result,
        variables=_variables(records.root),
        children=_children(info, records.root),
    )


def _children(parent: RunInfo, scope: Scope) -> tuple[RunInfo, ...]:
    found: list[RunInfo] = []
    for key, child in scope.children.items():
        record = scope.steps.get(key)
        info = msgspec.structs.replace(
            parent,
            run_id=f"{parent.run_id}/{key}",
            name=record.function if record else "",
            status="finished" if record else parent.status,
            steps=len(child.steps),
            result=record.value if record else None,
            variables=_variables(child),
            children=(),
        )
        found.append(msgspec.structs.replace(info, children=_children(info, child)))
    return tuple(found)


def _variables(scope: Scope) -> dict[str, Any]:
    return {name: msgspec.json.decode(stored) for name, stored in scope.variables.items()}


def _check_recorded(run_id: str, scope: Scope, key: str) -> None:
    if key in scope.steps or key in scope.attempts or key in scope.children:
        return
    known = ", ".join(map(repr, list(scope.steps)[:10])) or "none"
    raise LookupError(f"run {run_id!r} has no recorded step {key!r}; recorded: {known}")


def _statuses(status: Status | Iterable[Status] | None) -> frozenset[str] | None:
    if status is None:
        return None
    given = frozenset({status} if isinstance(status, str) else status)
    for each in given:
        if each not in _STATUSES:
            raise ValueError(f"unknown status {each!r}; there are {', '.join(_STATUSES)}")
    return given


def check_limit(limit: int) -> int:
    """Return ``limit`` if it is an int of at least 1."""
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be an int, got {type(limit).__name__}")
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    return limit

"""``recover``: going on with the runs that a dead process left behind."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from durable._commit import persistently
from durable._errors import Paused, RunBusyError, RunCancelledError, RunNotFoundError
from durable._events import logger
from durable._execute import ParkedError
from durable._function import DurableFunction
from durable._owners import is_dead
from durable._runs import check_limit
from durable._session import Session, session_for
from durable.store import KeyValueStore, ListQuery

#: Runs that are gone on with at once.
_AT_ONCE = 16

_NOT_OURS = (RunBusyError, RunCancelledError, RunNotFoundError)


class RecoveryReport(msgspec.Struct, frozen=True, kw_only=True):
    """What ``recover`` did, by run id.

    ``finished``: went on to their end. ``paused``: went on until a question. ``failed``: raised,
    or couldn't be read; the error is given. ``parked``: taken from dead processes more often
    than ``max_recoveries``, and marked as failed. ``skipped``: somebody else was quicker.
    """

    finished: tuple[str, ...] = ()
    paused: tuple[str, ...] = ()
    failed: dict[str, Exception] = {}
    parked: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


class _Tally:
    def __init__(self) -> None:
        self.finished: list[str] = []
        self.paused: list[str] = []
        self.failed: dict[str, Exception] = {}
        self.parked: list[str] = []
        self.skipped: list[str] = []

    def report(self) -> RecoveryReport:
        return RecoveryReport(
            finished=tuple(self.finished),
            paused=tuple(self.paused),
            failed=self.failed,
            parked=tuple(self.parked),
            skipped=tuple(self.skipped),
        )


async def recover(
    *functions: DurableFunction[..., Any],
    store: KeyValueStore | str | None = None,
    limit: int | None = None,
) -> RecoveryReport:
    """Go on with every unfinished run of ``functions`` that nobody alive holds.

    Runs are resumed with the arguments stored when they began. ``store``: look there instead of
    in each function's own store. ``limit``: take at most so many runs. One run's failure, or
    unreadable record, doesn't keep the others from recovery. Can be repeated at any time, by
    several processes at once. Raises ``TypeError`` for what isn't a durable function,
    ``ValueError`` for a limit below 1, ``StoreError`` if a store can't be listed.
    """
    for function in functions:
        if not isinstance(function, DurableFunction):
            raise TypeError(f"recover takes durable functions, got {type(function).__name__}")
    tally, left = _Tally(), None if limit is None else check_limit(limit)
    for function in functions:
        session = function.definition.session() if store is None else session_for(store)
        run_ids = await _abandoned(session, function.name, left)
        if left is not None:
            left -= len(run_ids)
        gate = asyncio.Semaphore(_AT_ONCE)
        await asyncio.gather(
            *(_recover_one(function, run_id, session, tally, gate) for run_id in run_ids)
        )
    return tally.report()


async def _abandoned(session: Session, name: str, limit: int | None) -> list[str]:
    found: list[str] = []
    after: str | None = None
    while limit is None or len(found) < limit:
        query = ListQuery(
            status=frozenset({"pending", "running"}),
            names=frozenset({name}),
            after=after,
            limit=100,
        )
        heads = await persistently(session.journal.list_runs, query)
        found += [head.run_id for head in heads if not head.held or is_dead(head.owner)]
        if len(heads) < query.limit:
            break
        after = heads[-1].run_id
    return found[:limit]


async def _recover_one(
    function: DurableFunction[..., Any],
    run_id: str,
    session: Session,
    tally: _Tally,
    gate: asyncio.Semaphore,
) -> None:
    async with gate:
        try:
            await function.recover_run(run_id, session)
        except Paused:
            tally.paused.append(run_id)
        except ParkedError:
            tally.parked.append(run_id)
        except Exception as error:
            if isinstance(error, _NOT_OURS) and error.run_id == run_id:
                tally.skipped.append(run_id)
                return
            logger.warning(
                "recovering run %r failed: %s",
                run_id,
                type(error).__name__,
                extra={"run_id": run_id},
            )
            tally.failed[run_id] = error
        else:
            tally.finished.append(run_id)

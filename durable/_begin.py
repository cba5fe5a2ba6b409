"""How a pass begins: claim, read, check, and only then execute."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from durable._commit import persistently
from durable._definition import Definition
from durable._errors import (
    DurableError,
    RunBusyError,
    RunCancelledError,
    RunMismatchError,
    RunNotFoundError,
    StateFormatError,
    VersionMismatchError,
)
from durable._events import ArgumentsChanged, RunBegun, RunRestarted, RunTakenOver, is_wanted
from durable._format import fold_lines, format_lines
from durable._options import StateSource
from durable._owners import owner_id, random_part
from durable._records import ENDED, Ended, Pass, Record, RunRecords, Status, StoredError
from durable._run import Run, warn
from durable._session import Session
from durable._state import ResumeState, state_of, state_records
from durable._tasks import uninterrupted
from durable._writer import LogWriter
from durable.store import Append, Claim, Claimed, HeadChange, Journal, RunLog

#: Who asks: ``run``, a plain call, ``resume``, or ``recover``.
Mode: TypeAlias = Literal["run", "plain", "resume", "recover"]

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]

_UNFINISHED = frozenset({"pending", "running", "paused", "failed"})
_RECOVERABLE = frozenset({"pending", "running"})


class Opened(msgspec.Struct):
    """What an id led to: a pass to execute, or (``ended``) a run that has ended."""

    run: Run | None = None
    arguments: Arguments = ((), {})
    ended: Ended | None = None
    recoveries: int = 0


async def open_run(
    definition: Definition,
    run_id: str,
    mode: Mode,
    arguments: Arguments | None = None,
    session: Session | None = None,
) -> Opened:
    """Claim the run and return its pass, ready to execute, or what it ended with.

    Raises ``RunBusyError``, ``RunNotFoundError``, ``RunMismatchError``, ``RunCancelledError``,
    ``VersionMismatchError``, ``StateFormatError`` or ``StoreError``; the run is then as it was.
    """
    session = session or definition.session()
    journal = session.journal
    claim = await _claim_of(definition, run_id, mode, arguments, journal)
    claimed = await _claim(journal, claim)
    if claimed is None:
        raise RunNotFoundError(run_id)
    if not claimed.granted:
        return await _refused(definition, journal, claimed, mode)
    run: Run | None = None
    try:
        records = await read_records(journal, claimed.log)
        run = _make_run(definition, session, claim, claimed, records)
        return await _prepare(definition, run, claimed, arguments)
    except BaseException:
        await uninterrupted(_give_back(journal, claim, claimed, run))
        raise


async def _claim(journal: Journal, claim: Claim) -> Claimed | None:
    """Return the answer to ``claim``; whoever is cancelled meanwhile leaves no lease behind."""
    claimed: Claimed | None = None

    async def ask() -> None:
        nonlocal claimed
        claimed = await persistently(journal.claim, claim)

    try:
        await uninterrupted(ask())
    except asyncio.CancelledError:
        if claimed is not None and claimed.granted:
            await uninterrupted(_give_back(journal, claim, claimed, None))
        raise
    return claimed


async def submit_run(definition: Definition, run_id: str, arguments: Arguments) -> None:
    """Record the run as pending; one that is recorded already is left as it is.

    Raises ``NotSerializableError`` if the arguments can't be stored, ``RunMismatchError`` if the
    id belongs to another function, ``RunCancelledError``.
    """
    journal = definition.session().journal
    begin = definition.begin(run_id, *arguments)
    if not begin.arguments:
        definition.stored_arguments(run_id, begin)
    seed = await _seed_records(definition, run_id, journal)
    claim = Claim(
        run_id=run_id,
        name=definition.name,
        owner=owner_id(),
        lease=0.0,
        statuses=frozenset(),
        begin=format_lines(run_id, [begin, *seed]),
        version=definition.options.version,
        ttl=definition.ttl,
        unheld=True,
    )
    claimed = await persistently(journal.claim, claim)
    if claimed is None or claimed.granted:
        return
    head = claimed.log.head
    if head.name != definition.name:
        raise RunMismatchError(run_id, head.name, definition.name)
    if head.status == "cancelled":
        raise RunCancelledError(run_id)


async def read_records(journal: Journal, log: RunLog) -> RunRecords:
    """Return a run's records: the first page, given, and whatever pages follow."""
    run_id = log.head.run_id
    records = fold_lines(run_id, log.lines)
    if not log.lines:
        raise StateFormatError(f"run {run_id!r}", "its log is empty")
    first, read = log.first, len(log.lines)
    while log.more:
        after = first + read - 1
        page = await persistently(journal.read, run_id, after=after)
        if page is None or page.first != after + 1 or not page.lines:
            raise StateFormatError(f"run {run_id!r}", f"its log ends before record {read + 1}")
        fold_lines(run_id, page.lines, records)
        read += len(page.lines)
        log = page
    return records


async def _claim_of(
    definition: Definition,
    run_id: str,
    mode: Mode,
    arguments: Arguments | None,
    journal: Journal,
) -> Claim:
    begin: tuple[str, ...] = ()
    if arguments is not None:
        first = definition.begin(run_id, *arguments)
        begin = format_lines(run_id, [first, *await _seed_records(definition, run_id, journal)])
    return Claim(
        run_id=run_id,
        name=definition.name,
        owner=owner_id(),
        lease=definition.options.lease,
        statuses=_RECOVERABLE if mode == "recover" else _UNFINISHED,
        begin=begin,
        restart=ENDED if mode == "plain" else frozenset(),
        version=definition.options.version,
        ttl=definition.ttl,
        reset=mode != "recover",
    )


async def _seed_records(definition: Definition, run_id: str, journal: Journal) -> Iterable[Record]:
    """Return what the option ``resume_state`` gives to a run that has no records yet."""
    source = definition.options.resume_state
    if source is None or await persistently(journal.read, run_id) is not None:
        return ()
    return state_records(await _seed(source))


async def _seed(source: StateSource) -> ResumeState:
    state = source if isinstance(source, ResumeState) else source()
    if inspect.isawaitable(state):
        state = await state
    if state is None:
        return ResumeState()
    if not isinstance(state, ResumeState):
        raise TypeError(f"resume_state must give a ResumeState or None, got {type(state).__name__}")
    return state


async def _refused(
    definition: Definition, journal: Journal, claimed: Claimed, mode: Mode
) -> Opened:
    head = claimed.log.head
    if head.name != definition.name:
        raise RunMismatchError(head.run_id, head.name, definition.name)
    if head.held > 0 or head.status not in ENDED or mode == "recover":
        raise RunBusyError(head.run_id, head.held)
    if head.status == "cancelled":
        raise RunCancelledError(head.run_id)
    records = await read_records(journal, claimed.log)
    if records.begin is not None:
        definition.check_codec(head.run_id, records.begin)
    if records.ended is None or records.ended.status != "finished":
        raise StateFormatError(f"run {head.run_id!r}", "it is finished, but has no result")
    return Opened(ended=records.ended)


def _make_run(
    definition: Definition,
    session: Session,
    claim: Claim,
    claimed: Claimed,
    records: RunRecords,
) -> Run:
    head, options = claimed.log.head, definition.options
    opening = Pass(
        number=head.attempts,
        at=round(claimed.now, 6),
        fence=head.fence,
        process=f"{socket.gethostname()}:{os.getpid()}",
        version=options.version,
        takeover=claimed.took_over,
    )
    writer = LogWriter(
        session.journal,
        session.here().commits,
        claim.run_id,
        claim.owner,
        head.fence,
        options.durability,
        first=claimed.log.first,
        present=records.sequence,
        opening=opening,
    )
    writer.inbox = head.inbox
    return Run(
        claim.run_id,
        options,
        session,
        records,
        writer,
        owner=claim.owner,
        fence=head.fence,
        attempt=head.attempts,
        now=claimed.now,
    )


async def _give_back(journal: Journal, claim: Claim, claimed: Claimed, run: Run | None) -> None:
    """Release a run that isn't executed after all; its log is left as it is."""
    head = claimed.log.head
    sequence, error = head.sequence, None
    if run is not None:
        await run.let_go()
        sequence = run.writer.sequence
        if run.records.ended is not None and run.records.ended.error is not None:
            error = error_text(run.records.ended.error)
    status: Status = claimed.before or "pending"
    change = HeadChange(
        status="pending" if status in ENDED else status,
        error=error,
        release=True,
        expires_in=claim.ttl,
    )
    release = Append(claim.run_id, claim.owner, head.fence, sequence + 1, (), change)
    try:
        await journal.append((release,))
    except DurableError:
        return  # the lease lapses by itself, and the first error is the one to show


def error_text(error: StoredError) -> str:
    """Return what the head says of a failure."""
    return f"{error.type_name}: {error.message}"[:500]


async def _prepare(
    definition: Definition, run: Run, claimed: Claimed, arguments: Arguments | None
) -> Opened:
    run.hold()
    definition.check_codec(run.id, run.begin)
    given = arguments
    if arguments is None:
        arguments = definition.stored_arguments(run.id, run.begin)
    if run.begin.version != run.options.version:
        await _change_version(definition, run, given)
    if given is not None and claimed.before is not None:
        await _compare_arguments(definition, run, given)
    head = claimed.log.head
    if claimed.took_over:
        await run.publish(RunTakenOver(run_id=run.id, fence=run.fence, recoveries=head.recoveries))
    if is_wanted(RunBegun, run.options.on_event):
        state = state_of(run.records.root, definition.name, run.options.version)
        await run.publish(
            RunBegun(run_id=run.id, name=definition.name, attempt=run.attempt, state=state)
        )
    return Opened(run=run, arguments=arguments, recoveries=head.recoveries)


async def _compare_arguments(definition: Definition, run: Run, arguments: Arguments) -> None:
    now, recorded = definition.fingerprint_or_nothing(*arguments), run.begin.fingerprint
    if now and recorded and now != recorded:
        await run.publish(ArgumentsChanged(run_id=run.id))
        warn(f"run {run.id!r} was begun with other arguments; it goes on with those of this call")


async def _change_version(definition: Definition, run: Run, arguments: Arguments | None) -> None:
    """Restart or migrate the run in one write, or refuse it."""
    policy, begin = run.options.on_version_mismatch, run.begin
    if policy == "raise":
        raise VersionMismatchError(run.id, begin.version, run.options.version)
    fresh = msgspec.structs.replace(begin, version=run.options.version, at=round(run.time(), 6))
    state = ResumeState()
    if policy == "restart":
        reason = "restart"
        if arguments is not None:
            fresh = definition.begin(run.id, *arguments)
        fresh = msgspec.structs.replace(fresh, incarnation=random_part(owner_id()))
    else:
        reason = "migrated"
        migrated = policy(state_of(run.records.root, definition.name, begin.version))
        if inspect.isawaitable(migrated):
            migrated = await migrated
        if not isinstance(migrated, ResumeState):
            raise TypeError(
                f"on_version_mismatch must return a ResumeState, got {type(migrated).__name__}"
            )
        state = migrated
    fresh = msgspec.structs.replace(fresh, reason=reason)
    await _begin_epoch(run, [fresh, *state_records(state)])
    await run.publish(RunRestarted(run_id=run.id, reason=reason))


async def _begin_epoch(run: Run, records: Sequence[Record]) -> None:
    change = HeadChange(status="running", version=run.options.version)
    await run.writer.replace(records, change)
    folded = RunRecords()
    folded.apply(records)
    run.adopt(folded)

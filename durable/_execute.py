"""Executing a pass, or a child run within it, to its end: whatever end that is."""

from __future__ import annotations

import asyncio
from typing import Any

from durable._begin import Arguments, Opened, error_text
from durable._definition import Definition
from durable._errors import DurableError, LeaseLostError
from durable._events import RunCompleted, RunFailed, RunInterrupted, StepsUnasked
from durable._options import Options
from durable._records import Ended
from durable._run import Call, Frame, Run, current_frame, warn
from durable._stored_errors import describe_error
from durable._tasks import uninterrupted
from durable.store import HeadChange

#: What belongs to a root run alone: a child shares its parent's.
_CHILD_IGNORES = frozenset(
    {
        "codec",
        "durability",
        "keep",
        "lease",
        "max_recoveries",
        "on_event",
        "on_version_mismatch",
        "resume_state",
        "store",
        "ttl",
    }
)


async def execute_run(definition: Definition, opened: Opened) -> Any:
    """Execute a pass and record its end; return the result as its stored form gives it."""
    run = opened.run
    if run is None:
        raise DurableError("there is no pass to execute")
    ttl = definition.ttl
    try:
        value = await _call(definition, run.root, opened.arguments)
        data, value = definition.result.store(value, f"the result of run {run.id!r}")
        await _report_unasked(run)
    except asyncio.CancelledError:
        await uninterrupted(_interrupted(run, ttl))
        raise
    except Exception as error:
        await uninterrupted(_failed(run, error, ttl))
        raise
    except BaseException:
        await uninterrupted(_interrupted(run, ttl))
        raise
    await uninterrupted(_finished(run, data))
    return value


class ParkedError(DurableError):
    """The run was taken from dead processes too often, and is marked as failed."""

    def __init__(self, run_id: str, recoveries: int) -> None:
        super().__init__(run_id, recoveries)
        self.run_id = run_id
        self.recoveries = recoveries

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r} was taken over from a dead process {self.recoveries} times and "
            "is parked as failed; resume it by hand when its cause is mended"
        )


async def park(definition: Definition, run: Run, recoveries: int) -> None:
    """Mark the run as failed instead of executing it, and raise ``ParkedError``."""
    error = ParkedError(run.id, recoveries)
    await uninterrupted(_failed(run, error, definition.ttl))
    raise error


async def execute_child(definition: Definition, arguments: Arguments) -> Any:
    """Execute a durable function as the step that the current frame is in."""
    frame = current_frame.get()
    if frame is None or frame.step is None:
        raise DurableError("a child run needs a step to be in")
    parent, run = frame.call, frame.call.run
    if ignored := _ignored(definition.options, run):
        warn(
            f"{definition.name} runs as a child of run {run.id!r}, whose store, lease and log it "
            f"shares; its own {', '.join(ignored)} are ignored"
        )
    call = Call(run, parent.scope.at((frame.step,)), definition.options)
    parent.children.append(call)
    try:
        value = await _call(definition, call, arguments, outer=frame)
    finally:
        parent.children.remove(call)
    parent.missed += [f"{frame.step}/{key}" for key in call.unasked()]
    return value


def _ignored(own: Options, run: Run) -> list[str]:
    """Return the options that a child run has in vain: given, and other than those of the run."""
    given = sorted(_CHILD_IGNORES & own.given)
    if own.store is run.session.store and "store" in given:
        given.remove("store")
    return [name for name in given if getattr(own, name) != getattr(run.options, name)]


async def _call(
    definition: Definition, call: Call, arguments: Arguments, outer: Frame | None = None
) -> Any:
    """Call the function within ``call``; no step of it is in flight any more at the end."""
    args, kwargs = arguments
    token = current_frame.set(Frame(call, None, outer))
    try:
        value = await definition.bound(*args, **kwargs)
    except asyncio.CancelledError:
        await _settle(call, cancel=True)
        raise
    except BaseException:
        await _settle(call, cancel=False)
        raise
    finally:
        current_frame.reset(token)
    await _settle(call, cancel=True)
    return value


async def _settle(call: Call, *, cancel: bool) -> None:
    if call.all_flights():
        await uninterrupted(call.settle(cancel=cancel))
    else:
        call.close()


async def _report_unasked(run: Run) -> None:
    if unasked := run.root.unasked():
        shown = ", ".join(map(repr, unasked[:10])) + (", …" if len(unasked) > 10 else "")
        await run.publish(StepsUnasked(run_id=run.id, steps=tuple(unasked)))
        warn(
            f"run {run.id!r} finished without asking for the recorded steps {shown}: were they "
            "renamed or removed?"
        )


async def _finished(run: Run, data: bytes) -> None:
    record = Ended(status="finished", at=round(run.time(), 6), stored=run.pack(data))
    change = HeadChange(status="finished", release=True, expires_in=run.options.keep)
    try:
        await _end(run, record, change)
    except DurableError as error:
        await run.publish(RunFailed(run_id=run.id, name=run.options.name, error=error))
        raise
    await run.publish_saved()
    await run.publish(RunCompleted(run_id=run.id, name=run.options.name))


async def _failed(run: Run, error: Exception, ttl: float | None) -> None:
    """Record the failure; raise what kept it from being recorded, unless it was just that."""
    stored = describe_error(error)
    record = Ended(status="failed", at=round(run.time(), 6), error=stored)
    change = HeadChange(status="failed", error=error_text(stored), release=True, expires_in=ttl)
    try:
        await _end(run, record, change)
    except DurableError as failure:
        if isinstance(error, type(failure)):
            return
        if failure.__cause__ is None:
            failure.__cause__ = error
        raise
    finally:
        await run.publish(RunFailed(run_id=run.id, name=run.options.name, error=error))


async def _end(run: Run, record: Ended, change: HeadChange) -> None:
    try:
        await run.end((record,), change)
    except LeaseLostError as lost:
        await run.lose(lost)
        raise


async def _interrupted(run: Run, ttl: float | None) -> None:
    await run.release("pending", ttl)
    await run.publish(RunInterrupted(run_id=run.id, name=run.options.name))

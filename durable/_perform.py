"""What asking for a step comes to: replay, drift, one flight, or doing the work now."""

from __future__ import annotations

import asyncio
from asyncio import get_running_loop
from typing import Any

import msgspec

from durable._attempt import Work, attempt_until_done
from durable._codec import TypeCodec
from durable._errors import DuplicateStepKeyError, StateFormatError, StepDriftError
from durable._events import (
    StepCompleted,
    StepDrifted,
    StepRenamed,
    StepRepeated,
    StepReplayed,
)
from durable._fingerprint import changed_arguments
from durable._options import check_id
from durable._plan import parameters_of
from durable._records import StepRecord
from durable._run import Call, Flight, Frame, current_frame, warn
from durable._stored_errors import rebuild_error


async def perform(frame: Frame, work: Work) -> Any:
    """Return the result of ``work`` as a step: the recorded one, or that of doing it now."""
    call, key = frame.call, work.key
    record = call.scope.steps.get(key)
    if key in call.asked:
        record = await _join(frame, work, record)
        if record is not None:
            return _load(call, work, record)
    elif record is not None:
        if record.expires_at is None or record.expires_at > call.run.time():
            if record.fingerprint != work.fingerprint or record.function != work.name:
                await _check_drift(call, work, record)
            else:
                call.asked[key] = None
            if call.run.observed:
                await _publish_replay(call, record)
            return _load(call, work, record)
        del call.scope.steps[key]  # its time to live is over
    elif work.settings.aliases and (old := _aliased(call, work)) is not None:
        work.key = old
        return await perform(frame, work)
    return await _execute(frame, work)


def _load(call: Call, work: Work, record: StepRecord) -> Any:
    if not record.stored:
        if record.error is None:
            raise StateFormatError(f"step {work.key!r}", "its record has neither value nor error")
        raise rebuild_error(record.error, work.settings.save_errors, work.key)
    return load_value(call, work.codec, record)


def load_value(call: Call, codec: TypeCodec, record: StepRecord) -> Any:
    """Return the value that ``record`` holds; raise ``StateFormatError`` if it doesn't fit."""
    stored: msgspec.Raw | bytes = record.stored
    if call.run.options.codec is not None:
        stored = call.run.unpack(record.stored, f"step {record.key!r}")
    try:
        return codec.load(stored, record.key)
    except StateFormatError as error:
        raise StateFormatError(
            f"step {record.key!r} of run {call.run.id!r}",
            f"{error.reason}; raise the function's version and migrate, or forget the step",
        ) from None


async def _publish_replay(call: Call, record: StepRecord) -> None:
    run = call.run
    await run.publish(StepReplayed(run_id=run.id, step=record.key, path=record.path, record=record))


def _aliased(call: Call, work: Work) -> str | None:
    """Return the recorded key that a step's former name made, if there is one."""
    name, scope = f"{work.name}:", call.scope
    if not work.key.startswith(name):
        return None
    rest = work.key.removeprefix(name)
    for alias in work.settings.aliases:
        key = f"{alias}:{rest}"
        if key in scope.steps or key in scope.attempts or key in call.asked:
            return key
    return None


async def _check_drift(call: Call, work: Work, record: StepRecord) -> None:
    """Raise or warn if ``record`` is of other work than ``work``."""
    run, key = call.run, work.key
    changed: tuple[str, ...] = ()
    if record.function:  # a value that was set by hand says nothing of the arguments
        changed = changed_arguments(record.fingerprint, work.fingerprint, *parameters_of(work.fn))
    if changed:
        if call.options.drift == "raise" and record.version == call.options.version:
            raise StepDriftError(run.id, key, changed, record.function, work.name)
        names = ", ".join(changed)
        warn(
            f"step {key!r} of run {run.id!r} was recorded for other arguments ({names}); "
            "its recorded value is used"
        )
        await run.publish(
            StepDrifted(
                run_id=run.id,
                step=key,
                path=record.path,
                changed=changed,
                stored=record.function,
                requested=work.name,
            )
        )
    elif record.function not in (work.name, "", *work.settings.aliases):
        warn(
            f"step {key!r} of run {run.id!r} was recorded for the function {record.function!r}, "
            f"which is {work.name!r} now; its recorded value is used"
        )
        await run.publish(
            StepRenamed(
                run_id=run.id,
                step=key,
                path=record.path,
                stored=record.function,
                requested=work.name,
            )
        )
    call.asked[key] = (work.name, work.fingerprint)


async def _join(frame: Frame, work: Work, record: StepRecord | None) -> StepRecord | None:
    """Wait for the same work asked for before in this pass; None if it must be done here."""
    call, key = frame.call, work.key
    flight = call.flights.get(key)
    if frame.is_inside(call, key):
        raise DuplicateStepKeyError(call.run.id, key, "it was asked for from inside itself")
    known = call.asked[key]
    if flight is not None:
        known = (flight.function, flight.fingerprint)
    elif known is None and record is not None:
        known = (record.function, record.fingerprint)
    if known is not None:
        _check_same(call, work, known)
    if flight is None and record is None:
        return None  # it failed before; asking again is a new attempt
    if key not in call.warned:
        call.warned.add(key)
        warn(
            f"the step key {key!r} was asked for more than once in run {call.run.id!r}; each "
            "time after the first gets a copy of the first value"
        )
        await call.run.publish(StepRepeated(run_id=call.run.id, step=key, path=call.scope.path))
    while (flight := call.flights.get(key)) is not None:
        await flight.wait()
        if flight.error is not None:
            raise flight.error
    return call.scope.steps.get(key)


def _check_same(call: Call, work: Work, known: tuple[str, str]) -> None:
    name, fingerprint = known
    if name != work.name:
        reason = f"for the function {name!r} and for {work.name!r}"
    elif changed := changed_arguments(fingerprint, work.fingerprint, *parameters_of(work.fn)):
        reason = f"with other arguments ({', '.join(changed)})"
    else:
        return
    raise DuplicateStepKeyError(call.run.id, work.key, reason)


async def _execute(frame: Frame, work: Work) -> Any:
    call, key = frame.call, check_id(work.key, "a step key")
    run = call.run
    if call.closed or run.writer.failed is not None or run.loop is not get_running_loop():
        frame.check_open(key)
    flight = call.flights[key] = Flight(call, key, work.name, work.fingerprint)
    call.asked[key] = None
    if not work.plan.is_nested:
        run.replaying = False
    token = current_frame.set(Frame(call, key, frame))
    try:
        outcome = await attempt_until_done(work, flight, frame.step or "")
    except BaseException as error:
        call.asked[key] = (work.name, work.fingerprint)  # asked again, it must be the same work
        if isinstance(error, Exception) and flight.done is not None:
            flight.error = error
        flight.end()
        raise
    finally:
        current_frame.reset(token)
    record = flight.record = outcome.record
    try:
        await run.writer.write(record, flight.settled)
    except asyncio.CancelledError:
        if run.observed:
            await _publish_late(call, flight, record)
        raise
    if run.observed:
        await _publish_completion(call, record)
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


async def _publish_late(call: Call, flight: Flight, record: StepRecord) -> None:
    """Tell of a completion whose caller was cancelled while it was being saved."""
    if call.flights.get(flight.key) is flight:
        await flight.wait()
    if call.scope.steps.get(flight.key) is record:
        await _publish_completion(call, record)


async def _publish_completion(call: Call, record: StepRecord) -> None:
    run = call.run
    await run.publish(
        StepCompleted(run_id=run.id, step=record.key, path=record.path, record=record)
    )
    if run.options.durability == "sync":
        await run.publish_saved()

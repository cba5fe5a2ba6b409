"""Doing a step's work: attempts, time limits, threads, and what is recorded of failures."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import msgspec

from durable._clock import clock
from durable._codec import UNKNOWN, TypeCodec
from durable._errors import (
    DuplicateStepKeyError,
    LeaseLostError,
    NotSerializableError,
    RunEndedError,
    StepDriftError,
)
from durable._events import StepBegun, StepFailed, StepRetried
from durable._plan import FunctionPlan
from durable._records import NOTHING, AttemptRecord, StepRecord, StoredError
from durable._retry import ONCE, Retry
from durable._run import Flight
from durable._stored_errors import describe_error, settled_error

#: Failures that another attempt can't mend.
_HOPELESS = (
    DuplicateStepKeyError,
    LeaseLostError,
    NotSerializableError,
    RunEndedError,
    StepDriftError,
)


class StepSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a step; times in seconds."""

    retry: Retry = ONCE
    timeout: float | None = None
    returns: Any = UNKNOWN
    ttl: float | None = None
    save_errors: tuple[type[BaseException], ...] = ()
    name: str = ""
    aliases: tuple[str, ...] = ()
    codec: TypeCodec | None = None


class Work:
    """One step's work: the function, its arguments, and how it is to be done."""

    __slots__ = ("args", "fingerprint", "fn", "key", "kwargs", "plan", "settings")

    def __init__(
        self,
        settings: StepSettings,
        key: str,
        plan: FunctionPlan,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        fingerprint: str,
    ) -> None:
        self.settings = settings
        self.key = key
        self.plan = plan
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.fingerprint = fingerprint

    @property
    def name(self) -> str:
        """The function's name as it is recorded."""
        return self.settings.name or self.plan.name

    @property
    def codec(self) -> TypeCodec:
        """How the result is stored."""
        return self.settings.codec or self.plan.codec


class Outcome:
    """What came of a step: its record, and the value or the error for the caller."""

    __slots__ = ("error", "record", "value")

    def __init__(self, record: StepRecord, value: Any, error: Exception | None = None) -> None:
        self.record = record
        self.value = value
        self.error = error


async def attempt_until_done(work: Work, flight: Flight, within: str) -> Outcome:
    """Return what comes of ``work``; raise its failure once no attempt is left.

    Each failed attempt is on record before the next one is waited for.
    """
    run, monotonic = flight.call.run, clock().monotonic
    attempt = await _rest_of_wait(work, flight) if flight.call.scope.attempts else 0
    while True:
        attempt += 1
        if run.observed:
            await run.publish(
                StepBegun(
                    run_id=run.id, step=work.key, path=flight.call.scope.path, attempt=attempt
                )
            )
        started = monotonic()
        thread: list[asyncio.Future[Any]] = []
        try:
            if work.plan.is_async and not work.plan.is_nested and work.settings.timeout is None:
                value = await work.fn(*work.args, **work.kwargs)
            else:
                value = await _invoke(work, thread)
            data, value = work.codec.store(value, f"step {work.key!r}")
        except Exception as error:
            outcome = await _failed(work, flight, within, attempt, error, started)
            if outcome is not None:
                return outcome
        else:
            record = _record(work, flight, within, attempt, started, run.pack(data))
            return Outcome(record, value)
        if thread:
            # A thread can't be stopped: the next attempt begins when the last one has ended.
            await asyncio.wait(thread)


def _record(
    work: Work,
    flight: Flight,
    within: str,
    attempt: int,
    started: float,
    stored: msgspec.Raw,
    error: StoredError | None = None,
) -> StepRecord:
    run, settings = flight.call.run, work.settings
    now = run.time()
    return StepRecord(
        work.key,
        work.name,
        work.fingerprint,
        stored,
        error,
        now,
        int((clock().monotonic() - started) * 1e6) / 1e6,
        attempt,
        None if settings.ttl is None else now + settings.ttl,
        flight.call.options.version,
        run.attempt,
        within,
        flight.call.scope.path,
    )


async def _rest_of_wait(work: Work, flight: Flight) -> int:
    """Return how many attempts an earlier pass has used up, after the wait it was in."""
    call = flight.call
    last = call.scope.attempts.get(work.key)
    if last is None or last.next_at is None or last.attempt >= work.settings.retry.attempts:
        return 0
    await _rest(flight, last.next_at - call.run.time())
    return last.attempt


async def _rest(flight: Flight, delay: float) -> None:
    if delay <= 0:
        return
    flight.resting = True
    try:
        await clock().sleep(delay)
    finally:
        flight.resting = False


async def _failed(
    work: Work, flight: Flight, within: str, attempt: int, error: Exception, started: float
) -> Outcome | None:
    """Record a failed attempt; return its outcome if it is final and saved, None to go on."""
    run, settings = flight.call.run, work.settings
    if run.writer.failed is not None:
        raise error
    if isinstance(error, settings.save_errors):
        stored, raised = settled_error(error, settings.save_errors, work.key)
        record = _record(work, flight, within, attempt, started, NOTHING, stored)
        return Outcome(record, None, raised)
    again = (
        attempt < settings.retry.attempts
        and not isinstance(error, _HOPELESS)
        and settings.retry.wants(error)
        and not flight.call.closed
    )
    delay = settings.retry.delay(attempt, clock().random()) if again else 0.0
    await _record_attempt(work, flight, attempt, error, run.time() + delay if again else None)
    path = flight.call.scope.path
    if not again:
        await run.publish(
            StepFailed(run_id=run.id, step=work.key, path=path, error=error, attempts=attempt)
        )
        raise error
    await run.publish(
        StepRetried(
            run_id=run.id, step=work.key, path=path, error=error, attempt=attempt, delay=delay
        )
    )
    await _rest(flight, delay)
    return None


async def _record_attempt(
    work: Work, flight: Flight, attempt: int, error: Exception, next_at: float | None
) -> None:
    call = flight.call
    record = AttemptRecord(
        key=work.key,
        attempt=attempt,
        error=describe_error(error),
        at=call.run.time(),
        next_at=next_at,
        run_attempt=call.run.attempt,
        path=call.scope.path,
    )
    try:
        await call.run.writer.write(record)
    except Exception as failure:
        raise failure from error
    call.scope.attempts[work.key] = record


async def _invoke(work: Work, thread: list[asyncio.Future[Any]]) -> Any:
    """Call the function; a thread that does its work is put into ``thread``."""
    timeout = work.settings.timeout
    if timeout is None:
        return await call_function(work.plan, work.fn, work.args, work.kwargs, thread)
    async with asyncio.timeout(timeout):
        return await call_function(work.plan, work.fn, work.args, work.kwargs, thread)


async def call_function(
    plan: FunctionPlan,
    fn: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    thread: list[asyncio.Future[Any]],
) -> Any:
    """Return what ``fn`` gives: awaited, nested as a child run, or worked out in a thread."""
    if plan.is_nested:
        return await fn.call_nested(args, kwargs)
    if plan.is_async:
        return await fn(*args, **kwargs)
    loop = asyncio.get_running_loop()
    call = functools.partial(copy_context().run, _call_in_thread, fn, args, kwargs)
    future = loop.run_in_executor(None, call)
    thread[:] = [future]
    future.add_done_callback(_retrieve)
    value = await asyncio.shield(future)
    return await value if inspect.isawaitable(value) else value


def _call_in_thread(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return fn(*args, **kwargs)
    except StopIteration as error:
        # It can't pass through a future: whoever waits would wait for ever.
        raise RuntimeError("a step's function raised StopIteration") from error


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()

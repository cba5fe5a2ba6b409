"""Doing a step's work: attempts, time limits, threads, and what is recorded of failures."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import msgspec

from durable._clock import clock
from durable._codec import TypeCodec
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
from durable._run import Flight
from durable._settings import StepSettings
from durable._stored_errors import describe_error, settled_error

#: Failures of how steps are used. Another attempt can't mend them, and they are never a step's
#: final failure: once the code is mended, the step goes well.
_HOPELESS = (
    DuplicateStepKeyError,
    LeaseLostError,
    NotSerializableError,
    RunEndedError,
    StepDriftError,
)

#: Threads at work, by the key of their step.
Threads = dict[str, asyncio.Future[Any]]


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
    call = flight.call
    run = call.run
    attempt = await _rest_of_wait(work, flight) if call.scope.attempts else 0
    while True:
        if call.threads:
            await _rest_for_thread(flight)
        attempt += 1
        if run.observed:
            await _publish_begun(flight, attempt)
        started = run.monotonic()
        try:
            if work.plan.is_plain and work.settings.timeout is None:
                value = await work.fn(*work.args, **work.kwargs)
            else:
                value = await _invoke(work, call.threads)
            data, value = work.codec.store(value, f"step {work.key!r}")
        except Exception as error:
            outcome = await _failed(work, flight, within, attempt, error, started)
            if outcome is not None:
                return outcome
        else:
            if flight.cut:
                raise RunEndedError(run.id, work.key)
            return Outcome(_record(work, flight, within, attempt, started, run.pack(data)), value)


async def attempt_unsaved(work: Work) -> Any:
    """Return what ``work`` gives, without recording anything; raise its last failure."""
    retry, threads, attempt = work.settings.retry, Threads(), 0
    while True:
        attempt += 1
        try:
            return await _invoke(work, threads)
        except Exception as error:
            if attempt >= retry.attempts or isinstance(error, _HOPELESS) or not retry.wants(error):
                raise
        await clock().sleep(retry.delay(attempt, clock().random()))
        if threads:
            await asyncio.wait(threads.values())


def _record(
    work: Work,
    flight: Flight,
    within: str,
    attempt: int,
    started: float,
    stored: msgspec.Raw,
    error: StoredError | None = None,
) -> StepRecord:
    call, ttl = flight.call, work.settings.ttl
    run = call.run
    now = run.time()
    return StepRecord(
        work.key,
        work.name,
        work.fingerprint,
        stored,
        error,
        now,
        int((run.monotonic() - started) * 1e6) / 1e6,
        attempt,
        None if ttl is None else now + ttl,
        call.options.version,
        run.attempt,
        within,
        call.scope.path,
    )


async def _publish_begun(flight: Flight, attempt: int) -> None:
    run, path = flight.call.run, flight.call.scope.path
    await run.publish(StepBegun(run_id=run.id, step=flight.key, path=path, attempt=attempt))


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


async def _rest_for_thread(flight: Flight) -> None:
    """Return when the thread of an earlier attempt has ended: it can't be stopped."""
    thread = flight.call.threads.get(flight.key)
    if thread is None:
        return
    flight.resting = True
    try:
        await asyncio.wait([thread])
    finally:
        flight.resting = False


async def _failed(
    work: Work, flight: Flight, within: str, attempt: int, error: Exception, started: float
) -> Outcome | None:
    """Record a failed attempt; return its outcome if it is final and saved, None to go on."""
    run, settings = flight.call.run, work.settings
    if run.writer.failed is not None or flight.cut:
        raise error  # it was cut short by the end of the run, so it doesn't count
    hopeless = isinstance(error, _HOPELESS)
    if not hopeless and isinstance(error, settings.save_errors):
        stored, raised = settled_error(error, settings.save_errors, work.key)
        record = _record(work, flight, within, attempt, started, NOTHING, stored)
        return Outcome(record, None, raised)
    left = not hopeless and attempt < settings.retry.attempts and settings.retry.wants(error)
    delay = settings.retry.delay(attempt, clock().random()) if left else 0.0
    await _record_attempt(work, flight, attempt, error, run.time() + delay if left else None)
    path = flight.call.scope.path
    if flight.call.closed or not left:
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


async def _invoke(work: Work, threads: Threads) -> Any:
    """Call the function; a thread that does its work is in ``threads`` until it ends."""
    if work.settings.timeout is None:
        return await call_function(work.plan, work.fn, work.args, work.kwargs, threads, work.key)
    async with asyncio.timeout(work.settings.timeout):
        return await call_function(work.plan, work.fn, work.args, work.kwargs, threads, work.key)


async def call_function(
    plan: FunctionPlan,
    fn: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    threads: Threads,
    key: str = "",
) -> Any:
    """Return what ``fn`` gives: awaited, nested as a child run, or worked out in a thread."""
    if plan.is_nested:
        return await fn.call_nested(args, kwargs)
    if plan.is_async:
        return await fn(*args, **kwargs)
    given_up = False

    def work() -> Any:
        if given_up:  # it was still waiting for a thread when its caller went
            return None
        try:
            return fn(*args, **kwargs)
        except StopIteration as error:
            # It can't pass through a future: whoever waits would wait for ever.
            raise RuntimeError("a step's function raised StopIteration") from error

    future = asyncio.get_running_loop().run_in_executor(None, copy_context().run, work)
    threads[key] = future

    def ended(_: asyncio.Future[Any]) -> None:
        del threads[key]
        if not future.cancelled():
            future.exception()  # nobody may be there to see it

    future.add_done_callback(ended)
    try:
        await asyncio.wait([future])
    finally:
        given_up = True
    value = future.result()
    return await value if inspect.isawaitable(value) else value

"""One run in progress: what its steps share, its lease, its variables, its end."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import msgspec

from durable._clock import clock
from durable._errors import (
    DurableError,
    LeaseLostError,
    RunEndedError,
    StateFormatError,
)
from durable._events import (
    DurableWarning,
    Event,
    RunLost,
    StateSaved,
    logger,
    publish,
    wants_steps,
)
from durable._options import Options
from durable._plan import Plans
from durable._records import Begin, Record, RunRecords, Scope, Status, StepRecord
from durable._session import Session
from durable._writer import LogWriter
from durable.store import HeadChange


class Flight:
    """A step that is being executed in this pass.

    ``resting``: it waits for its next attempt. ``cut``: something that it asked for was refused,
    since the run had ended, so whatever comes of it doesn't count.
    """

    __slots__ = (
        "call",
        "cut",
        "done",
        "error",
        "fingerprint",
        "function",
        "key",
        "record",
        "resting",
        "task",
    )

    def __init__(self, call: Call, key: str, function: str, fingerprint: str) -> None:
        self.call: Call = call
        self.key = key
        self.function = function
        self.fingerprint = fingerprint
        self.task = asyncio.current_task()
        self.resting = False
        self.cut = False
        self.record: StepRecord | None = None
        self.error: Exception | None = None
        self.done: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        """Return when the step has ended, in whatever way."""
        if self.done is None:
            self.done = asyncio.get_running_loop().create_future()
        await asyncio.shield(self.done)

    def settled(self, written: bool) -> None:
        """What came of it is on record, or never will be; even if its caller has gone by now."""
        if written and self.record is not None:
            scope = self.call.scope
            scope.steps[self.key] = self.record
            if scope.attempts:
                scope.attempts.pop(self.key, None)
        self.end()

    def end(self) -> None:
        """The step isn't executed any more, and its outcome is settled."""
        if self.call.flights.get(self.key) is self:
            del self.call.flights[self.key]
        if self.done is not None and not self.done.done():
            self.done.set_result(None)


class Call:
    """One function call of a pass: the run's own, or that of a child run within it.

    ``asked`` holds the keys of the steps this pass has asked for; the value is what was asked,
    where it isn't what the record says. ``missed`` names recorded steps of finished child runs
    that weren't asked for. ``threads`` are at work for the steps of these keys.
    """

    __slots__ = (
        "asked",
        "children",
        "closed",
        "flights",
        "missed",
        "options",
        "quiet",
        "run",
        "scope",
        "threads",
        "warned",
    )

    def __init__(self, run: Run, scope: Scope, options: Options) -> None:
        self.run: Run = run
        self.scope: Scope = scope
        self.options: Options = options
        self.asked: dict[str, tuple[str, str] | None] = {}
        self.flights: dict[str, Flight] = {}
        self.children: list[Call] = []
        self.missed: list[str] = []
        self.threads: dict[str, asyncio.Future[Any]] = {}
        self.warned: set[str] = set()
        self.closed: bool = False
        # Nobody listens and nothing is encoded: a replay is a lookup and a decode.
        self.quiet: bool = not run.observed and run.options.codec is None

    def all_flights(self) -> list[Flight]:
        """Return the steps being executed here and in child calls."""
        nested = [flight for child in self.children for flight in child.all_flights()]
        return [*self.flights.values(), *nested]

    def close(self) -> None:
        """Let no step start any more, here and in child calls."""
        self.closed = True
        for child in self.children:
            child.close()

    async def settle(self, *, cancel: bool) -> None:
        """Return when no step is being executed any more.

        Steps in flight are awaited, or with ``cancel`` cancelled first. Those that only wait for
        their next attempt are always cancelled: what they did so far is on record.
        """
        self.close()
        while flights := self.all_flights():
            for flight in flights:
                if (cancel or flight.resting) and flight.task is not asyncio.current_task():
                    _cancel(flight)
            for flight in flights:
                await flight.wait()

    def unasked(self) -> list[str]:
        """Return the recorded steps that this pass hasn't asked for."""
        steps, asked = self.scope.steps, self.asked
        if len(asked) >= len(steps) and asked.keys() >= steps.keys():
            return self.missed
        return [*(key for key in steps if not self._was_asked(key)), *self.missed]

    def _was_asked(self, key: str) -> bool:
        while key:
            if key in self.asked:
                return True
            record = self.scope.steps.get(key)
            key = record.within if record is not None else ""
        return False


def _cancel(flight: Flight) -> None:
    if flight.task is not None:
        flight.task.cancel()


class Frame:
    """Where in a run the code is: in which call, inside which step."""

    __slots__ = ("call", "outer", "step")

    def __init__(self, call: Call, step: str | None = None, outer: Frame | None = None) -> None:
        self.call: Call = call
        self.step: str | None = step
        self.outer: Frame | None = outer

    def check_open(self, name: str) -> None:
        """Raise if nothing may start here: the call has ended, or the run can't be written."""
        if self.call.closed:
            self._cut_short()
            raise RunEndedError(self.call.run.id, name)
        run = self.call.run
        if run.loop is not asyncio.get_running_loop():
            raise RuntimeError(
                f"{name!r} was asked for in another event loop than that of run {run.id!r}; a sync "
                "step that runs a loop of its own begins runs of their own there, with .run(id, …)"
            )
        run.writer.check()

    def _cut_short(self) -> None:
        """Let the steps that this is part of not count, as far out as the end reaches."""
        frame: Frame | None = self
        while frame is not None and frame.call.closed:
            if frame.step is not None and (flight := frame.call.flights.get(frame.step)):
                flight.cut = True
            frame = frame.outer

    def is_inside(self, call: Call, key: str) -> bool:
        """Return whether the code is part of the step ``key`` of ``call``."""
        frame: Frame | None = self
        while frame is not None:
            if frame.call is call and frame.step == key:
                return True
            frame = frame.outer
        return False


#: The frame of the code that is running, None outside of durable functions.
current_frame: ContextVar[Frame | None] = ContextVar("durable_frame", default=None)


class Run:
    """One pass of a run that this process owns."""

    def __init__(
        self,
        run_id: str,
        options: Options,
        session: Session,
        records: RunRecords,
        writer: LogWriter,
        *,
        owner: str,
        fence: int,
        attempt: int,
        now: float,
    ) -> None:
        self.id = run_id
        self.options = options
        self.session = session
        self.observed: bool = wants_steps(options.on_event)
        self.adopt(records)
        self.writer = writer
        self.owner = owner
        self.fence = fence
        self.attempt = attempt
        self.plans: Plans = session.here().plans
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.monotonic: Callable[[], float] = clock().monotonic
        self._time = clock().time
        self._offset = now - self._time()
        self._lost = False
        self._timer: asyncio.TimerHandle | None = None
        self._renewal: asyncio.Task[None] | None = None

    def adopt(self, records: RunRecords) -> None:
        """Go on from ``records``: at the beginning, and when they were migrated."""
        if records.begin is None:
            raise StateFormatError(f"run {self.id!r}", "its log doesn't begin with a Begin")
        self.begin: Begin = records.begin
        self.records = records
        self.root: Call = Call(self, records.root, self.options)
        self.replaying: bool = bool(records.root.steps or records.root.children)

    def time(self) -> float:
        """Return the store's time."""
        return self._time() + self._offset

    async def publish(self, event: Event) -> None:
        """Tell the observer and the log of ``event``."""
        await publish(event, self.options.on_event)

    async def publish_saved(self) -> None:
        """Tell that the log is durable as far as it goes."""
        await self.publish(StateSaved(run_id=self.id, sequence=self.writer.sequence))

    # Values on their way to and from the log.

    def pack(self, data: bytes) -> msgspec.Raw:
        """Return what is stored for the JSON ``data``."""
        codec = self.options.codec
        if codec is None:
            return msgspec.Raw(data)
        return msgspec.Raw(msgspec.json.encode(codec.encode(data.decode())))

    def unpack(self, stored: msgspec.Raw, where: str) -> msgspec.Raw | bytes:
        """Return the JSON that ``stored`` was made from."""
        codec = self.options.codec
        if codec is None:
            return stored
        return unpack(stored, codec.decode, where)

    # The lease.

    def hold(self) -> None:
        """Renew the lease from now on, a third of its length apart."""
        delay = self.options.lease / 3
        self._timer = asyncio.get_running_loop().call_later(delay, self._renew_soon)

    def _renew_soon(self) -> None:
        self._renewal = asyncio.create_task(self._renew(), name=f"durable lease of {self.id}")

    async def _renew(self) -> None:
        lease, delay = self.options.lease, self.options.lease / 3
        try:
            inbox = await self.session.journal.renew(self.id, self.owner, self.fence, lease)
            self.writer.inbox = max(self.writer.inbox, inbox)
        except LeaseLostError as error:
            await self.lose(error)
            return
        except Exception as error:
            # The lease may be good for long yet; only a refusal says that it's lost.
            logger.warning(
                "renewing the lease of run %r failed: %s",
                self.id,
                type(error).__name__,
                extra={"run_id": self.id},
            )
            delay = lease / 10
        self._timer = asyncio.get_running_loop().call_later(delay, self._renew_soon)

    async def lose(self, error: LeaseLostError) -> None:
        """Let nothing more happen here: the run belongs to somebody else."""
        self.writer.fail(error)
        if not self._lost:
            self._lost = True
            await self.publish(RunLost(run_id=self.id, fence=self.fence))

    async def let_go(self) -> None:
        """Stop renewing."""
        if self._timer is not None:
            self._timer.cancel()
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)

    async def release(self, status: Status, expires_in: float | None) -> None:
        """Give the lease back without recording anything; a failure to do so is logged."""
        await self.let_go()
        if isinstance(self.writer.failed, LeaseLostError):
            return
        change = HeadChange(status=status, release=True, expires_in=expires_in)
        try:
            await self.writer.finish((), change)
        except DurableError as error:
            logger.warning(
                "the lease of run %r was not given back, it will lapse: %s",
                self.id,
                type(error).__name__,
                extra={"run_id": self.id},
            )

    async def end(self, records: Sequence[Record], change: HeadChange) -> None:
        """Record the end of the pass, and give the lease back in the same operation."""
        await self.let_go()
        await self.writer.finish(records, change)


def unpack(stored: msgspec.Raw, decode: Callable[[str], str], where: str) -> bytes:
    """Return the JSON behind ``stored``, which a codec has encoded.

    Raises ``StateFormatError`` if the codec can't.
    """
    try:
        return decode(msgspec.json.decode(stored, type=str)).encode()
    except Exception as error:
        raise StateFormatError(
            where, f"the codec can't decode the stored value ({type(error).__name__})"
        ) from error


def warn(message: str) -> None:
    """Tell the developer, at the nearest place that isn't ours."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals.get("__package__") == __package__:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, DurableWarning, stacklevel=level)

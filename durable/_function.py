"""``durable``: an async function that goes on where it stopped."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import msgspec

from durable._attempt import Work
from durable._begin import Arguments, Mode, Opened, open_run, submit_run
from durable._codec import TypeCodec
from durable._definition import Definition
from durable._events import RunCompleted, publish
from durable._execute import execute_child, execute_run, park
from durable._fingerprint import function_name
from durable._options import Options, check_id
from durable._perform import perform
from durable._plan import Nestable
from durable._run import current_frame, unpack
from durable._session import Session
from durable._settings import PLAIN

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
Q = ParamSpec("Q")


class DurableFunction(Nestable, Generic[P, R]):
    """An async function whose completed steps survive a crash."""

    def __init__(self, definition: Definition, *, of_class: bool = False) -> None:
        functools.update_wrapper(self, definition.fn)
        self._definition = definition
        self._of_class = of_class

    def __repr__(self) -> str:
        return f"<durable function {self.name}>"

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> DurableFunction[P, R]: ...

    @overload
    def __get__(
        self: DurableFunction[Concatenate[S, Q], R], instance: S, owner: type | None = None
    ) -> DurableFunction[Q, R]: ...

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if self._of_class:
            instance = owner if owner is not None else type(instance)
        if instance is None:
            return self
        return DurableFunction[Any, R](self._definition.bind(instance))

    @property
    def name(self) -> str:
        """The name that its runs are recorded under."""
        return self._definition.name

    @property
    def definition(self) -> Definition:
        """What it is made of: for the library's own use."""
        return self._definition

    @property
    def result_codec(self) -> TypeCodec:
        """How its result is stored."""
        return self._definition.result

    def options(self, **overrides: Any) -> DurableFunction[P, R]:
        """Return the same function with other options.

        Raises ``TypeError`` or ``ValueError`` for what isn't an option or its value.
        """
        return DurableFunction(self._definition.with_options(overrides))

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run under an id made of the name and the arguments' fingerprint.

        An unfinished run of equal arguments is gone on with, so a script that crashed is simply
        run again; when the last one has ended, a new one begins. Simultaneous calls with equal
        arguments in one process join one run. Inside another durable function it is a child
        run, a step of that function.

        Raises ``TypeError`` if the arguments have no fingerprint; otherwise as ``run``.
        """
        frame = current_frame.get()
        try:
            run_id = f"{self.name}:{self._definition.fingerprint(args, kwargs)}"
        except TypeError as error:
            if frame is None:
                raise
            raise TypeError(
                f"{self.name} can't make a step key of its arguments: call "
                f"step(key, {self.name}, …) ({error})"
            ) from None
        if frame is not None:
            plan = frame.call.run.plans.get(self)
            fingerprint = run_id.rpartition(":")[2]
            work = Work(PLAIN, run_id, plan, self, args, kwargs, fingerprint)
            nested: R = await perform(frame, work)
            return nested
        result: R = await self._joined(run_id, (args, kwargs))
        return result

    async def run(self, run_id: str, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run, or go on with the run, under ``run_id``.

        A finished run returns its stored result without running anything. Other arguments than
        the recorded ones are used, with a warning.

        Raises ``RunBusyError`` if somebody else is executing it, ``RunCancelledError``,
        ``RunMismatchError`` if the id belongs to another function, ``VersionMismatchError``,
        ``StateFormatError`` if what is stored can't be trusted, ``LeaseLostError`` if it was
        taken over meanwhile, ``StoreError``, and whatever the function raises.
        """
        result: R = await self._run(run_id, "run", (args, kwargs))
        return result

    async def resume(self, run_id: str, /) -> R:
        """Go on with the run ``run_id``, with the arguments stored when it began.

        Raises ``RunNotFoundError`` if there is none, ``NotSerializableError`` if its arguments
        couldn't be stored; otherwise as ``run``.
        """
        result: R = await self._run(run_id, "resume", None)
        return result

    async def submit(self, run_id: str, /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Record the run durably without executing it; ``recover`` or a worker picks it up.

        Does nothing if the run is recorded already. Raises ``NotSerializableError`` if the
        arguments can't be stored, ``RunMismatchError`` if the id belongs to another function,
        ``RunCancelledError``.
        """
        await submit_run(self._definition, check_id(run_id, "a run id"), (args, kwargs))

    async def call_nested(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call it as the step that the current frame is in."""
        return await execute_child(self._definition, (args, kwargs))

    async def recover_run(self, run_id: str, session: Session) -> Any:
        """Go on with an abandoned run, for ``recover``."""
        return await self._run(run_id, "recover", None, session)

    async def _run(
        self,
        run_id: str,
        mode: Mode,
        arguments: Arguments | None,
        session: Session | None = None,
    ) -> Any:
        check_id(run_id, "a run id")
        definition = self._definition
        # What runs inside is a run of its own, whatever it was called from.
        token = current_frame.set(None)
        try:
            opened = await open_run(definition, run_id, mode, arguments, session)
            if opened.run is not None:
                if mode == "recover" and opened.recoveries > definition.options.max_recoveries:
                    await park(definition, opened.run, opened.recoveries - 1)
                return await execute_run(definition, opened)
            return await self._stored(run_id, opened)
        finally:
            current_frame.reset(token)

    async def _stored(self, run_id: str, opened: Opened) -> Any:
        stored = opened.ended.stored if opened.ended else None
        where = f"the result of run {run_id!r}"
        event = RunCompleted(run_id=run_id, name=self.name, stored=True)
        await publish(event, self._definition.options.on_event)
        codec = self._definition.options.codec
        data = stored if stored else msgspec.Raw(b"null")
        return self.result_codec.load(
            data if codec is None else unpack(data, codec.decode, where), where
        )

    async def _joined(self, run_id: str, arguments: Arguments) -> Any:
        """Run it, or join the call that is running it in this process."""
        calls = self._definition.session().calls
        # A forked child inherits the calls, but not the threads that execute them.
        place = (os.getpid(), run_id)
        own: Future[Exception | bytes | None] = Future()
        own.set_running_or_notify_cancel()
        while (leader := calls.setdefault(place, own)) is not own:
            outcome = await asyncio.wrap_future(leader)
            if isinstance(outcome, Exception):
                raise outcome
            if outcome is not None:
                return self.result_codec.load(outcome, f"the result of run {run_id!r}")
        outcome = None
        try:
            value = await self._run(run_id, "plain", arguments)
            outcome, value = self.result_codec.store(value, f"the result of run {run_id!r}")
            return value
        except Exception as error:
            outcome = error
            raise
        finally:
            del calls[place]
            own.set_result(outcome)


def _decorate(decorated: Any, options: dict[str, Any]) -> DurableFunction[Any, Any]:
    of_class = issubclass(type(decorated), classmethod)
    fn: Callable[..., Any] = decorated.__wrapped__ if of_class else decorated
    if isinstance(fn, DurableFunction):
        raise TypeError(f"{fn!r} is durable already; change its options with .options(…)")
    if isinstance(fn, staticmethod):
        raise TypeError("durable goes below @staticmethod, next to the function it decorates")
    if not inspect.iscoroutinefunction(fn):
        kind = "an async generator" if inspect.isasyncgenfunction(fn) else "not an async function"
        name = getattr(fn, "__qualname__", type(fn).__name__)
        raise TypeError(
            f"durable decorates async functions (async def), and {name} is {kind}; put blocking "
            "work into steps, which may be sync"
        )
    definition = Definition(fn, Options(name=function_name(fn)).replace(options))
    return DurableFunction(definition, of_class=of_class)


@overload
def durable(fn: Callable[P, Coroutine[Any, Any, R]], /) -> DurableFunction[P, R]: ...


@overload
def durable(
    **options: Any,
) -> Callable[[Callable[Q, Coroutine[Any, Any, S]]], DurableFunction[Q, S]]: ...


def durable(fn: Any = None, /, **options: Any) -> Any:
    """Make an async function durable.

    Options, all of them also of ``.options``:

    - ``name``: what its runs are recorded under; default: the qualified name without module.
    - ``store``: a store, or its URL; default: what ``store_from_env`` gives.
    - ``version``: raise it when the code changes in a way that recorded runs can't follow.
      ``on_version_mismatch``: ``"raise"``, ``"restart"``, or a function that gets the
      ``ResumeState`` and returns a migrated one.
    - ``ttl``: seconds or timedelta after which an abandoned run expires; default: never.
      ``keep``: how long an ended run is kept; default 7 days, None for good, 0 not at all.
    - ``lease``: seconds after which a dead process's run may be taken over; default 30.
    - ``durability``: ``"sync"`` (a step returns when it is durable), ``"async"`` (while the next
      one runs), ``"exit"`` (at the end).
    - ``drift``: ``"raise"`` or ``"warn"`` when a step asks for other arguments than recorded.
    - ``max_recoveries``: how often ``recover`` takes the run from dead processes; default 100.
    - ``codec``: encodes what is stored of values. ``on_event``: is told everything that happens.
    - ``resume_state``: a ``ResumeState``, or a function that gives one, for runs without records.

    It goes above ``@classmethod`` and below ``@staticmethod``. Raises ``TypeError`` for anything
    but an async function, and for unknown options.

    ```python
    @durable
    async def checkout(order_id: str) -> Receipt:
        user = await step("user", fetch_user, order_id)
        ...
    ```
    """
    if fn is not None:
        if options:
            raise TypeError("durable takes a function, or options by name, not both")
        return _decorate(fn, {})
    Options(name="unnamed").replace(options)  # misuse speaks at once

    def decorate(fn: Callable[..., Any]) -> DurableFunction[Any, Any]:
        return _decorate(fn, options)

    return decorate

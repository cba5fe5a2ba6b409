"""``step``: a keyed piece of work whose result is kept."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from datetime import timedelta
from types import FunctionType
from typing import Any, NoReturn, ParamSpec, TypeVar, cast, overload

from durable._attempt import Work, attempt_unsaved
from durable._codec import UNKNOWN
from durable._decorated import DecoratedStep, StepDecorator, decorate
from durable._errors import NoActiveRunError
from durable._fingerprint import fingerprint_arguments
from durable._map import map_steps
from durable._options import check_id
from durable._perform import load_value, perform
from durable._retry import Retry
from durable._run import current_frame
from durable._settings import PLAIN, StepSettings

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

#: The options that mean something for a step whose result isn't saved.
_UNSAVED_OPTIONS = frozenset({"retry", "timeout"})


class Step:
    """The type of ``step``; each instance is ``step`` with certain options."""

    def __init__(self, settings: StepSettings | None = None) -> None:
        self._settings = settings or PLAIN

    def __repr__(self) -> str:
        return "step"

    @overload
    def __call__(
        self,
        key: str | None,
        fn: Callable[P, Awaitable[R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Coroutine[Any, Any, R]: ...

    @overload
    def __call__(
        self, key: str | None, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]: ...

    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> DecoratedStep[P, R]: ...

    @overload
    def __call__(self, fn: Callable[P, R], /) -> DecoratedStep[P, R]: ...

    @overload
    def __call__(
        self,
        /,
        *,
        key: str | Callable[..., str] | None = ...,
        name: str = ...,
        aliases: tuple[str, ...] = ...,
        retry: Retry = ...,
        timeout: float | timedelta | None = ...,
        returns: Any = ...,
        ttl: float | timedelta | None = ...,
        save_errors: type[Exception] | tuple[type[Exception], ...] = ...,
    ) -> StepDecorator: ...

    def __call__(
        self, first: Any = UNKNOWN, fn: Any = UNKNOWN, /, *args: Any, **kwargs: Any
    ) -> Any:
        """Run ``fn(*args, **kwargs)`` as the step ``key``, or decorate a function as a step.

        As a call: awaits to the step's value. A completed step's stored value is returned
        without calling ``fn``; ``key=None`` runs without saving, and ``retry`` and ``timeout``
        still hold. ``fn`` is async, or sync and then works in a thread. As a decorator, bare or
        with options (``key`` is then a template over the arguments, or a function of them), it
        gives a ``DecoratedStep``.

        Raises ``StepDriftError``, ``DuplicateStepKeyError``, ``NotSerializableError``,
        ``StoreError``, ``LeaseLostError``, and whatever ``fn`` raises.
        """
        if fn is not UNKNOWN:
            if type(fn) is FunctionType and type(first) is str:
                return self._call(first, fn, args, kwargs)
            return self._call_object(first, fn, args, kwargs)
        if first is UNKNOWN:
            return StepDecorator(self._settings, kwargs)
        if kwargs or not (callable(first) or isinstance(first, classmethod)):
            _refuse_decoration(first)
        return decorate(first, self._settings)

    def _call_object(
        self, key: object, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Call what isn't a plain function, or hasn't a plain key, or refuse it."""
        if not callable(fn) or not (key is None or isinstance(key, str)):
            _refuse_call(key, fn)
        settings = self._settings
        while True:
            if isinstance(fn, DecoratedStep):
                # This key is the step's key, so that its own doesn't count.
                decorated = cast("DecoratedStep[..., Any]", fn)
                fn, settings = decorated.under_key(self._settings)
            elif type(cast("object", fn)) is functools.partial:
                part = cast("functools.partial[Any]", fn)
                fn, args, kwargs = part.func, (*part.args, *args), {**part.keywords, **kwargs}
            else:
                break
        itself = self if settings is self._settings else Step(settings)
        if key is None:
            return itself._call_unsaved(self._settings.given, fn, args, kwargs)
        return itself._call(str.__str__(key), fn, args, kwargs)

    async def _call_unsaved(
        self,
        given: frozenset[str],
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if useless := sorted(given - _UNSAVED_OPTIONS):
            raise TypeError(f"a step without a key isn't saved, so it has no {useless[0]}")
        frame = current_frame.get()
        if frame is None:
            raise NoActiveRunError("step(None, …)")
        plan = frame.call.run.plans.get(fn)
        if plan.is_nested:
            raise TypeError(
                f"the durable function {plan.name!r} needs a step key, since its own steps are "
                f"kept under it: step(key, {plan.name}, …)"
            )
        frame.check_open(plan.name)
        return await attempt_unsaved(Work(self._settings, "", plan, fn, args, kwargs, ""))

    async def _call(
        self, key: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        frame = current_frame.get()
        if frame is None:
            raise NoActiveRunError(f"step({key!r}, …)")
        call = frame.call
        plan = call.run.plans.get(fn)
        fingerprint = fingerprint_arguments(args, kwargs)
        record = call.scope.steps.get(key)
        # The plainest replay, done here: it is what a resume of 10,000 steps consists of.
        # ``perform`` would come to the same. See benchmarks/bench_resume.py.
        if (
            record is not None
            and self._settings is PLAIN
            and call.quiet
            and record.fingerprint == fingerprint
            and record.function == plan.name
            and record.stored
            and record.expires_at is None
            and key not in call.asked
        ):
            call.asked[key] = None
            return load_value(call, plan.codec, record)
        return await perform(frame, Work(self._settings, key, plan, fn, args, kwargs, fingerprint))

    def options(self, **options: Any) -> Step:
        """Return ``step`` with options for one call.

        ``retry``: a ``Retry``. ``timeout``: seconds or timedelta for each attempt; raises
        ``TimeoutError``. ``returns``: the type to decode to, instead of the annotation. ``ttl``:
        how long the result counts. ``save_errors``: exception types that are kept as the step's
        final failure. Raises ``TypeError`` for an unknown option, naming the nearest one.
        """
        return Step(self._settings.replace(options))

    @overload
    async def map(
        self,
        prefix: str,
        fn: Callable[[T], Awaitable[R]],
        items: Iterable[T],
        *,
        limit: int | None = None,
        key: Callable[[T], object] | None = None,
        progress: bool = False,
    ) -> list[R]: ...

    @overload
    async def map(
        self,
        prefix: str,
        fn: Callable[[T], R],
        items: Iterable[T],
        *,
        limit: int | None = None,
        key: Callable[[T], object] | None = None,
        progress: bool = False,
    ) -> list[R]: ...

    async def map(
        self,
        prefix: str,
        fn: Callable[[Any], Any],
        items: Iterable[Any],
        *,
        limit: int | None = None,
        key: Callable[[Any], object] | None = None,
        progress: bool = False,
    ) -> list[Any]:
        """Run ``fn(item)`` for each of ``items``, a step each; return the results in order.

        The keys are ``prefix:0``, ``prefix:1``, …, or ``prefix:`` and ``key(item)``. At most
        ``limit`` run at once (None: all). After a crash only the missing ones run. ``progress``
        draws a bar on standard error that starts where the last run stopped (extra ``cli``).
        The first failure stops new items from starting and is raised when those under way have
        ended.
        """
        frame = current_frame.get()
        if frame is None:
            raise NoActiveRunError(f"step.map({prefix!r}, …)")
        check_id(prefix, "a step key's prefix")
        work = [
            (f"{prefix}:{index if key is None else key(item)}", item)
            for index, item in enumerate(items)
        ]

        def perform_one(key: str, item: Any) -> Awaitable[Any]:
            return self(key, fn, item)

        return await map_steps(
            frame.call, prefix, work, perform_one, limit=limit, progress=progress
        )


def _refuse_call(key: object, fn: object) -> NoReturn:
    if inspect.iscoroutine(fn):
        name = fn.__qualname__
        fn.close()
        raise TypeError(
            f"step {key!r} got a coroutine that was started already: pass the function and its "
            f"arguments, step({key!r}, {name}, …), so that a replay needn't call it"
        )
    if key is not None and not isinstance(key, str):
        raise TypeError(f"a step key must be a str or None, got {type(key).__name__}")
    if inspect.isawaitable(fn):
        raise TypeError(f"step {key!r} got an awaitable: pass the function and its arguments")
    if callable(fn):
        raise TypeError(f"a step key must be a plain str, got {type(key).__name__}")
    raise TypeError(f"step {key!r} needs a function to call, got {type(fn).__name__}")


def _refuse_decoration(key: object) -> NoReturn:
    if isinstance(key, str) or key is None:
        raise TypeError(f"step({key!r}) needs a function to call: step({key!r}, fn, *args)")
    if inspect.iscoroutine(key):
        key.close()
        raise TypeError("step needs a key and a function: step(key, fn, *args)")
    raise TypeError(f"step takes a key and a function, or decorates one; got {type(key).__name__}")


#: A keyed piece of work, or the decorator that makes one. See ``Step.__call__``.
step: Step = Step()

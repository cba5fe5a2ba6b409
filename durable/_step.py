"""``step``: a keyed piece of work whose result is kept."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from datetime import timedelta
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar, overload

import msgspec

from durable._attempt import StepSettings, Work, call_function
from durable._codec import UNKNOWN, TypeCodec
from durable._errors import NoActiveRunError
from durable._fingerprint import fingerprint_arguments, function_name, run_fingerprint
from durable._map import map_steps
from durable._options import check_id, check_names, seconds
from durable._perform import load_value, perform
from durable._plan import make_plan
from durable._retry import Retry
from durable._run import current_frame

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_OPTIONS = ("retry", "timeout", "returns", "ttl", "save_errors")
_DECORATOR_OPTIONS = (*_OPTIONS, "key", "name", "aliases")

_PLAIN = StepSettings()

KeyTemplate = str | Callable[..., str] | None


class Step:
    """The type of ``step``; each instance is ``step`` with certain options."""

    def __init__(self, settings: StepSettings | None = None) -> None:
        self._settings = settings or _PLAIN

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
        *,
        key: str | Callable[..., str] | None = ...,
        name: str = ...,
        aliases: tuple[str, ...] = ...,
        retry: Retry = ...,
        timeout: float | timedelta | None = ...,
        returns: Any = ...,
        ttl: float | timedelta | None = ...,
        save_errors: type[BaseException] | tuple[type[BaseException], ...] = ...,
    ) -> StepDecorator: ...

    def __call__(
        self, first: Any = UNKNOWN, fn: Any = UNKNOWN, /, *args: Any, **kwargs: Any
    ) -> Any:
        """Run ``fn(*args, **kwargs)`` as the step ``key``, or decorate a function as a step.

        As a call: awaits to the step's value. A completed step's stored value is returned
        without calling ``fn``; ``key=None`` runs without saving. ``fn`` is async, or sync and
        then works in a thread. As a decorator, bare or with options (``key`` is then a template
        over the arguments, or a function of them), it gives a ``DecoratedStep``.

        Raises ``StepDriftError``, ``DuplicateStepKeyError``, ``NotSerializableError``,
        ``StoreError``, ``LeaseLostError``, and whatever ``fn`` raises.
        """
        if fn is not UNKNOWN:
            if (type(first) is str or first is None) and callable(fn):
                return self._call(first, fn, args, kwargs)
            _refuse_call(first, fn)
        if first is UNKNOWN:
            return StepDecorator(self._settings, kwargs)
        if kwargs or not callable(first):
            _refuse_decoration(first)
        return DecoratedStep(first, self._settings, None)

    async def _call(
        self, key: str | None, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        frame = current_frame.get()
        if frame is None:
            raise NoActiveRunError(f"step({key!r}, …)")
        call = frame.call
        plan = call.run.plans.get(fn)
        if key is None:
            return await call_function(plan, fn, args, kwargs, [])
        fingerprint = fingerprint_arguments(args, kwargs)
        record = call.scope.steps.get(key)
        # The plainest replay, done here: it is what a resume of 10,000 steps consists of.
        # ``perform`` would come to the same. See benchmarks/bench_resume.py.
        if (
            record is not None
            and self._settings is _PLAIN
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
        return Step(settings_with(self._settings, options))

    async def map(
        self,
        prefix: str,
        fn: Callable[[T], Awaitable[R]] | Callable[[T], R],
        items: Iterable[T],
        *,
        limit: int | None = None,
        key: Callable[[T], object] | None = None,
        progress: bool = False,
    ) -> list[R]:
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
        call: Callable[[str, T], Awaitable[R]] = functools.partial(self._call_item, fn)
        return await map_steps(frame.call, prefix, work, call, limit=limit, progress=progress)

    async def _call_item(self, fn: Callable[[Any], Any], key: str, item: Any) -> Any:
        return await self._call(key, fn, (item,), {})


class StepDecorator:
    """``step(key=…, retry=…)``, waiting for its function."""

    def __init__(self, settings: StepSettings, options: dict[str, Any]) -> None:
        check_names(options, _DECORATOR_OPTIONS, "step")
        self._key = _check_template(options.pop("key", None))
        self._settings = settings_with(settings, options, _DECORATOR_OPTIONS)

    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> DecoratedStep[P, R]: ...

    @overload
    def __call__(self, fn: Callable[P, R], /) -> DecoratedStep[P, R]: ...

    def __call__(self, fn: Callable[..., Any], /) -> Any:
        """Return ``fn`` as a step."""
        return DecoratedStep(fn, self._settings, self._key)


class DecoratedStep(Generic[P, R]):
    """A function that is a step of whatever durable function calls it.

    Outside of durable functions it simply runs.
    """

    def __init__(self, fn: Callable[..., Any], settings: StepSettings, key: KeyTemplate) -> None:
        if not callable(fn) or isinstance(fn, type):
            raise TypeError(f"step decorates functions, got {fn!r}")
        functools.update_wrapper(self, fn)
        name = settings.name or function_name(fn)
        self._fn = fn
        self._key = key
        self._settings = msgspec.structs.replace(settings, name=name)
        self._signature: inspect.Signature | None = None

    def __repr__(self) -> str:
        return f"<step {self._settings.name}>"

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        if instance is None:
            return self
        bound = self._fn.__get__(instance, owner)
        return DecoratedStep[Any, Any](bound, self._settings, self._key)

    def options(self, **options: Any) -> DecoratedStep[P, R]:
        """Return the same step with other options: those of ``step.options``."""
        return DecoratedStep(self._fn, settings_with(self._settings, options), self._key)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the step's value: the recorded one, or that of calling the function now."""
        frame = current_frame.get()
        if frame is None:
            plain: R = await call_function(make_plan(self._fn), self._fn, args, kwargs, [])
            return plain
        plan = frame.call.run.plans.get(self._fn)
        work = Work(
            self._settings,
            self._make_key(args, kwargs),
            plan,
            self._fn,
            args,
            kwargs,
            fingerprint_arguments(args, kwargs),
        )
        result: R = await perform(frame, work)
        return result

    def _make_key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        if self._signature is None:
            self._signature = inspect.signature(self._fn)
        if self._key is None:
            try:
                print_ = run_fingerprint(self._signature, args, kwargs)
            except TypeError as error:
                raise TypeError(
                    f"step {self._settings.name!r} can't make a key of its arguments: decorate "
                    f"it with @step(key=…), or call step(key, fn, …) ({error})"
                ) from None
            return f"{self._settings.name}:{print_}"
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if not isinstance(self._key, str):
            return check_id(self._key(*bound.args, **bound.kwargs), "a step key")
        try:
            return self._key.format(**bound.arguments)
        except (AttributeError, IndexError, KeyError, ValueError) as error:
            raise TypeError(
                f"the key template {self._key!r} of step {self._settings.name!r} doesn't fit its "
                f"arguments {', '.join(bound.arguments)}: {type(error).__name__}: {error}"
            ) from None


def settings_with(
    settings: StepSettings, options: dict[str, Any], known: tuple[str, ...] = _OPTIONS
) -> StepSettings:
    """Return ``settings`` with ``options``, checked."""
    check_names(options, known, "step")
    checked = {name: _check(name, value) for name, value in options.items()}
    if "returns" in options:
        checked["codec"] = TypeCodec(options["returns"])
    return msgspec.structs.replace(settings, **checked)


def _check(name: str, value: Any) -> Any:
    match name:
        case "retry":
            if not isinstance(value, Retry):
                raise TypeError(f"retry must be a Retry, got {type(value).__name__}")
        case "timeout" | "ttl":
            return None if value is None else seconds(value, name)
        case "save_errors":
            types = value if isinstance(value, tuple) else (value,)
            if not all(isinstance(each, type) and issubclass(each, Exception) for each in types):
                raise TypeError("save_errors must be an exception type or a tuple of them")
            return types
        case "name":
            return check_id(value, "name")
        case "aliases":
            if not isinstance(value, tuple):
                raise TypeError(f"aliases must be a tuple of names, got {type(value).__name__}")
            return tuple(check_id(each, "an alias") for each in value)
        case _:
            pass
    return value


def _check_template(key: Any) -> KeyTemplate:
    if key is None or isinstance(key, str):
        return key if key is None else check_id(key, "a step key")
    if not callable(key):
        raise TypeError(f"key must be a str template or a function, got {type(key).__name__}")
    template: Callable[..., str] = key
    return template


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
step = Step()

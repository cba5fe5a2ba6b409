"""Functions that are steps of whatever durable function calls them."""

from __future__ import annotations

import functools
import inspect
import string
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeAlias, TypeVar, cast, overload

import msgspec

from durable._attempt import Work, call_function
from durable._fingerprint import fingerprint_arguments, function_name, run_fingerprint
from durable._options import check_id, check_names
from durable._perform import perform
from durable._plan import make_plan
from durable._run import current_frame
from durable._settings import DECORATOR_OPTIONS, StepSettings

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")

#: A template over the arguments' names, a function of the arguments, or None: the function's name
#: and the fingerprint of the arguments.
KeyTemplate: TypeAlias = str | Callable[..., str] | None


class StepDecorator:
    """``step(key=…, retry=…)``, waiting for its function."""

    def __init__(self, settings: StepSettings, options: dict[str, Any]) -> None:
        check_names(options, (*DECORATOR_OPTIONS, "key"), "step")
        self._key = _check_template(options.pop("key", None))
        self._settings = settings.replace(options, DECORATOR_OPTIONS)

    def __repr__(self) -> str:
        return "step(…)"

    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> DecoratedStep[P, R]: ...

    @overload
    def __call__(self, fn: Callable[P, R], /) -> DecoratedStep[P, R]: ...

    def __call__(self, fn: Any, /) -> Any:
        """Return ``fn`` as a step."""
        decorated = decorate(fn, self._settings, self._key)
        if isinstance(self._key, str):
            _check_fields(self._key, fn.__func__ if _is_class_method(fn) else fn)
        return decorated


class DecoratedStep(Generic[P, R]):
    """A function that is a step of whatever durable function calls it.

    Outside of durable functions it simply runs.
    """

    def __init__(self, fn: Callable[..., Any], settings: StepSettings, key: KeyTemplate) -> None:
        functools.update_wrapper(self, fn)
        self._fn = fn
        self._key = key
        self._settings = settings
        self._signature: inspect.Signature | None = None

    def __repr__(self) -> str:
        return f"<step {self._settings.name}>"

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> DecoratedStep[P, R]: ...

    @overload
    def __get__(
        self: DecoratedStep[Concatenate[S, Q], R], instance: S, owner: type | None = None
    ) -> DecoratedStep[Q, R]: ...

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None and not _is_class_method(self._fn):
            return self
        bound = cast("Any", self._fn).__get__(instance, owner)
        return DecoratedStep[Any, Any](bound, self._settings, self._key)

    def options(self, **options: Any) -> DecoratedStep[P, R]:
        """Return the same step with other options: those of ``step.options``."""
        return DecoratedStep(self._fn, self._settings.replace(options), self._key)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the step's value: the recorded one, or that of calling the function now."""
        frame, fn = current_frame.get(), self._fn
        if frame is None:
            plan = make_plan(fn)
            if plan.is_nested:  # out here it is a run of its own
                return cast("R", await fn(*args, **kwargs))
            return cast("R", await call_function(plan, fn, args, kwargs, {}))
        key = self._make_key(args, kwargs)
        plan = frame.call.run.plans.get(fn)
        fingerprint = fingerprint_arguments(args, kwargs)
        work = Work(self._settings, key, plan, fn, args, kwargs, fingerprint)
        return cast("R", await perform(frame, work))

    def under_key(self, call: StepSettings) -> tuple[Callable[..., Any], StepSettings]:
        """Return the function, and its settings, for a ``call`` that brings a key of its own."""
        return self._fn, self._settings.under(call)

    def _make_key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        if self._signature is None:
            self._signature = inspect.signature(self._fn)
        if self._key is None:
            return self._key_of_arguments(self._signature, args, kwargs)
        bound = self._bind(self._signature, args, kwargs)
        bound.apply_defaults()
        if not isinstance(self._key, str):
            return check_id(self._key(*bound.args, **bound.kwargs), "a step key")
        try:
            return self._key.format(**bound.arguments)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise TypeError(
                f"the key template {self._key!r} of step {self._settings.name!r} doesn't fit its "
                f"arguments {', '.join(bound.arguments)}: {type(error).__name__}: {error}"
            ) from None

    def _key_of_arguments(
        self, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> str:
        try:
            return f"{self._settings.name}:{run_fingerprint(signature, args, kwargs)}"
        except TypeError as error:
            self._bind(signature, args, kwargs)
            raise TypeError(
                f"step {self._settings.name!r} can't make a key of its arguments: decorate it "
                f"with @step(key=…), or call step(key, fn, …) "
                f"({str(error).partition(', so')[0]})"
            ) from None

    def _bind(
        self, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> inspect.BoundArguments:
        try:
            return signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"step {self._settings.name!r}: {error}") from None


def decorate(fn: Any, settings: StepSettings, key: KeyTemplate = None) -> DecoratedStep[Any, Any]:
    """Return ``fn`` as a step; raise ``TypeError`` if it can't be one."""
    if isinstance(fn, DecoratedStep):
        raise TypeError(f"{fn!r} is a step already; change its options with .options(…)")
    if not (callable(fn) or _is_class_method(fn)) or isinstance(fn, type):
        kind = f"a {type(fn).__name__}" if not isinstance(fn, type) else f"the class {fn.__name__}"
        raise TypeError(f"step decorates functions, got {kind}")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise TypeError(f"step decorates functions that return, and {function_name(fn)} yields")
    named = msgspec.structs.replace(settings, name=settings.name or function_name(fn))
    return DecoratedStep(fn, named, key)


def _is_class_method(fn: object) -> bool:
    """Return whether ``fn`` is a classmethod that isn't bound yet: it can't be called itself."""
    return isinstance(fn, classmethod)


def _check_template(key: Any) -> KeyTemplate:
    if key is None or isinstance(key, str):
        return None if key is None else check_id(key, "a step key")
    if not callable(key):
        raise TypeError(f"key must be a str template or a function, got {type(key).__name__}")
    return cast("Callable[..., str]", key)


def _check_fields(template: str, fn: Callable[..., Any]) -> None:
    """Raise ``TypeError`` if the template names something that isn't a parameter."""
    try:
        parameters = inspect.signature(fn).parameters
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise TypeError(f"the key template {template!r} can't be read: {error}") from None
    for field in fields:
        name = field.partition(".")[0].partition("[")[0]
        if name not in parameters:
            raise TypeError(
                f"the key template {template!r} of step {function_name(fn)!r} names {name!r}; "
                f"its arguments are: {', '.join(parameters)}"
            )

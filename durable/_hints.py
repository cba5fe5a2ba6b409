"""What a callable says about the types of its arguments and its result.

Hints are resolved one by one: a name that exists only for type checkers spoils its own
annotation and no other.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final, NamedTuple, cast, get_args, get_origin


class Unknown:
    """The type of ``UNKNOWN``."""

    def __repr__(self) -> str:
        return "UNKNOWN"


#: No annotation: plain JSON types only.
UNKNOWN: Final = Unknown()

_SAY_NOTHING: Final = (Any, object, inspect.Parameter.empty, typing.NoReturn, typing.Never)


class Hint(NamedTuple):
    """A resolved annotation, or ``UNKNOWN`` and why it is."""

    annotation: object
    unresolved: str = ""


def return_hint(fn: Callable[..., object]) -> Hint:
    """Return what ``fn`` gives, once it has been awaited.

    Params:
        fn: a function, method, partial, class, or object with ``__call__``.
    """
    fn, owner = _innermost(fn)
    if isinstance(fn, type) or isinstance(get_origin(fn), type):
        return Hint(fn)
    annotations = _annotations(fn)
    if "return" not in annotations:
        return Hint(UNKNOWN)
    hint = _resolve(fn, annotations["return"])
    return _usable(_awaited(hint.annotation), owner) if hint.annotation is not UNKNOWN else hint


def parameter_hints(fn: Callable[..., object]) -> dict[str, Hint]:
    """Return the hint of each annotated parameter.

    Params:
        fn: as for ``return_hint``; a class gives those of its constructor.
    """
    fn, owner = _innermost(fn)
    if isinstance(fn, type):
        owner, fn = fn, cast("Any", fn).__init__
    hints = {name: _resolve(fn, value) for name, value in _annotations(fn).items()}
    return {
        name: hint if hint.annotation is UNKNOWN else _usable(hint.annotation, owner)
        for name, hint in hints.items()
        if name != "return"
    }


def unpacked_hints(annotation: object) -> dict[str, Hint] | None:
    """Return the hints inside ``Unpack`` of a TypedDict; None for anything else."""
    if get_origin(annotation) is not typing.Unpack:
        return None
    try:
        hints = typing.get_type_hints(get_args(annotation)[0], include_extras=True)
    except Exception:
        return {}
    return {name: _usable(_without_qualifiers(hint), None) for name, hint in hints.items()}


def _without_qualifiers(annotation: Any) -> Any:
    while get_origin(annotation) in (typing.Required, typing.NotRequired):
        (annotation,) = get_args(annotation)
    return annotation


def _innermost(fn: Any) -> tuple[Any, type | None]:
    """Return the callable whose annotations count, and the class that ``Self`` would mean."""
    owner: type | None = None
    while True:
        kind = cast("Any", type(fn))
        if issubclass(kind, functools.partial):
            fn = fn.func
        elif issubclass(kind, types.MethodType):
            receiver: Any = fn.__self__
            owner = cast("type", receiver if inspect.isclass(receiver) else type(receiver))
            fn = fn.__func__
        elif issubclass(kind, type | types.FunctionType | types.BuiltinFunctionType):
            return fn, owner
        elif hasattr(fn, "__wrapped__"):
            fn = fn.__wrapped__
        elif get_origin(fn) is None and inspect.isfunction(getattr(kind, "__call__", None)):  # noqa: B004
            fn, owner = kind.__call__, kind
        else:
            return fn, owner


def _annotations(fn: Any) -> Mapping[str, Any]:
    try:
        return inspect.get_annotations(fn)
    except Exception:  # no function at all, or annotations that fail as they are evaluated
        return {}


def _resolve(fn: Any, annotation: object) -> Hint:
    inner = inspect.unwrap(fn)
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        hints = typing.get_type_hints(
            holder,
            globalns=getattr(inner, "__globals__", {}),
            localns=_local_names(inner),
            include_extras=True,
        )
    except Exception as exc:
        if isinstance(exc, NameError):
            return Hint(UNKNOWN, f"its annotation names {exc.name!r}, which isn't defined there")
        return Hint(UNKNOWN, f"its annotation can't be read ({type(exc).__name__})")
    return Hint(hints["it"])


def _local_names(fn: Any) -> dict[str, Any]:
    """Return the names that a function defined inside another one can see."""
    names = {param.__name__: param for param in getattr(fn, "__type_params__", ())}
    code = getattr(fn, "__code__", None)
    cells = getattr(fn, "__closure__", None) or ()
    for name, cell in zip(getattr(code, "co_freevars", ()), cells, strict=False):
        try:
            names[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return names


def _awaited(annotation: Any) -> Any:
    origin = get_origin(annotation)
    if isinstance(origin, type) and issubclass(origin, Awaitable):
        arguments = get_args(annotation)
        return _awaited(arguments[-1]) if arguments else UNKNOWN
    return UNKNOWN if annotation in (Awaitable, Coroutine) else annotation


def _usable(annotation: Any, owner: type | None) -> Hint:
    """Return a hint that a decoder can be made of."""
    if annotation is UNKNOWN or any(annotation is nothing for nothing in _SAY_NOTHING):
        return Hint(UNKNOWN)
    if isinstance(annotation, typing.TypeVar):
        return Hint(UNKNOWN, f"its annotation is the type variable {annotation.__name__}")
    if annotation is cast("Any", typing).Self:
        return Hint(UNKNOWN, "its annotation is Self") if owner is None else Hint(owner)
    if annotation is typing.LiteralString:
        return Hint(str)
    if get_origin(annotation) is typing.TypeGuard:
        return Hint(bool)
    if isinstance(annotation, typing.ParamSpecArgs | typing.ParamSpecKwargs):
        return Hint(UNKNOWN)
    return Hint(annotation)

"""Exceptions as they are stored, and back.

What a caller catches must be the same on the first pass and on every replay: the same type with
the same text. Where that can't be had, it is a ``StepError`` on both.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from durable._codec import TypeCodec
from durable._errors import NotSerializableError, StepError
from durable._records import NOTHING, StoredError

_LONGEST_TRACEBACK: Final = 8_000
_MAIN: Final = "__main__"

_ARGUMENTS: Final = TypeCodec(list)
_STATE: Final = TypeCodec(dict)


def describe_error(exc: BaseException) -> StoredError:
    """Return what is stored of an exception. Works for every exception, broken ones too.

    Params:
        exc: the exception.

    Returns:
        Its type and text, the end of its traceback, and what its type needs to be rebuilt, so
        far as plain JSON carries it faithfully.
    """
    kind = type(exc)
    arguments, state = _ingredients(exc)
    return StoredError(
        type=_storable(f"{kind.__module__}:{kind.__qualname__}"),
        message=_text_of(exc),
        traceback=_traceback_of(exc),
        arguments=NOTHING if arguments is None else _stored(_ARGUMENTS, arguments),
        state=_stored_state(state),
    )


def rebuild_error(
    stored: StoredError, allowed: tuple[type[BaseException], ...], step: str
) -> Exception:
    """Return the exception that ``stored`` describes. Never raises.

    Params:
        stored: what ``describe_error`` returned.
        allowed: the types that may be rebuilt, with their subclasses; no other class is touched.
        step: the step that failed.

    Returns:
        An exception of the same type with the same text, or else a ``StepError``.
    """
    for kind in _candidates(stored.type, allowed):
        for make in (_call, _fill):
            try:
                error = make(kind, stored)
            except Exception:
                continue
            if type(error) is kind and _text_of(error) == stored.message:
                return error
    return StepError(step, stored.type_name, stored.message, stored.traceback)


def settled_error(
    exc: Exception, allowed: tuple[type[BaseException], ...], step: str
) -> tuple[StoredError, Exception]:
    """Return what to store of a final failure, and what to raise now and on every replay.

    Params:
        exc: the failure.
        allowed: the types that may be rebuilt.
        step: the step that failed.

    Returns:
        The stored form, and ``exc`` itself when a replay gives the same type, text and
        attributes; otherwise what the replay will give, with ``exc`` as its cause.
    """
    stored = describe_error(exc)
    rebuilt = rebuild_error(stored, allowed, step)
    same_text = _text_of(rebuilt) == stored.message
    if type(rebuilt) is type(exc) and same_text and vars(rebuilt).keys() == vars(exc).keys():
        return stored, exc
    rebuilt.__cause__ = exc
    return stored, rebuilt


def _ingredients(exc: BaseException) -> tuple[list[Any] | None, dict[str, Any]]:
    """Return the arguments and attributes that the exception's type is rebuilt from."""
    try:
        made: Any = exc.__reduce_ex__(2)
        if made[0] is not type(exc):
            return None, {}
        state: dict[str, Any] = dict(made[2] or {}) if len(made) > 2 else {}
        state.pop("args", None)  # some builtins repeat them there
        return list(made[1]), state
    except Exception:
        return None, {}


def _stored_state(state: dict[str, Any]) -> msgspec.Raw:
    """Return the attributes as JSON, without those that JSON can't carry."""
    if not state:
        return NOTHING
    whole = _stored(_STATE, state)
    if whole:
        return whole
    kept = {name: value for name, value in state.items() if _stored(_STATE, {name: value})}
    return _stored(_STATE, kept) if kept else NOTHING


def _stored(codec: TypeCodec, value: object) -> msgspec.Raw:
    try:
        return msgspec.Raw(codec.store(value, "exception")[0])
    except NotSerializableError:
        return NOTHING


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _text_of(exc: BaseException) -> str:
    try:
        return _storable(str(exc))
    except Exception as broken:
        return f"<its text can't be made: {type(broken).__name__}>"


def _traceback_of(exc: BaseException) -> str:
    try:
        text = _storable("".join(traceback.format_exception(exc)))
    except Exception:
        return ""
    if len(text) <= _LONGEST_TRACEBACK:
        return text
    return "…\n" + text[-_LONGEST_TRACEBACK:].partition("\n")[2]


def _call(kind: type[Exception], stored: StoredError) -> Exception:
    error = kind(*_arguments_of(stored))
    _restore(error, stored)
    return error


def _fill(kind: type[Exception], stored: StoredError) -> Exception:
    """Make an exception without its ``__init__``, which may take other arguments."""
    error = kind.__new__(kind, *_arguments_of(stored))
    _restore(error, stored)
    return error


def _arguments_of(stored: StoredError) -> list[Any]:
    if not stored.arguments:
        raise LookupError
    arguments: list[Any] = _ARGUMENTS.load(stored.arguments, "exception")
    return arguments


def _restore(error: Exception, stored: StoredError) -> None:
    if stored.state:
        error.__setstate__(_STATE.load(stored.state, "exception"))


def _candidates(name: str, allowed: tuple[type[BaseException], ...]) -> Iterator[type[Exception]]:
    """Yield the classes that a stored type may mean, all of them among the allowed ones.

    A class of the main script has another module name in a worker that imports the script.
    """
    module, _, qualname = name.partition(":")
    alike = [kind for kind in _with_subclasses(allowed) if kind.__qualname__ == qualname]
    yield from (kind for kind in alike if kind.__module__ == module)
    imported = _imported(module, qualname)
    if imported is not None and issubclass(imported, allowed):
        yield imported
    yield from (kind for kind in alike if _MAIN in (module, kind.__module__))


def _with_subclasses(allowed: tuple[type[BaseException], ...]) -> list[type[Exception]]:
    """Return the allowed classes, then their loaded subclasses, the latest first."""
    found: dict[type[BaseException], None] = {}
    todo = list(allowed)
    while todo:
        kind = todo.pop(0)
        if kind not in found:
            found[kind] = None
            todo += reversed(type.__subclasses__(kind))
    return [kind for kind in found if issubclass(kind, Exception)]


def _imported(module: str, qualname: str) -> type[Exception] | None:
    if module == _MAIN:
        return None
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit):  # a script that isn't meant to be imported
        return None
    return found if isinstance(found, type) and issubclass(found, Exception) else None

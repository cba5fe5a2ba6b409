"""Where a value and its stored form part ways, why, and what to do about it.

Only refusals come here, so nothing is optimised. Reasons name types and limits, never values.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from datetime import date, datetime, time
from enum import Enum
from types import NoneType
from typing import Any, Final, NamedTuple, cast
from uuid import UUID

import msgspec

from durable._faithful import has_fields, same, state_of

_LONGEST_KEY: Final = 60

NOT_FINITE: Final = "JSON has no NaN and no infinity; return None or text instead"
TOO_DEEP: Final = "it is nested too deeply, or contains itself; return something flatter"

_ENCODABLE: Final = frozenset({str, int, float, bytes, bool})

_NOT_DATA: Final[tuple[tuple[Callable[[Any], bool], str], ...]] = (
    (inspect.isawaitable, "it has to be awaited first; return what it gives"),
    (inspect.isgenerator, "a generator can be read only once; return a list of its items"),
    (inspect.isasyncgen, "a generator can be read only once; return a list of its items"),
    (inspect.isroutine, "a function is code, not data; return what identifies it"),
    (inspect.isclass, "a class is code, not data; return what identifies it"),
    (lambda value: hasattr(value, "fileno"), "an open file ends with the process; return its path"),
)


class Flaw(NamedTuple):
    """The first place where a value and its stored form part ways."""

    path: str
    found: object
    reason: str


def segment(key: object) -> str:
    """Return a mapping's key as a step of a path: ``.name`` or ``['odd key']``."""
    if isinstance(key, str) and key.isidentifier() and len(key) <= _LONGEST_KEY:
        return f".{key}"
    if not isinstance(key, str | int | float | Enum | date | UUID):
        return f"[{type(key).__name__}]"
    text = repr(key)
    return f"[{text if len(text) <= _LONGEST_KEY else text[:_LONGEST_KEY] + '…'}]"


def parts(value: Any) -> Iterator[tuple[str, object]]:
    """Yield what a value is made of, each with its step of the path."""
    if isinstance(value, dict):
        for key, item in cast("dict[object, object]", value).items():
            yield segment(key), item
    elif isinstance(value, tuple) and hasattr(cast("Any", value), "_asdict"):
        named = cast("dict[str, object]", cast("Any", value)._asdict())
        for name, item in named.items():
            yield f".{name}", item
    elif isinstance(value, list | tuple | set | frozenset):
        for index, item in enumerate(cast("list[object]", value)):
            yield f"[{index}]", item
    elif has_fields(value) and not isinstance(value, type):
        for name, item in state_of(value).items():
            yield f".{name}", item


def find_unencodable(value: object, encode: Callable[[object], bytes], path: str) -> Flaw:
    """Return the innermost part of ``value`` that ``encode`` refuses, and why it does.

    Params:
        value: what ``encode`` refused.
        encode: the encoder.
        path: where ``value`` is.
    """
    for step, part in parts(value):
        try:
            encode(part)
        except RecursionError:
            break
        except Exception:
            return find_unencodable(part, encode, path + step)
    return Flaw(path, value, _why_unencodable(value, encode))


def _why_unencodable(value: Any, encode: Callable[[object], bytes]) -> str:
    if isinstance(value, str | int | float | bytes) and type(value) not in _ENCODABLE:
        return (
            "it is of a subclass of a builtin type, which JSON would lose; return the plain value"
        )
    if isinstance(value, str):
        return "it holds a lone surrogate, which no valid Unicode text has; clean the text first"
    if isinstance(value, int):
        return "it has more digits than this Python turns into text; keep it as bytes or hex text"
    if isinstance(value, dict):
        for key in cast("dict[object, object]", value):
            try:
                encode({key: None})
            except UnicodeEncodeError:
                return "one of its keys holds a lone surrogate; use keys of valid Unicode"
            except Exception:
                return f"JSON has no form for keys of type {name_of(key)}; use str keys"
    for is_it, reason in _NOT_DATA:
        if is_it(cast("Any", value)):
            return reason
    return (
        "JSON has no form for this type; return builtins, a dataclass, a msgspec Struct, or a "
        "pydantic or attrs model"
    )


def find_difference(a: object, b: object, path: str, advice: str) -> Flaw:
    """Return the innermost place where ``b`` isn't what ``a`` was.

    Params:
        a: the original.
        b: what came back; ``same(a, b)`` is false.
        path: where ``a`` is.
        advice: what the user can do about a type that JSON doesn't have.
    """
    if isinstance(a, float) and not math.isfinite(a):
        return Flaw(path, a, NOT_FINITE)
    if type(a) is not type(b):
        return Flaw(path, a, _why_other_type(a, b, advice))
    inner = _inner_difference(a, b, path, advice)
    return inner or Flaw(path, a, _why_other_value(a))


def _inner_difference(a: Any, b: Any, path: str, advice: str) -> Flaw | None:
    if isinstance(a, dict):
        keys = list(cast("dict[object, object]", a))
        others = list(cast("dict[object, object]", b))
        for key, other in zip(keys, others, strict=False):
            if not same(key, other):
                return Flaw(path + segment(key), key, _why_key(key, other))
        if len(keys) != len(others):
            return Flaw(path, cast("Any", a), _why_keys(keys))
    if isinstance(a, set | frozenset):
        return None
    before, after = list(parts(cast("Any", a))), list(parts(b))
    if len(before) != len(after):
        return None
    for (step, part), (_, other) in zip(before, after, strict=True):
        if not same(part, other):
            return find_difference(part, other, path + step, advice)
    return None


def _why_other_type(a: object, b: object, advice: str) -> str:
    if type(a) is int and type(b) is float:
        return "no float has exactly this value; annotate it as int"
    return f"it would come back as {name_of(b)}; {advice}"


def _why_key(key: object, other: object) -> str:
    if type(key) is type(other):
        return "this key would come back as another one; use plain str keys"
    return (
        f"a key of type {name_of(key)} would come back as {name_of(other)}; use str keys, or "
        f"annotate the mapping as dict[{name_of(key)}, …]"
    )


def _why_keys(keys: list[object]) -> str:
    if any(type(key) is not str for key in keys):
        return "two of its keys have the same stored form; use str keys that differ"
    return "some of its keys aren't in the annotation and would be lost; add them to it"


def _why_other_value(a: object) -> str:
    if isinstance(a, datetime | time):
        if a.fold:
            return "its fold would be lost; convert it to UTC"
        return "its time zone would be lost; convert it to UTC, and keep the zone's name beside it"
    if has_fields(a):
        return (
            "not all it carries comes back: names that begin with an underscore, init=False and "
            "excluded fields aren't stored; use plain fields"
        )
    return "its stored form would come back as another value; return plain data instead"


def name_of(value: object) -> str:
    """Return the name of a value's type, with its module unless that is obvious."""
    kind = type(value)
    if kind is NoneType:
        return "None"
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


class NoDecoderError(Exception):
    """No decoder can be made for an annotation; the text says why and holds no values."""


#: How msgspec's messages begin when they hold types and limits only.
_SHOWN: Final = ("Expected `", "Object missing required field `")

#: What is shown of messages that go on with the value itself.
_CUT: Final = (
    "Invalid enum value",
    "Invalid value",
    "Object contains unknown field",
    "Invalid UUID",
    "Invalid decimal string",
    "Invalid base64 encoded string",
    "Invalid RFC3339 encoded datetime",
    "Invalid RFC3339 encoded date",
    "Invalid RFC3339 encoded time",
    "Invalid ISO8601 duration",
    "Integer value out of range",
    "Number out of range",
    "Duration is out of range",
    "Timestamp is out of range",
)

# Compiled at their first use, which most programs never come to.
_AT: Final = r" - at (?:`key` in )?`(\$[^`]*)`$"
_STEP: Final = r"\.([^.\[]+)|\[(\d+)\]|\[\.\.\.\]"
_MOST_TRIES: Final = 1000


def explain(exc: Exception) -> tuple[str, str]:
    """Return why decoding failed, without quoting any value, and msgspec's path to the place."""
    text = str(exc)
    if isinstance(exc, NoDecoderError):
        return text, "$"
    if isinstance(exc, RecursionError):
        return "it is nested too deeply", "$"
    if not isinstance(exc, msgspec.DecodeError):
        return f"decoding it raised {type(exc).__name__}", "$"
    if not isinstance(exc, msgspec.ValidationError):
        return text, "$"
    match = re.search(_AT, text)
    path, text = (match[1], text[: match.start()]) if match else ("$", text)
    if exc.__cause__ is not None:
        return f"its class's own checks raised {_name_checks(exc.__cause__)}", path
    if text.startswith(_SHOWN):
        return text, path
    return next((cut for cut in _CUT if text.startswith(cut)), "it is invalid"), path


def _name_checks(cause: BaseException) -> str:
    """Return the type of an error, with a pydantic error's kinds and places."""
    errors: Any = getattr(cause, "errors", None)
    try:
        found = [f"{error['type']} at {'.'.join(map(str, error['loc']))}" for error in errors()]
    except Exception:
        return type(cause).__name__
    return f"{type(cause).__name__} ({', '.join(found[:3])})"


def find_misfit(
    value: object, data: bytes, decode: Callable[[bytes], Any], exc: Exception, advice: str
) -> Flaw:
    """Return the part of ``value`` whose stored form its annotation refuses.

    Params:
        value: the original.
        data: its stored form.
        decode: what raised ``exc`` for it.
        exc: the refusal.
        advice: what the user can do about the annotation.
    """
    path = ""
    if isinstance(exc, RecursionError):
        return Flaw(path, value, TOO_DEEP)
    lost = _first_not_finite(value, path)
    if lost is not None:
        return lost
    reason, at = explain(exc)
    if isinstance(exc, NoDecoderError):
        return Flaw(path, value, f"no decoder can be made of its annotation: {reason}; {advice}")
    root = node = msgspec.json.decode(data)
    found: Any = value
    for match in re.finditer(_STEP, at):
        try:
            if match[1]:
                step, found, node = match[0], _field(found, match[1]), node[match[1]]
            elif match[2]:
                index = int(match[2])
                step, found, node = match[0], list(found)[index], node[index]
            else:
                step, found = list(parts(found))[_narrow(root, node, decode, (reason, at))]
                (node,) = node.values()
        except (LookupError, AttributeError):  # a tag, or a field that a class renames
            break
        path += step
    return Flaw(path, found, f"its stored form doesn't fit the annotation: {reason}; {advice}")


def _field(value: Any, name: str) -> Any:
    """Return the field that is stored under ``name``, which may not be its own name."""
    if isinstance(value, dict):
        return cast("dict[str, Any]", value)[name]
    encoded: tuple[str, ...] = getattr(value, "__struct_encode_fields__", ())
    if name in encoded:
        name = value.__struct_fields__[encoded.index(name)]
    return getattr(value, name)


def _narrow(
    root: Any, node: dict[str, Any], decode: Callable[[bytes], Any], failure: tuple[str, str]
) -> int:
    """Leave in ``node``, a part of ``root``, one item that still fails; return its position.

    msgspec doesn't say which of a mapping's values it refused.
    """
    items = list(node.items())
    for index, (key, item) in enumerate(items[:_MOST_TRIES]):
        node.clear()
        node[key] = item
        try:
            decode(msgspec.json.encode(root))
        except Exception as exc:
            if explain(exc) == failure:
                return index
    raise LookupError


def _first_not_finite(value: object, path: str) -> Flaw | None:
    if isinstance(value, float) and not math.isfinite(value):
        return Flaw(path, value, NOT_FINITE)
    for step, part in parts(value):
        flaw = _first_not_finite(part, path + step)
        if flaw is not None:
            return flaw
    return None

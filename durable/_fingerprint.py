"""Stable fingerprints of arguments, or "no information".

A fingerprint is a hash of a canonical form that says what a value is, not which class or process
it lives in. Fields that have their default are left out, so a class may gain a field with a
default. A value with any part that has no canonical form (a client, a function) has no
fingerprint at all: a wrong "changed" would stop a run that is fine.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from hashlib import blake2b
from pathlib import PurePath
from types import MappingProxyType, NoneType
from typing import Any, Final, cast
from uuid import UUID

import msgspec

_SHORT: Final = 8
_LONG: Final = 16

#: Stands for an argument without a fingerprint.
_NOTHING: Final = "-"

#: What "no default" looks like, from a class that declares fields.
_NO_DEFAULT: Final = object()


class _NoInformationError(Exception):
    """A part of the value has no canonical form."""


def function_name(fn: Callable[..., object]) -> str:
    """Return a function's qualified name without its module.

    Params:
        fn: a function, method, partial (its inner function counts), or object with ``__call__``
            (its type counts).
    """
    inner: Any = fn
    while isinstance(inner, partial):
        inner = inner.func
    if inspect.ismethod(inner):
        receiver: Any = inner.__self__
        owner = cast("type", receiver if inspect.isclass(receiver) else type(receiver))
        defined: str = inner.__func__.__qualname__
        return defined if "<locals>" in defined else f"{owner.__qualname__}.{inner.__name__}"
    name = getattr(inner, "__qualname__", None)
    return name if isinstance(name, str) else type(inner).__qualname__


def fingerprint(value: object) -> str | None:
    """Return 16 hex characters that say what ``value`` is, or None for "no information".

    ``1``, ``1.0``, ``True`` and ``"1"`` differ, as do a list and a tuple; the order of a mapping
    and of a set doesn't count. Never raises.
    """
    try:
        if type(value) is str:  # by far the most common: no length is needed when it's alone
            data = b"s" + value.encode("utf-8", "surrogatepass")
        else:
            data = _canonical(value)
        return blake2b(data, digest_size=_SHORT).hexdigest()
    except Exception:
        return None


def fingerprint_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return the fingerprints of a call's arguments as one short text.

    Positional ones come first, then ``name=…`` sorted by name, joined by spaces; ``-`` stands
    for "no information".
    """
    if not kwargs and len(args) == 1:
        return fingerprint(args[0]) or _NOTHING
    parts = [fingerprint(value) or _NOTHING for value in args]
    parts += [f"{_quoted(name)}={fingerprint(kwargs[name]) or _NOTHING}" for name in sorted(kwargs)]
    return " ".join(parts)


def changed_arguments(
    stored: str,
    current: str,
    parameters: Sequence[str],
    defaults: Mapping[str, object] = MappingProxyType({}),
) -> tuple[str, ...]:
    """Return the names of the arguments that differ between two calls.

    Params:
        stored: what ``fingerprint_arguments`` gave for the recorded call.
        current: what it gives for this one.
        parameters: the names of the function's positional parameters.
        defaults: what parameters are that aren't given.

    Returns:
        The names in the order of this call, then those that only the recorded one had.
        Arguments without a fingerprint on either side are never named.
    """
    if stored == current:
        return ()
    before, now = _named(stored, parameters), _named(current, parameters)
    for name in before.keys() ^ now.keys():
        if name in defaults:
            missing = now if name in before else before
            missing[name] = fingerprint(defaults[name]) or _NOTHING
    return tuple(
        name
        for name in dict.fromkeys((*now, *before))
        if before.get(name) != now.get(name)
        and before.get(name) != _NOTHING
        and now.get(name) != _NOTHING
    )


def run_fingerprint(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str:
    """Return 32 hex characters that say what a whole call is about.

    How an argument is passed doesn't count, nor do arguments equal to their default.

    Params:
        signature: the function's, without ``self``.
        args: the positional arguments.
        kwargs: those given by name.

    Raises:
        TypeError: the arguments don't fit the signature, or one of them has no fingerprint.
    """
    bound = signature.bind(*args, **kwargs).arguments
    parts: list[bytes] = []
    for name, value in bound.items():
        parameter = signature.parameters[name]
        if parameter.kind is parameter.VAR_KEYWORD:
            parts += [_argument(each, value[each], _NO_DEFAULT) for each in value]
            continue
        default: Any = parameter.default
        if parameter.kind is parameter.VAR_POSITIONAL:
            default = ()
        elif default is parameter.empty:
            default = _NO_DEFAULT
        parts.append(_argument(name, value, default))
    return blake2b(_joined(b"o", sorted(filter(None, parts))), digest_size=_LONG).hexdigest()


def _argument(name: str, value: object, default: object) -> bytes:
    """Return the canonical form of one argument; nothing at all when it has its default."""
    if value is default:
        return b""
    try:
        return _field(name, value, default)
    except Exception:
        raise TypeError(
            f"the argument {name!r} (of type {type(value).__qualname__}) has no fingerprint, so "
            "this call can't be recognised when it is made again; give the run an id of its own "
            "with `.run(run_id, ...)` instead"
        ) from None


def _quoted(name: str) -> str:
    if name.isidentifier():
        return name
    return name.replace("%", "%25").replace(" ", "%20").replace("=", "%3D")


def _named(text: str, parameters: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for index, part in enumerate(text.split(" ") if text else ()):
        name, equals, value = part.rpartition("=")
        if equals:
            name = name.replace("%3D", "=").replace("%20", " ").replace("%25", "%")
        elif index < len(parameters):
            name = parameters[index]
        else:
            name = f"argument {index + 1}"
        found[name] = value
    return found


def _canonical(value: object) -> bytes:
    """Return bytes that are equal exactly for values that mean the same.

    Raises:
        _NoInformationError: there is no such form.
        Exception: whatever a broken class raises; RecursionError for a value inside itself.
    """
    write = _FORMS.get(type(value))
    return _other(value) if write is None else write(value)


def _joined(tag: bytes, parts: Iterable[bytes]) -> bytes:
    return b"%b(%b)" % (tag, b"".join(parts))


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"s%d:%b" % (len(data), data)


def _data(value: Any) -> bytes:
    data = bytes(value)
    return b"b%d:%b" % (len(data), data)


def _number(value: int) -> bytes:
    # In hex, since Python refuses to write very long integers in decimal.
    return b"i%x;" % value


def _float(value: float) -> bytes:
    return f"f{value.hex()};".encode()


def _list(value: Iterable[Any]) -> bytes:
    return _joined(b"l", map(_canonical, value))


def _tuple(value: Iterable[Any]) -> bytes:
    return _joined(b"t", map(_canonical, value))


def _set(value: Iterable[Any]) -> bytes:
    return _joined(b"u", sorted(map(_canonical, value)))


def _mapping(value: Mapping[Any, Any]) -> bytes:
    items = ((_canonical(key), _canonical(item)) for key, item in value.items())
    return _joined(b"m", (key + item for key, item in sorted(items)))


def _datetime(value: datetime | time) -> bytes:
    name = value.tzname() or ""
    zone = getattr(value.tzinfo, "key", None) or name
    return _joined(b"d", map(_text, (value.isoformat(), name, str(zone), str(value.fold))))


def _date(value: date) -> bytes:
    return _joined(b"d", [_text(value.isoformat())])


def _timedelta(value: timedelta) -> bytes:
    return _joined(b"p", map(_number, (value.days, value.seconds, value.microseconds)))


def _decimal(value: Decimal) -> bytes:
    return _joined(b"n", [_text(str(value))])


def _enum(value: Enum) -> bytes:
    return _joined(b"e", [_canonical(value.value)])


_FORMS: Final[Mapping[type, Callable[[Any], bytes]]] = MappingProxyType(
    {
        str: _text,
        int: _number,
        NoneType: lambda value: b"z",
        bool: lambda value: b"y" if value else b"x",
        float: _float,
        bytes: _data,
        bytearray: _data,
        memoryview: _data,
        list: _list,
        tuple: _tuple,
        dict: _mapping,
        set: _set,
        frozenset: _set,
        datetime: _datetime,
        date: _date,
        time: _datetime,
        timedelta: _timedelta,
        Decimal: _decimal,
        UUID: lambda value: _joined(b"g", [_text(str(value))]),
        complex: lambda value: _joined(b"c", [_float(value.real), _float(value.imag)]),
        range: lambda value: _joined(b"r", map(_number, (value.start, value.stop, value.step))),
        msgspec.UnsetType: lambda value: b"w",
    }
)

#: Subclasses count as what they are in the end; an Enum of ints is an Enum first.
_BASES: Final[tuple[tuple[type, Callable[[Any], bytes]], ...]] = (
    (Enum, _enum),
    (PurePath, lambda value: _joined(b"a", [_text(str(value))])),
    (str, lambda value: _text(str.__str__(value))),
    (int, lambda value: _number(int(value))),
    (float, lambda value: _float(float(value))),
    (bytes, _data),
    (dict, lambda value: _mapping(dict(value))),
    (list, _list),
    (tuple, _tuple),
    (set, _set),
    (frozenset, _set),
    (datetime, _datetime),
    (date, _date),
)


def _other(value: Any) -> bytes:
    if isinstance(value, type):
        raise _NoInformationError
    fields = _fields_of(value)
    if fields is not None:
        return _joined(b"o", sorted(filter(None, (_field(*each) for each in fields))))
    for base, write in _BASES:
        if issubclass(type(value), base):
            return write(value)
    raise _NoInformationError


def _field(name: str, value: object, default: object) -> bytes:
    """Return the canonical form of a field; nothing at all when it has its default."""
    data = _canonical(value)
    if default is not _NO_DEFAULT and _has_default(data, default):
        return b""
    return _text(name) + data


def _has_default(data: bytes, default: object) -> bool:
    try:
        return data == _canonical(default() if isinstance(default, _Factory) else default)
    except Exception:
        return False


class _Factory:
    """A default that has to be made."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], object]) -> None:
        self._make = make

    def __call__(self) -> object:
        return self._make()


_Field = tuple[str, Any, Any]


def _fields_of(value: object) -> list[_Field] | None:
    """Return the name, value and default of each field, for classes that declare fields."""
    kind = cast("Any", type(value))
    if hasattr(kind, "__struct_fields__"):
        return _struct_fields(value)
    if hasattr(kind, "__pydantic_fields_set__"):
        return _model_fields(value)
    if hasattr(kind, "__dataclass_fields__"):
        return _dataclass_fields(value)
    if hasattr(kind, "__attrs_attrs__"):
        return _attrs_fields(value)
    if hasattr(kind, "_field_defaults"):
        return _named_tuple_fields(value)
    return None


def _named_tuple_fields(value: Any) -> list[_Field]:
    defaults: dict[str, Any] = value._field_defaults
    names: tuple[str, ...] = value._fields
    return [(name, getattr(value, name), defaults.get(name, _NO_DEFAULT)) for name in names]


def _struct_fields(value: Any) -> list[_Field]:
    found: list[_Field] = []
    for field in msgspec.structs.fields(value):
        default: Any = _NO_DEFAULT
        if field.default is not msgspec.NODEFAULT:
            default = field.default
        elif field.default_factory is not msgspec.NODEFAULT:
            default = _Factory(field.default_factory)
        found.append((field.name, getattr(value, field.name), default))
    return found


def _dataclass_fields(value: Any) -> list[_Field]:
    found: list[_Field] = []
    for field in dataclasses.fields(value):
        default: Any = _NO_DEFAULT
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = _Factory(field.default_factory)
        if field.compare:
            found.append((field.name, getattr(value, field.name), default))
    return found


def _attrs_fields(value: Any) -> list[_Field]:
    found: list[_Field] = []
    fields: Iterable[Any] = cast("Any", type(value)).__attrs_attrs__
    for field in fields:
        default: Any = field.default
        if hasattr(default, "takes_self"):
            make = default.factory
            default = _Factory(partial(make, value) if default.takes_self else make)
        elif getattr(default, "name", None) == "NOTHING":
            default = _NO_DEFAULT
        if field.eq:
            found.append((field.name, getattr(value, field.name), default))
    return found


def _model_fields(value: Any) -> list[_Field]:
    found: list[_Field] = []
    fields: Mapping[str, Any] = cast("Any", type(value)).model_fields
    for name, field in fields.items():
        default: Any = _NO_DEFAULT
        if not field.is_required():
            factory = field.default_factory
            default = field.default if factory is None else _Factory(factory)
        found.append((name, value.__dict__[name], default))
    extra: dict[str, Any] = value.__pydantic_extra__ or {}
    found += [(name, item, _NO_DEFAULT) for name, item in extra.items()]
    return found

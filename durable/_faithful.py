"""Whether a value survived its stored form.

Equality isn't enough: ``1 == True == 1.0``, and a class may compare as it likes. So values are
compared by structure, with exact types, all the way down.
"""

from __future__ import annotations

import dataclasses
import marshal
import math
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from functools import cached_property
from types import MappingProxyType, NoneType
from typing import Any, Final, cast
from uuid import UUID

import msgspec

#: Types whose ``==``, between two of exactly the same type, leaves nothing out.
_PLAIN: Final = frozenset({str, int, bool, NoneType, bytes, bytearray, date, timedelta, UUID})

#: The format without references, which depend on who else holds the object.
_MARSHAL_PLAIN: Final = 2

#: Up to this many items a loop is quicker than looking at all the types first.
_SMALL: Final = 8


def same_builtins(a: Any, b: Any) -> bool:
    """Return whether two values of builtin types are the same, exact types included.

    marshal writes each builtin type differently and refuses every other type and every subclass,
    so comparing what it writes is ``same`` at C speed. (It writes bytes and bytearray alike.)

    Params:
        a: the original.
        b: what came back; it holds no bytes.

    Returns:
        False also means "perhaps": ask ``same`` then.
    """
    try:
        return marshal.dumps(a, _MARSHAL_PLAIN) == marshal.dumps(b, _MARSHAL_PLAIN)
    except ValueError:
        return False


def same(a: object, b: object) -> bool:
    """Return whether ``b``, read back from storage, is ``a`` with nothing lost.

    The one difference allowed is an int that became the equal float, which only a float
    annotation does.

    Params:
        a: the original.
        b: what came back.

    Raises:
        Exception: whatever a class's own ``__eq__`` or ``tzinfo`` raises; RecursionError for a
            value nested too deeply.
    """
    kind: type = type(a)
    if kind is not type(b):
        return kind is int and type(b) is float and a == b
    if kind in _PLAIN:
        return a == b
    compare = _COMPARE.get(kind)
    return _same_object(a, b) if compare is None else compare(a, b)


def _same_float(a: float, b: float) -> bool:
    return a == b and (a != 0.0 or math.copysign(1.0, a) == math.copysign(1.0, b))


def _same_items(a: list[Any] | tuple[Any, ...], b: list[Any] | tuple[Any, ...]) -> bool:
    if len(a) != len(b):
        return False
    if len(a) > _SMALL:
        types = list(map(type, a))
        kinds = set(types)
        if kinds <= _PLAIN:
            if types == list(map(type, b)):
                return a == b
        elif kinds == {float} and set(map(type, b)) == kinds and 0.0 not in a:
            return a == b
    return all(map(same, a, b))


def _same_dict(a: Mapping[Any, object], b: Mapping[Any, object]) -> bool:
    if len(a) != len(b):
        return False
    if len(a) > _SMALL:
        return _same_items(list(a), list(b)) and _same_items(list(a.values()), list(b.values()))
    for key, value, other_key, other in zip(a, a.values(), b, b.values(), strict=True):
        if type(key) is not str or type(other_key) is not str:
            if not same(key, other_key):
                return False
        elif key != other_key:
            return False
        kind = type(value)
        if kind is not type(other) or kind not in _PLAIN:
            if not same(value, other):
                return False
        elif value != other:
            return False
    return True


def _same_set(a: set[Any] | frozenset[Any], b: set[Any] | frozenset[Any]) -> bool:
    if len(a) != len(b) or a != b:
        return False
    kinds = set(map(type, a))
    if len(kinds) == 1 and kinds <= _PLAIN and set(map(type, b)) == kinds:
        return True
    found = {item: item for item in b}
    return all(same(item, found[item]) for item in a)


def _same_decimal(a: Decimal, b: Decimal) -> bool:
    return a.as_tuple() == b.as_tuple()


def _same_datetime(a: datetime, b: datetime) -> bool:
    return (
        a.replace(tzinfo=None) == b.replace(tzinfo=None)
        and a.fold == b.fold
        and _same_zone(a.tzinfo, b.tzinfo)
        and a.utcoffset() == b.utcoffset()
        and a.tzname() == b.tzname()
    )


def _same_time(a: time, b: time) -> bool:
    return (
        a.replace(tzinfo=None) == b.replace(tzinfo=None)
        and a.fold == b.fold
        and _same_zone(a.tzinfo, b.tzinfo)
        and a.tzname() == b.tzname()
    )


def _same_zone(a: tzinfo | None, b: tzinfo | None) -> bool:
    """Return whether two zones mean the same; UTC comes in many classes, all of them alike."""
    if a is None or b is None:
        return a is b
    if a is b or a == b:
        return True
    offset = a.utcoffset(None)  # None: the offset depends on the date
    return offset is not None and offset == b.utcoffset(None) and a.tzname(None) == b.tzname(None)


def _same_raw(a: msgspec.Raw, b: msgspec.Raw) -> bool:
    return bytes(a) == bytes(b)


_COMPARE: Final[Mapping[type, Callable[[Any, Any], bool]]] = MappingProxyType(
    {
        float: _same_float,
        dict: _same_dict,
        list: _same_items,
        tuple: _same_items,
        set: _same_set,
        frozenset: _same_set,
        Decimal: _same_decimal,
        datetime: _same_datetime,
        time: _same_time,
        msgspec.Raw: _same_raw,
        memoryview: lambda a, b: bytes(a) == bytes(b),
    }
)


def _same_object(a: object, b: object) -> bool:
    if a is b:
        return True
    kind: Any = type(a)
    fields: Any = getattr(kind, "__struct_fields__", None)
    if fields is not None:
        return _same_fields(a, b, fields) and (not hasattr(a, "__dict__") or _same_state(a, b))
    fields = getattr(kind, "__dataclass_fields__", None)
    if fields is not None and hasattr(a, "__dict__"):
        mine, other = vars(a), vars(b)
        if fields.keys() <= mine.keys() and _same_dict(mine, other):
            return True
    if issubclass(kind, Enum):
        return False
    if issubclass(kind, tuple):
        items, others = cast("tuple[Any, ...]", a), cast("tuple[Any, ...]", b)
        return _same_items(items, others) and _same_state(a, b)
    return _same_state(a, b) if has_fields(a) else bool(a == b)


def _same_fields(a: object, b: object, names: tuple[str, ...]) -> bool:
    for name in names:  # noqa: SIM110 - this is hot, and a generator costs twice as much
        if not same(getattr(a, name), getattr(b, name)):
            return False
    return True


def _same_state(a: object, b: object) -> bool:
    return _same_dict(state_of(a), state_of(b)) and _same_hidden(a, b)


def _same_hidden(a: object, b: object) -> bool:
    """Compare what a pydantic model keeps beside its fields; no other class has it."""
    return not hasattr(type(a), "__pydantic_fields_set__") or all(
        same(getattr(a, name, None), getattr(b, name, None))
        for name in ("__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
    )


def has_fields(value: object) -> bool:
    """Return whether ``value`` is of a class that declares its fields."""
    kind = type(value)
    return (
        hasattr(kind, "__struct_fields__")
        or hasattr(kind, "__dataclass_fields__")
        or hasattr(kind, "__attrs_attrs__")
        or hasattr(kind, "__pydantic_fields_set__")
    )


def state_of(value: object) -> dict[str, Any]:
    """Return what an object carries: its declared fields, then its other attributes.

    Values that ``functools.cached_property`` keeps are left out: they are made again.
    """
    kind: Any = type(value)
    names: tuple[str, ...] = getattr(kind, "__struct_fields__", ())
    if hasattr(kind, "__dataclass_fields__"):
        names = tuple(field.name for field in dataclasses.fields(kind))
    elif hasattr(kind, "__attrs_attrs__"):
        names = tuple(field.name for field in kind.__attrs_attrs__)
    state = {name: getattr(value, name) for name in names if hasattr(value, name)}
    extra: dict[str, Any] = getattr(value, "__dict__", {})
    for name in sorted(extra.keys() - state.keys()):
        if not isinstance(getattr(kind, name, None), cached_property):
            state[name] = extra[name]
    return state

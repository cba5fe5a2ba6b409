"""Decoders of annotations, and what is known of an annotation without decoding anything."""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

import msgspec

from durable._flaws import NoDecoderError
from durable._models import adapter_decoder, decode_model

_decode_any: Final = msgspec.json.Decoder().decode

#: Types whose values JSON text gives back as they were, when finite and of ordinary size.
_JSON_SCALARS: Final = (str, int, float, bool, NoneType)
_JSON_CONTAINERS: Final[tuple[type, ...]] = (list, dict, tuple)


def direct_types(annotation: object) -> frozenset[type]:
    """Return the types whose values need no decoding to know that they come back."""
    if annotation is Any:
        return frozenset(_JSON_SCALARS)
    if annotation is None:
        return frozenset({NoneType})
    is_union = get_origin(annotation) in (Union, UnionType)
    members: tuple[Any, ...] = get_args(annotation) if is_union else (annotation,)
    return frozenset(members) if all(each in _JSON_SCALARS for each in members) else frozenset()


def is_builtin(annotation: Any) -> bool:
    """Return whether what the annotation decodes to holds JSON's own types and no other."""
    if annotation is Any or annotation is None:
        return True
    origin = get_origin(annotation)
    arguments: tuple[Any, ...] = get_args(annotation)
    if origin is dict and arguments[0] not in (str, Any):
        return False
    if origin in (*_JSON_CONTAINERS, Union, UnionType):
        return all(map(is_builtin, arguments))
    return annotation in _JSON_CONTAINERS or annotation in _JSON_SCALARS


def make_decoder(annotation: Any) -> Callable[[Any], Any]:
    """Return what turns JSON into values of ``annotation``.

    Raises:
        NoDecoderError: there is no telling which type a stored value would have.
    """
    if annotation is Any:
        return _decode_any
    if _is_mishandled(annotation):
        raise NoDecoderError("a tuple and a constrained type can't be told apart in one union")
    try:
        return msgspec.json.Decoder(annotation, dec_hook=decode_model).decode
    except Exception as exc:
        refused = exc
    try:
        decode = adapter_decoder(annotation)
    except Exception as exc:  # where models are concerned, pydantic's reason is the better one
        refused, decode = exc, None
    if decode is None:
        raise NoDecoderError(f"{type(refused).__name__}: {str(refused).partition(chr(10))[0]}")
    return decode


def _is_mishandled(annotation: object) -> bool:
    """Return whether msgspec would crash the process when it lets go of this type (0.22 does).

    Fixed tuples beside constrained types in one union share a place in its memory.
    """
    arguments: tuple[Any, ...] = get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        fixed = any(get_origin(each) is tuple and ... not in get_args(each) for each in arguments)
        if fixed and any(get_origin(each) is Annotated for each in arguments):
            return True
    return any(map(_is_mishandled, arguments))

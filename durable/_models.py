"""pydantic models to plain data and back, when the user's program has pydantic.

pydantic is never imported here: a model can only turn up in a program that has imported it.
Models are stored by field name and in full, so that a later change of a default changes nothing
that is stored. Which fields were set by hand is kept beside them, since
``model_dump(exclude_unset=True)`` must give the same before and after.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any, Final, cast, get_args

import msgspec

_UNSET: Final = "$unset"


def _pydantic() -> Any:
    return sys.modules.get("pydantic")


def _is_model_class(kind: Any) -> bool:
    base = getattr(_pydantic(), "BaseModel", None)
    return base is not None and isinstance(kind, type) and issubclass(kind, base)


def _by_name() -> bool:
    """Return whether this pydantic can validate by field names (2.11 and later)."""
    major, minor = _pydantic().VERSION.split(".")[:2]
    return (int(major), int(minor)) >= (2, 11)


def encode_model(value: Any) -> Any:
    """Return a model as plain data; msgspec's ``enc_hook``.

    Raises:
        NotImplementedError: ``value`` isn't a model.
    """
    if not _is_model_class(type(value)):
        raise NotImplementedError
    options = {"by_alias": not _by_name(), "warnings": False}
    plain = value.model_dump(mode="json", round_trip=True, **options)
    unset = [list(path) for path in _unset_fields(value, ())]
    if unset and isinstance(plain, dict):
        return {**cast("dict[str, Any]", plain), _UNSET: unset}
    return plain


def decode_model(kind: type, plain: Any) -> Any:
    """Return the model that ``plain`` describes; msgspec's ``dec_hook``.

    Anything but a model is left to msgspec, which checks its type.
    """
    if not _is_model_class(kind):
        return plain
    return _validated(cast("Any", kind).model_validate_json, plain)


def _validated(validate_json: Callable[..., Any], plain: Any) -> Any:
    unset: list[Any] = []
    if isinstance(plain, dict):
        plain = dict(cast("dict[str, Any]", plain))
        unset = plain.pop(_UNSET, unset)
    options = {"by_name": True, "by_alias": True} if _by_name() else {}
    # From JSON text, since strict models accept dates and bytes as text only there.
    model = validate_json(msgspec.json.encode(plain), **options)
    for path in unset:
        _forget_set(model, path)
    return model


def adapter_decoder(annotation: object) -> Callable[[Any], Any] | None:
    """Return a decoder for a union of models, which msgspec can't tell apart but pydantic can.

    Params:
        annotation: what msgspec refused.

    Returns:
        None when no model is in the annotation itself.
    """
    if not any(_is_model_class(kind) for kind in _mentioned(annotation)):
        return None
    validate_json = _pydantic().TypeAdapter(annotation).validate_json
    return lambda data: _validated(validate_json, msgspec.json.decode(data))


def _mentioned(annotation: object) -> Iterator[object]:
    yield annotation
    for argument in get_args(annotation):
        yield from _mentioned(argument)


def _unset_fields(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    """Yield the way to each field, here and deeper, that only has its default."""
    for step, part in _inside(value):
        if isinstance(step, str) and step not in getattr(value, "__pydantic_fields_set__", (step,)):
            yield (*path, step)
        yield from _unset_fields(part, (*path, step))


def _inside(value: Any) -> list[tuple[str | int, Any]]:
    kind = cast("Any", type(value))
    if _is_model_class(kind):
        return [(name, vars(value)[name]) for name in kind.model_fields]
    if hasattr(kind, "__dataclass_fields__"):
        return [(name, getattr(value, name, None)) for name in kind.__dataclass_fields__]
    if isinstance(value, Mapping):
        return list(enumerate(cast("dict[Any, Any]", value).values()))
    if isinstance(value, list | tuple | Set):
        return list(enumerate(cast("list[Any]", value)))
    return []


def _forget_set(model: Any, path: list[str | int]) -> None:
    for step in path[:-1]:
        model = dict(_inside(model))[step]
    model.__pydantic_fields_set__.discard(path[-1])

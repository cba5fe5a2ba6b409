"""Values to plain JSON and back, by type hint: faithful, or refused at once.

A value is encoded, decoded again by its annotation and compared with the original, exact types
included. What was decoded is what the caller gets, so the first call and every later one see the
same. What doesn't come back as it was is a ``NotSerializableError`` that says where and why.

Messages name paths and types, never values: values may be secrets.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, NoReturn, get_origin

import msgspec

from durable._decoders import direct_types, is_builtin, make_decoder
from durable._errors import NotSerializableError, StateFormatError
from durable._faithful import same, same_builtins
from durable._flaws import (
    TOO_DEEP,
    Flaw,
    explain,
    find_difference,
    find_misfit,
    find_unencodable,
    name_of,
    segment,
)
from durable._hints import UNKNOWN, Hint, parameter_hints, return_hint, unpacked_hints
from durable._models import encode_model

__all__ = ["UNKNOWN", "ArgumentsCodec", "TypeCodec", "return_codec"]

_encode: Final = msgspec.json.Encoder(enc_hook=encode_model).encode
_LONGEST_NUMBER: Final = 24

_ANNOTATE_RETURN: Final = (
    "annotate the function's return type with what it returns, or use returns="
)
_ANNOTATE_PARAMETER: Final = "annotate the parameter with the type that is passed"


class TypeCodec:
    """How values of one annotation are stored.

    Making one costs nothing and never fails: an annotation that can't be stored is refused with
    the first value.

    Params:
        annotation: any type that msgspec decodes, a pydantic model, or ``UNKNOWN``.
        unresolved: why the annotation isn't known; becomes part of a refusal.
        advice: what a refusal tells the user to do about a type that JSON doesn't have.
    """

    __slots__ = ("_advice", "_builtin", "_decode", "_direct", "annotation")

    def __init__(
        self, annotation: object = UNKNOWN, *, unresolved: str = "", advice: str = _ANNOTATE_RETURN
    ) -> None:
        self.annotation: object = (
            Any if annotation is UNKNOWN or annotation is object else annotation
        )
        self._advice = f"{advice} ({unresolved})" if unresolved else advice
        self._direct = direct_types(self.annotation)
        self._builtin = is_builtin(self.annotation)
        self._decode: Callable[[Any], Any] = self._decode_first

    def __repr__(self) -> str:
        return f"TypeCodec({self.annotation!r})"

    def store(self, value: object, where: str) -> tuple[bytes, Any]:
        """Return compact JSON for ``value``, and the value as a later ``load`` gives it.

        Params:
            value: what to store.
            where: whose value it is, such as ``step 'charge'``.

        Raises:
            NotSerializableError: the value doesn't come back as it was.
        """
        return self.store_at(value, where, "$")

    def store_at(self, value: object, where: str, path: str) -> tuple[bytes, Any]:
        """As ``store``, for a value that is itself at ``path`` inside something."""
        kind = type(value)
        try:
            data = _encode(value)
            # A float that JSON doesn't have becomes null.
            if kind in self._direct and (
                kind is str
                or (len(data) <= _LONGEST_NUMBER and (kind is not float or data != b"null"))
            ):
                return data, value
        except Exception as exc:
            self._refuse_encoding(value, where, path, exc)
        try:
            decoded = self._decode(data)
        except Exception as exc:
            self._refuse_decoding(value, data, where, path, exc)
        try:
            if (self._builtin and same_builtins(value, decoded)) or same(value, decoded):
                return data, decoded
            flaw = find_difference(value, decoded, path, self._advice)
        except RecursionError:
            flaw = Flaw(path, value, TOO_DEEP)
        except Exception as exc:
            flaw = Flaw(path, value, f"comparing it raised {type(exc).__name__}")
        raise _refusal(where, flaw)

    def load(self, data: bytes | msgspec.Raw, where: str) -> Any:
        """Return the value that ``data`` holds.

        Params:
            data: what ``store`` returned.
            where: whose value it is.

        Raises:
            StateFormatError: ``data`` isn't JSON, or no longer fits the annotation.
        """
        try:
            return self._decode(data)
        except Exception as exc:
            reason, path = explain(exc)
            shown = _show_type(self.annotation)
            raise StateFormatError(
                where, f"the stored value doesn't fit {shown} at {path}: {reason}"
            ) from None

    def _decode_first(self, data: Any) -> Any:
        decode = make_decoder(self.annotation)
        self._decode = decode
        return decode(data)

    def _refuse_encoding(self, value: object, where: str, path: str, exc: Exception) -> NoReturn:
        if isinstance(exc, RecursionError):
            raise _refusal(where, Flaw(path, value, TOO_DEEP)) from None
        try:
            flaw = find_unencodable(value, _encode, path)
        except Exception:
            flaw = Flaw(path, value, f"encoding it raised {type(exc).__name__}")
        raise _refusal(where, flaw) from None

    def _refuse_decoding(
        self, value: object, data: bytes, where: str, path: str, exc: Exception
    ) -> NoReturn:
        try:
            flaw = find_misfit(value, data, self._decode, exc, self._advice)
        except Exception:
            flaw = Flaw("", value, f"its stored form doesn't fit: {explain(exc)[0]}")
        raise _refusal(where, flaw._replace(path=path + flaw.path)) from None


def return_codec(fn: Callable[..., object], returns: object = UNKNOWN) -> TypeCodec:
    """Return the codec for what ``fn`` gives.

    Params:
        fn: a function, method, partial, class, or object with ``__call__``.
        returns: a type that overrides the annotation.
    """
    if returns is not UNKNOWN:
        return TypeCodec(None if returns is None else returns)
    hint = return_hint(fn)
    return TypeCodec(hint.annotation, unresolved=hint.unresolved)


class _StoredArguments(msgspec.Struct, frozen=True):
    args: list[msgspec.Raw]
    kwargs: dict[str, msgspec.Raw]


class ArgumentsCodec:
    """How a call's arguments are stored, each by its parameter's annotation.

    Params:
        fn: the function that is called.
        skip_first: its first parameter is ``self`` and isn't part of the arguments.
    """

    def __init__(self, fn: Callable[..., object], *, skip_first: bool = False) -> None:
        self._signature = _signature(fn, skip_first=skip_first)
        hints = parameter_hints(fn)
        self._positional: list[tuple[str, TypeCodec]] = []
        self._named: dict[str, TypeCodec] = {}
        self._rest: tuple[str, TypeCodec] = ("args", _parameter_codec(Hint(UNKNOWN)))
        self._others: TypeCodec = self._rest[1]
        for name, parameter in self._signature.parameters.items():
            hint = hints.get(name, Hint(UNKNOWN))
            codec = _parameter_codec(hint)
            if parameter.kind is parameter.VAR_POSITIONAL:
                self._rest = (name, codec)
            elif parameter.kind is parameter.VAR_KEYWORD:
                self._add_others(hint, codec)
            else:
                if parameter.kind is not parameter.KEYWORD_ONLY:
                    self._positional.append((name, codec))
                if parameter.kind is not parameter.POSITIONAL_ONLY:
                    self._named[name] = codec

    def store(self, args: tuple[Any, ...], kwargs: dict[str, Any], where: str) -> bytes:
        """Return JSON for the arguments: ``{"args":[...],"kwargs":{...}}``.

        Params:
            args: the positional ones, without ``self``.
            kwargs: those given by name.
            where: whose arguments they are.

        Raises:
            NotSerializableError: an argument doesn't come back as it was; its path begins with
                the parameter's name.
        """
        positional = [self._store_one(index, value, where) for index, value in enumerate(args)]
        named = {
            name: msgspec.Raw(self._codec_of(name).store_at(value, where, "$" + segment(name))[0])
            for name, value in kwargs.items()
        }
        try:
            return _encode(_StoredArguments(positional, named))
        except UnicodeEncodeError:
            reason = "a lone surrogate in an argument's name can't be stored; use valid Unicode"
            raise NotSerializableError(where, "$", "dict", reason) from None

    def load(self, data: bytes | msgspec.Raw, where: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments that ``data`` holds.

        Params:
            data: what ``store`` returned.
            where: whose arguments they are.

        Raises:
            StateFormatError: they aren't JSON, or no longer fit the signature.
        """
        try:
            stored = msgspec.json.decode(data, type=_StoredArguments)
        except Exception as exc:
            reason, path = explain(exc)
            raise StateFormatError(
                where, f"the arguments are damaged at {path}: {reason}"
            ) from None
        args: list[Any] = []
        for index, raw in enumerate(stored.args):
            name, codec = self._slot(index)
            args.append(codec.load(raw, f"{where}, argument {name!r}"))
        kwargs = {
            name: self._codec_of(name).load(raw, f"{where}, argument {name!r}")
            for name, raw in stored.kwargs.items()
        }
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise StateFormatError(
                where, f"the stored arguments no longer fit the function: {exc}"
            ) from None
        return tuple(args), kwargs

    def _slot(self, index: int) -> tuple[str, TypeCodec]:
        if index < len(self._positional):
            return self._positional[index]
        name, codec = self._rest
        return f"{name}[{index - len(self._positional)}]", codec

    def _store_one(self, index: int, value: object, where: str) -> msgspec.Raw:
        name, codec = self._slot(index)
        return msgspec.Raw(codec.store_at(value, where, f"$.{name}")[0])

    def _codec_of(self, name: str) -> TypeCodec:
        return self._named.get(name, self._others)

    def _add_others(self, hint: Hint, codec: TypeCodec) -> None:
        """Take the hint of ``**kwargs``, which may be ``Unpack`` of a TypedDict."""
        named = unpacked_hints(hint.annotation)
        if named is None:
            self._others = codec
            return
        for name, each in named.items():
            self._named.setdefault(name, _parameter_codec(each))


def _parameter_codec(hint: Hint) -> TypeCodec:
    return TypeCodec(hint.annotation, unresolved=hint.unresolved, advice=_ANNOTATE_PARAMETER)


def _signature(fn: Callable[..., object], *, skip_first: bool) -> inspect.Signature:
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # some builtins don't tell
        any_args = inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)
        any_names = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
        return inspect.Signature([any_args, any_names])
    parameters = list(signature.parameters.values())
    if skip_first and parameters and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
        parameters = parameters[1:]
    return signature.replace(parameters=parameters)


def _show_type(annotation: object) -> str:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation.__qualname__
    return repr(annotation)


def _refusal(where: str, flaw: Flaw) -> NotSerializableError:
    return NotSerializableError(where, flaw.path, name_of(flaw.found), flaw.reason)

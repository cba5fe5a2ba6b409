"""What a durable function is, apart from being called: its options, arguments and result."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from durable._clock import clock
from durable._codec import ArgumentsCodec, TypeCodec, return_codec
from durable._errors import NotSerializableError, StateFormatError
from durable._fingerprint import run_fingerprint
from durable._options import Options
from durable._owners import owner_id, random_part
from durable._records import NOTHING, Begin
from durable._run import unpack
from durable._session import Session, session_for
from durable.store import KeyValueStore, ttl_from_env


class _Place:
    """Where a function's runs are kept; shared with what is derived from it, so that a store
    opened for its URL lives as long as any of them."""

    def __init__(self, store: KeyValueStore | str | None) -> None:
        self.store = store
        self._session: Session | None = None

    def session(self) -> Session:
        if self._session is None or self.store is None or isinstance(self.store, str):
            # A URL may mean another store by now: another folder, environment or process.
            self._session = session_for(self.store)
        return self._session


class Definition:
    """An async function with its options. ``instance`` is the ``self`` of a bound method."""

    def __init__(
        self,
        fn: Callable[..., Any],
        options: Options,
        instance: object | None = None,
        origin: Definition | None = None,
    ) -> None:
        self.fn = fn
        self.options = options
        self.instance = instance
        derived = origin is not None and origin.options.store is options.store
        self._place: _Place = origin._place if origin and derived else _Place(options.store)
        self._signature: inspect.Signature | None = None
        self._arguments: ArgumentsCodec | None = None
        self._result: TypeCodec | None = None

    @property
    def name(self) -> str:
        """The name that runs are recorded under."""
        return self.options.name

    @property
    def bound(self) -> Callable[..., Any]:
        """The function to call, without ``self``."""
        if self.instance is None:
            return self.fn
        method: Callable[..., Any] = self.fn.__get__(self.instance)
        return method

    def session(self) -> Session:
        """Return the session of the function's store, opened if need be."""
        return self._place.session()

    def bind(self, instance: object) -> Definition:
        """Return the same function as a method of ``instance``."""
        return Definition(self.fn, self.options, instance, self)

    def with_options(self, overrides: Mapping[str, Any]) -> Definition:
        """Return the same function with other options, checked."""
        return Definition(self.fn, self.options.replace(overrides), self.instance, self)

    @property
    def ttl(self) -> float | None:
        """Seconds after which an abandoned run expires: the option, else the environment's."""
        return self.options.ttl if "ttl" in self.options.given else ttl_from_env()

    @property
    def signature(self) -> inspect.Signature:
        """The signature that calls must fit, without ``self``."""
        if self._signature is None:
            self._signature = inspect.signature(self.bound)
        return self._signature

    @property
    def result(self) -> TypeCodec:
        """How the result is stored."""
        if self._result is None:
            self._result = return_codec(self.fn)
        return self._result

    def fingerprint(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Return the fingerprint of the arguments.

        Raises ``TypeError`` if they have none, or don't fit the function.
        """
        return run_fingerprint(self.signature, args, kwargs)

    def begin(
        self, run_id: str, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str = ""
    ) -> Begin:
        """Return the record that a run with these arguments begins with."""
        self.signature.bind(*args, **kwargs)
        stored, refusal = NOTHING, ""
        try:
            data = self.arguments.store(args, kwargs, f"the arguments of run {run_id!r}")
            stored = self._encode(data)
        except NotSerializableError as error:
            refusal = f"{error.path} ({error.type_name}): {error.reason}"
        return Begin(
            name=self.name,
            at=round(clock().time(), 6),
            version=self.options.version,
            arguments=stored,
            refusal=refusal,
            fingerprint=self.fingerprint_or_nothing(args, kwargs),
            ttl=self.ttl,
            keep=self.options.keep,
            codec=self.codec_name,
            reason=reason,
            incarnation=random_part(owner_id()),
        )

    def fingerprint_or_nothing(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Return the fingerprint of the arguments, or '' if they have none."""
        try:
            return self.fingerprint(args, kwargs)
        except TypeError:
            return ""

    def stored_arguments(self, run_id: str, begin: Begin) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments that the run was begun with.

        Raises ``NotSerializableError`` if they couldn't be stored, ``StateFormatError`` if they
        no longer fit the function.
        """
        where = f"the arguments of run {run_id!r}"
        if not begin.arguments:
            path, _, reason = begin.refusal.partition(": ")
            path, _, kind = path.partition(" (")
            raise NotSerializableError(
                where, path, kind.rstrip(")"), f"{reason}; call run({run_id!r}, …) with them"
            )
        self.check_codec(run_id, begin)
        data: msgspec.Raw | bytes = begin.arguments
        if self.options.codec is not None:
            data = unpack(begin.arguments, self.options.codec.decode, where)
        return self.arguments.load(data, where)

    def check_codec(self, run_id: str, begin: Begin) -> None:
        """Raise ``StateFormatError`` if the run's values were encoded by another codec."""
        if begin.codec != self.codec_name:
            raise StateFormatError(
                f"run {run_id!r}",
                f"its values were stored by the codec {begin.codec or None!r}, the function has "
                f"{self.codec_name or None!r}: give it that codec",
            )

    @property
    def arguments(self) -> ArgumentsCodec:
        """How the arguments are stored."""
        if self._arguments is None:
            self._arguments = ArgumentsCodec(self.fn, skip_first=self.instance is not None)
        return self._arguments

    @property
    def codec_name(self) -> str:
        """The name of the codec in use, '' for none."""
        return "" if self.options.codec is None else self.options.codec.name

    def _encode(self, data: bytes) -> msgspec.Raw:
        codec = self.options.codec
        if codec is None:
            return msgspec.Raw(data)
        return msgspec.Raw(msgspec.json.encode(codec.encode(data.decode())))

"""The options of ``durable``: their defaults and their checks."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import msgspec

from durable._events import Observer
from durable._state import ResumeState
from durable.store import KeyValueStore

Durability: TypeAlias = Literal["sync", "async", "exit"]
Drift: TypeAlias = Literal["raise", "warn"]
Migration: TypeAlias = Callable[[ResumeState], ResumeState | Awaitable[ResumeState]]
StateSource: TypeAlias = (
    ResumeState | Callable[[], ResumeState | Awaitable[ResumeState | None] | None]
)

#: How long an ended run is kept unless its function says otherwise, in seconds.
KEEP = 7 * 24 * 3600.0


@runtime_checkable
class Codec(Protocol):
    """Turns the JSON text of values into what is stored, and back: to encrypt or compress them."""

    @property
    def name(self) -> str:
        """What is recorded with the run, so that another codec isn't tried on its values."""
        ...

    def encode(self, text: str) -> str:
        """Return what is stored for ``text``."""
        ...

    def decode(self, text: str) -> str:
        """Return the text that ``encode`` was given."""
        ...


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The options of one durable function; times in seconds."""

    name: str
    store: KeyValueStore | str | None = None
    version: int = 1
    on_version_mismatch: Literal["raise", "restart"] | Migration = "raise"
    ttl: float | None = None
    keep: float | None = KEEP
    lease: float = 30.0
    durability: Durability = "sync"
    drift: Drift = "raise"
    max_recoveries: int = 100
    codec: Codec | None = None
    on_event: Observer | None = None
    resume_state: StateSource | None = None
    given: frozenset[str] = frozenset()

    def replace(self, overrides: Mapping[str, Any]) -> Options:
        """Return these options with ``overrides``, checked.

        Raises ``TypeError`` for an unknown name, naming the nearest known one, and ``TypeError``
        or ``ValueError`` for a value that an option can't have.
        """
        known = [name for name in self.__struct_fields__ if name != "given"]
        check_names(overrides, known, "durable")
        checked = {name: _check(name, value) for name, value in overrides.items()}
        return msgspec.structs.replace(self, **checked, given=self.given | set(overrides))


def check_names(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise ``TypeError`` for the first of ``given`` that isn't ``known``."""
    known = sorted(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes: {', '.join(known)}"
            raise TypeError(f"{what} has no option {name!r}; {hint}")


def seconds(value: object, name: str, *, zero: bool = False) -> float:
    """Return ``value``, a number of seconds or a timedelta, as seconds.

    Raises ``TypeError`` if it is neither, ``ValueError`` if it isn't positive and finite (0 is
    let through with ``zero``).
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be seconds or a timedelta, got {type(value).__name__}")
    if not (value >= 0 if zero else value > 0) or value == float("inf"):
        least = "not be negative" if zero else "be positive"
        raise ValueError(f"{name} must {least} and finite, got {value!r}")
    return float(value)


def check_id(value: object, what: str) -> str:
    """Return ``value`` if it can be a run id or a step key: 1 to 1,000 characters of Unicode."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, got {type(value).__name__}")
    if not 0 < len(value) <= 1000:
        raise ValueError(f"{what} must have 1 to 1,000 characters, got {len(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{what} holds a lone surrogate, which is no valid Unicode") from None
    return value


def _check(name: str, value: Any) -> Any:
    match name:
        case "name":
            return check_id(value, "name")
        case "version" | "max_recoveries":
            return _integer(name, value)
        case "ttl" | "keep":
            return None if value is None else seconds(value, name, zero=name == "keep")
        case "lease":
            return seconds(value, name)
        case "durability":
            return _one_of(name, value, ("sync", "async", "exit"))
        case "drift":
            return _one_of(name, value, ("raise", "warn"))
        case "on_version_mismatch":
            return value if callable(value) else _one_of(name, value, ("raise", "restart"))
        case _:
            return _check_object(name, value)


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def _one_of(name: str, value: object, accepted: tuple[str, ...]) -> object:
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {value!r}")
    return value


def _check_object(name: str, value: Any) -> Any:
    if value is None:
        return value
    if name == "on_event" and not callable(value):
        raise TypeError(f"on_event must be callable, got {type(value).__name__}")
    if name == "codec" and not isinstance(value, Codec):
        raise TypeError("codec must have a name, encode(text) and decode(text)")
    if name == "resume_state" and not (isinstance(value, ResumeState) or callable(value)):
        raise TypeError(
            f"resume_state must be a ResumeState or a function, got {type(value).__name__}"
        )
    if name == "store" and not isinstance(value, str | KeyValueStore):
        missing = [m for m in ("get", "set", "delete", "exists", "keys") if not hasattr(value, m)]
        raise TypeError(
            f"store must be a URL or an object with get, set, delete, exists and keys; "
            f"{type(value).__name__} lacks {', '.join(missing)}"
        )
    return value

"""The options of a step: their defaults and their checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from durable._codec import UNKNOWN, TypeCodec
from durable._options import check_id, check_names, seconds
from durable._retry import ONCE, Retry

#: What ``step.options`` and ``DecoratedStep.options`` take.
CALL_OPTIONS = ("retry", "timeout", "returns", "ttl", "save_errors")

#: What ``@step(…)`` takes besides ``key``.
DECORATOR_OPTIONS = (*CALL_OPTIONS, "name", "aliases")


class StepSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a step; times in seconds. ``given`` names those that were set."""

    retry: Retry = ONCE
    timeout: float | None = None
    returns: Any = UNKNOWN
    ttl: float | None = None
    save_errors: tuple[type[BaseException], ...] = ()
    name: str = ""
    aliases: tuple[str, ...] = ()
    codec: TypeCodec | None = None
    given: frozenset[str] = frozenset()

    def replace(
        self, options: Mapping[str, Any], known: tuple[str, ...] = CALL_OPTIONS
    ) -> StepSettings:
        """Return these settings with ``options``, checked.

        Raises ``TypeError`` for an unknown option, naming the nearest known one, and ``TypeError``
        or ``ValueError`` for a value that an option can't have.
        """
        check_names(options, known, "step")
        checked = {name: _check(name, value) for name, value in options.items()}
        if "returns" in options:
            checked["codec"] = TypeCodec(options["returns"])
        return msgspec.structs.replace(self, **checked, given=self.given | set(options))

    def under(self, call: StepSettings) -> StepSettings:
        """Return these settings, of a decorated step, with those given for one ``call``."""
        if not call.given:
            return self
        names = call.given | {"codec"} if "returns" in call.given else call.given
        theirs = {name: getattr(call, name) for name in names}
        return msgspec.structs.replace(self, **theirs, given=self.given | call.given)


#: A step without options.
PLAIN = StepSettings()


def _check(name: str, value: Any) -> Any:
    match name:
        case "retry":
            if not isinstance(value, Retry):
                raise TypeError(f"retry must be a Retry, got {type(value).__name__}")
        case "timeout" | "ttl":
            return None if value is None else seconds(value, name)
        case "save_errors":
            return _exception_types(value)
        case "name":
            return check_id(value, "name")
        case "aliases":
            if not isinstance(value, tuple):
                raise TypeError(f"aliases must be a tuple of names, got {type(value).__name__}")
            return tuple(check_id(each, "an alias") for each in cast("tuple[object, ...]", value))
        case _:
            pass
    return value


def _exception_types(value: object) -> tuple[type[Exception], ...]:
    types = cast("tuple[object, ...]", value if isinstance(value, tuple) else (value,))
    for each in types:
        if not (isinstance(each, type) and issubclass(each, Exception)):
            raise TypeError(
                f"save_errors must be an exception type or a tuple of them, got {each!r}; "
                "only what derives from Exception can be a step's failure"
            )
    return cast("tuple[type[Exception], ...]", types)

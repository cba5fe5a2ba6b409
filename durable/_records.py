"""What is stored: small immutable records, and the pure fold from records to a run's state.

A run is a log of records. Later records win; a ``Begin`` starts the run anew and makes
everything before it past. Stored names are one letter long, since every step pays for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

import msgspec

Status: TypeAlias = Literal["pending", "running", "paused", "failed", "finished", "cancelled"]

#: No stored value. (msgspec doesn't decode ``Raw | None``.)
NOTHING = msgspec.Raw()

#: Statuses of runs that never go on.
ENDED: frozenset[str] = frozenset({"finished", "cancelled"})


class StoredError(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An exception as it is stored: enough to show it, and to rebuild it when its type allows."""

    type: str
    message: str
    traceback: str = ""
    arguments: msgspec.Raw = NOTHING
    state: msgspec.Raw = NOTHING

    @property
    def type_name(self) -> str:
        """The type's name without its module."""
        return self.type.partition(":")[2] or self.type


class Begin(
    msgspec.Struct,
    frozen=True,
    omit_defaults=True,
    tag_field="t",
    tag="b",
    rename={
        "name": "n",
        "at": "w",
        "format": "f",
        "version": "u",
        "arguments": "a",
        "refusal": "r",
        "fingerprint": "p",
        "ttl": "l",
        "keep": "k",
        "codec": "c",
        "reason": "y",
        "incarnation": "i",
    },
):
    """A run begins, or begins anew: nothing recorded before counts any more.

    ``arguments`` is empty when they couldn't be stored; ``refusal`` then says why.
    ``incarnation`` stays the same when the run is migrated, and is new when it starts over: the
    outside world's idempotency keys are made from it.
    """

    name: str
    at: float
    format: int = 1
    version: int = 1
    arguments: msgspec.Raw = NOTHING
    refusal: str = ""
    fingerprint: str = ""
    ttl: float | None = None
    keep: float | None = None
    codec: str = ""
    reason: str = ""
    incarnation: str = ""


class Pass(
    msgspec.Struct,
    frozen=True,
    omit_defaults=True,
    gc=False,
    tag_field="t",
    tag="p",
    rename={
        "number": "i",
        "at": "w",
        "fence": "f",
        "process": "o",
        "version": "u",
        "takeover": "x",
    },
):
    """One execution of the function from its beginning, written with its first record."""

    number: int
    at: float
    fence: int
    process: str = ""
    version: int = 1
    takeover: bool = False


class StepRecord(
    msgspec.Struct,
    frozen=True,
    omit_defaults=True,
    gc=False,
    tag_field="t",
    tag="s",
    rename={
        "key": "k",
        "function": "f",
        "fingerprint": "a",
        "stored": "v",
        "error": "e",
        "completed_at": "w",
        "duration": "d",
        "attempts": "n",
        "expires_at": "x",
        "version": "u",
        "run_attempt": "i",
        "within": "o",
        "path": "p",
    },
):
    """A completed step: its stored value, or its final failure.

    ``stored`` is the value's plain JSON; ``error`` is set instead for a failure of a type in
    ``save_errors``. ``fingerprint`` is one fingerprint per argument. Times are seconds since the
    epoch by the store's clock, ``duration`` is in seconds. ``within`` is the key of the step
    whose function asked for this one, ``path`` the keys of the child runs that lead here.
    """

    key: str
    function: str = ""
    fingerprint: str = ""
    stored: msgspec.Raw = NOTHING
    error: StoredError | None = None
    completed_at: float = 0.0
    duration: float = 0.0
    attempts: int = 1
    expires_at: float | None = None
    version: int = 1
    run_attempt: int = 1
    within: str = ""
    path: tuple[str, ...] = ()

    @property
    def value(self) -> Any:
        """The stored value as plain JSON types; None for a failure."""
        return msgspec.json.decode(self.stored) if self.stored else None


class AttemptRecord(
    msgspec.Struct,
    frozen=True,
    omit_defaults=True,
    gc=False,
    tag_field="t",
    tag="a",
    rename={
        "key": "k",
        "attempt": "n",
        "error": "e",
        "at": "w",
        "next_at": "x",
        "run_attempt": "i",
        "path": "p",
    },
):
    """An attempt at a step failed. ``next_at`` is None when it was the last one."""

    key: str
    attempt: int
    error: StoredError
    at: float
    next_at: float | None = None
    run_attempt: int = 1
    path: tuple[str, ...] = ()


class Variable(
    msgspec.Struct,
    frozen=True,
    omit_defaults=True,
    gc=False,
    tag_field="t",
    tag="v",
    rename={"name": "k", "stored": "v", "path": "p"},
):
    """A durable variable was set."""

    name: str
    stored: msgspec.Raw
    path: tuple[str, ...] = ()


class Forgotten(
    msgspec.Struct,
    frozen=True,
    omit_defaults=True,
    gc=False,
    tag_field="t",
    tag="f",
    rename={"key": "k", "at": "w", "path": "p"},
):
    """A step's record was taken back: the step runs again."""

    key: str
    at: float
    path: tuple[str, ...] = ()


class Ended(
    msgspec.Struct,
    frozen=True,
    omit_defaults=True,
    gc=False,
    tag_field="t",
    tag="e",
    rename={"status": "s", "at": "w", "stored": "v", "error": "e", "reason": "y"},
):
    """A pass came to its end: with a result, a failure, or the run's cancellation."""

    status: Status
    at: float
    stored: msgspec.Raw = NOTHING
    error: StoredError | None = None
    reason: str = ""


Record: TypeAlias = Begin | Pass | StepRecord | AttemptRecord | Variable | Forgotten | Ended


class Scope:
    """What is recorded of one function call: the run's own, or a child run's."""

    __slots__ = ("attempts", "children", "path", "steps", "variables")

    def __init__(self, path: tuple[str, ...] = ()) -> None:
        self.path: tuple[str, ...] = path
        self.steps: dict[str, StepRecord] = {}
        self.attempts: dict[str, AttemptRecord] = {}
        self.variables: dict[str, msgspec.Raw] = {}
        self.children: dict[str, Scope] = {}

    def at(self, path: tuple[str, ...]) -> Scope:
        """Return the scope of the child run that ``path`` leads to from here, made if need be."""
        scope = self
        for depth, key in enumerate(path, 1):
            child = scope.children.get(key)
            if child is None:
                child = scope.children[key] = Scope(self.path + path[:depth])
            scope = child
        return scope


class RunRecords:
    """A run's log, folded. ``sequence`` is the number of records the log has ever had."""

    __slots__ = ("begin", "ended", "passes", "root", "sequence")

    def __init__(self) -> None:
        self.begin: Begin | None = None
        self.ended: Ended | None = None
        self.passes: dict[int, Pass] = {}
        self.root: Scope = Scope()
        self.sequence: int = 0

    def apply(self, records: Iterable[Record]) -> None:
        """Take further records into account."""
        root = self.root
        for record in records:
            self.sequence += 1
            # Nearly all records are of this kind, and a resume reads thousands of them.
            if type(record) is StepRecord and not record.path and not root.attempts:
                root.steps[record.key] = record
            else:
                self._apply_any(record)
                root = self.root

    def _apply_any(self, record: Record) -> None:
        match record:
            case StepRecord():
                scope = self.root.at(record.path)
                scope.steps[record.key] = record
                scope.attempts.pop(record.key, None)
            case Begin():
                self.begin, self.ended = record, None
                self.passes, self.root = {}, Scope()
            case Pass():
                self.passes[record.number] = record
                self.ended = None
            case AttemptRecord():
                self.root.at(record.path).attempts[record.key] = record
            case Variable():
                self.root.at(record.path).variables[record.name] = record.stored
            case Forgotten():
                forget(self.root.at(record.path), record.key)
            case Ended():
                self.ended = record


def forget(scope: Scope, key: str) -> None:
    """Take the step ``key`` out of ``scope``, with its attempts and its child run."""
    scope.steps.pop(key, None)
    scope.attempts.pop(key, None)
    scope.children.pop(key, None)
    nested = [other for other, record in scope.steps.items() if record.within == key]
    for other in nested:
        forget(scope, other)

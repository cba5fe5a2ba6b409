"""Every exception of the library.

DurableError
├── Paused                          the run waits for an answer (not a failure)
├── RunBusyError                    somebody else holds the run
├── RunCancelledError               the run was cancelled for good
├── RunEndedError                   a step was asked for after its run had ended
├── NoActiveRunError                (RuntimeError) used outside of a durable function
├── RunNotFoundError                (LookupError)
├── RunMismatchError                (ValueError) the id belongs to another function
├── LeaseLostError                  another owner has taken the run over
├── VersionMismatchError            the run was recorded under another version
├── StaleVersionError               a save expected a version that isn't the current one
├── StepDriftError                  the code asks for something else than was recorded
├── DuplicateStepKeyError           (ValueError) one key, two different requests
├── StepError                       a failure whose own type can't be rebuilt
├── NotSerializableError            (TypeError) a value that JSON can't carry back
├── StateFormatError                (ValueError) stored data that can't be trusted
├── StoreError                      the store failed; the driver's error is __cause__
├── MissingDriverError              (ImportError) an optional package isn't installed
├── UnknownSchemeError              (ValueError) no store is known for this URL
├── InvalidAnswerError              (ValueError)
├── UnknownTokenError               (LookupError)
├── TokenExpiredError
├── AlreadyAnsweredError
└── InterruptExpiredError

Errors carry facts: the constructor's positional arguments reach ``args`` unchanged, and the
sentence is made in ``__str__``. So they survive pickling and copying.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


class DurableError(Exception):
    """The base of every error that this library raises on purpose."""


class Paused(DurableError):
    """The run waits for an answer; it goes on at the next ``run`` or ``resume``.

    ``interrupts`` lists the pending questions.
    """

    def __init__(self, run_id: str, interrupts: Sequence[Any] = ()) -> None:
        super().__init__(run_id, tuple(interrupts))
        self.run_id = run_id
        self.interrupts: tuple[Any, ...] = tuple(interrupts)

    def __str__(self) -> str:
        ids = ", ".join(repr(item.id) for item in self.interrupts)
        return f"run {self.run_id!r} is paused, waiting for: {ids or 'nothing that is on record'}"


class RunBusyError(DurableError):
    """Somebody else holds the run's lease: another task or another process.

    ``remaining`` is the number of seconds until that lease lapses unless it is renewed.
    """

    def __init__(self, run_id: str, remaining: float | None = None) -> None:
        super().__init__(run_id, remaining)
        self.run_id = run_id
        self.remaining = remaining

    def __str__(self) -> str:
        until = "" if self.remaining is None else f" for at least {self.remaining:.1f} s more"
        return (
            f"run {self.run_id!r} is being executed by somebody else{until}; "
            "wait for it to end, or try again after its lease has lapsed"
        )


class RunCancelledError(DurableError):
    """The run was cancelled; it never goes on."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.run_id = run_id

    def __str__(self) -> str:
        return f"run {self.run_id!r} was cancelled; use another id, or delete it and start again"


class RunEndedError(DurableError):
    """A step was asked for after its run had ended; it was not executed."""

    def __init__(self, run_id: str, step: str) -> None:
        super().__init__(run_id, step)
        self.run_id = run_id
        self.step = step

    def __str__(self) -> str:
        return (
            f"step {self.step!r} was asked for after run {self.run_id!r} had ended, so it was not "
            "executed; await every task that uses steps before the durable function returns"
        )


class NoActiveRunError(DurableError, RuntimeError):
    """Something that needs a run was used outside of a durable function."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return (
            f"{self.what} was used outside of a durable function; call it from a function that "
            "is decorated with @durable, or from what that calls"
        )


class RunNotFoundError(DurableError, LookupError):
    """No run is recorded under this id."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.run_id = run_id

    def __str__(self) -> str:
        return (
            f"no run {self.run_id!r} is recorded in this store; it may have expired, or been "
            "deleted, or begun in another store"
        )


class RunMismatchError(DurableError, ValueError):
    """The run id is recorded under another function's name."""

    def __init__(self, run_id: str, stored: str, requested: str) -> None:
        super().__init__(run_id, stored, requested)
        self.run_id = run_id
        self.stored = stored
        self.requested = requested

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r} belongs to the function {self.stored!r}, not to "
            f"{self.requested!r}; use another id, or name={self.stored!r} if it was renamed"
        )


class LeaseLostError(DurableError):
    """Another owner has taken the run over; nothing more was or will be written by this one."""

    def __init__(self, run_id: str, fence: int) -> None:
        super().__init__(run_id, fence)
        self.run_id = run_id
        self.fence = fence

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r} is no longer ours (fence {self.fence}): its lease lapsed and "
            "another owner took it over, or it was deleted; this write was refused"
        )


class VersionMismatchError(DurableError):
    """The run was recorded under another version of the function."""

    def __init__(self, run_id: str, stored: int, requested: int) -> None:
        super().__init__(run_id, stored, requested)
        self.run_id = run_id
        self.stored = stored
        self.requested = requested

    def __str__(self) -> str:
        return (
            f"run {self.run_id!r} was recorded under version {self.stored}, the function is "
            f"version {self.requested}; set on_version_mismatch to 'restart' or to a function "
            "that migrates the state, or finish it with the old code"
        )


class StaleVersionError(DurableError):
    """A save expected a version that isn't the current one; nothing was written.

    ``current`` is the state as it stands, or None when there is none.
    """

    def __init__(self, run_id: str, expected: int, actual: int, current: Any = None) -> None:
        super().__init__(run_id, expected, actual, current)
        self.run_id = run_id
        self.expected = expected
        self.actual = actual
        self.current = current

    def __str__(self) -> str:
        return (
            f"the state of {self.run_id!r} is at version {self.actual}, not {self.expected}; "
            "merge your change into `error.current` and save again"
        )


class StepDriftError(DurableError):
    """The step asks for something else than what was recorded under its key.

    ``changed`` names the arguments whose fingerprints differ.
    """

    def __init__(
        self, run_id: str, step: str, changed: Sequence[str], stored: str, requested: str
    ) -> None:
        super().__init__(run_id, step, tuple(changed), stored, requested)
        self.run_id = run_id
        self.step = step
        self.changed: tuple[str, ...] = tuple(changed)
        self.stored = stored
        self.requested = requested

    def __str__(self) -> str:
        what = ", ".join(self.changed) or "the arguments"
        return (
            f"step {self.step!r} of run {self.run_id!r} was recorded for other arguments: "
            f"{what} changed (recorded: {self.stored}, asked for now: {self.requested}); use "
            "another key, raise the function's version, or set drift='warn'"
        )


class DuplicateStepKeyError(DurableError, ValueError):
    """One key was used in one pass for two different things."""

    def __init__(self, run_id: str, step: str, reason: str) -> None:
        super().__init__(run_id, step, reason)
        self.run_id = run_id
        self.step = step
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"the key {self.step!r} was used twice in one pass of run {self.run_id!r}: "
            f"{self.reason}; give each piece of work a key of its own"
        )


class StepError(DurableError):
    """A step's failure whose own exception type can't be rebuilt from its stored form.

    Carries the original type's name, its message and its traceback as text.
    """

    def __init__(self, step: str, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(step, type_name, message, traceback)
        self.step = step
        self.type_name = type_name
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return f"step {self.step!r} failed with {self.type_name}: {self.message}"


class NotSerializableError(DurableError, TypeError):
    """A value that its stored form can't carry back as it was.

    ``where`` says whose value it is (such as ``step 'charge'``), ``path`` where inside it
    (``$.items[3].price``), ``type_name`` what was found there, ``reason`` why it is refused and
    what to do.
    """

    def __init__(self, where: str, path: str, type_name: str, reason: str) -> None:
        super().__init__(where, path, type_name, reason)
        self.where = where
        self.path = path
        self.type_name = type_name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.where}: {self.path} ({self.type_name}) can't be stored: {self.reason}"


class StateFormatError(DurableError, ValueError):
    """Stored data is damaged, foreign or from a later format; nothing was changed."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}; nothing was executed or overwritten"


class StoreError(DurableError):
    """The store failed. The driver's own error is ``__cause__``.

    ``operation`` is what was attempted, ``key`` the run id or key it was about.
    """

    def __init__(self, operation: str, key: str, reason: str = "") -> None:
        super().__init__(operation, key, reason)
        self.operation = operation
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        cause = self.reason or (type(self.__cause__).__name__ if self.__cause__ else "")
        return f"the store failed at {self.operation} {self.key!r}" + (
            f": {cause}" if cause else ""
        )


class MissingDriverError(DurableError, ImportError):
    """An optional package that this feature needs isn't installed."""

    def __init__(self, feature: str, package: str, install: str) -> None:
        super().__init__(feature, package, install)
        self.feature = feature
        self.package = package
        self.install = install

    def __str__(self) -> str:
        return f"{self.feature} needs the package {self.package!r}: {self.install}"


class UnknownSchemeError(DurableError, ValueError):
    """No installed store serves URLs of this scheme."""

    def __init__(self, scheme: str, known: Iterable[str]) -> None:
        super().__init__(scheme, tuple(known))
        self.scheme = scheme
        self.known: tuple[str, ...] = self.args[1]

    def __str__(self) -> str:
        return (
            f"no store serves the URL scheme {self.scheme!r}; known schemes: "
            f"{', '.join(self.known)} (others plug in through the entry point group "
            "'durable.stores')"
        )


class InvalidAnswerError(DurableError, ValueError):
    """The answer doesn't fit the question; nothing was stored."""

    def __init__(self, interrupt: str, reason: str, accepted: str) -> None:
        super().__init__(interrupt, reason, accepted)
        self.interrupt = interrupt
        self.reason = reason
        self.accepted = accepted

    def __str__(self) -> str:
        return f"answer to {self.interrupt!r} refused: {self.reason}; accepted: {self.accepted}"


class UnknownTokenError(DurableError, LookupError):
    """No open question has this token. The token itself is never shown."""

    def __str__(self) -> str:
        return "no open question has this token; it may belong to another store or a deleted run"


class TokenExpiredError(DurableError):
    """The question's time to be answered has passed; nothing was stored."""

    def __init__(self, run_id: str, interrupt: str) -> None:
        super().__init__(run_id, interrupt)
        self.run_id = run_id
        self.interrupt = interrupt

    def __str__(self) -> str:
        return f"the question {self.interrupt!r} of run {self.run_id!r} can't be answered any more"


class AlreadyAnsweredError(DurableError):
    """The question already has another answer, which stands."""

    def __init__(self, run_id: str, interrupt: str) -> None:
        super().__init__(run_id, interrupt)
        self.run_id = run_id
        self.interrupt = interrupt

    def __str__(self) -> str:
        return (
            f"the question {self.interrupt!r} of run {self.run_id!r} was already answered "
            "differently; the first answer stands"
        )


class InterruptExpiredError(DurableError):
    """Raised inside the function: nobody answered the question in time."""

    def __init__(self, run_id: str, interrupt: str) -> None:
        super().__init__(run_id, interrupt)
        self.run_id = run_id
        self.interrupt = interrupt

    def __str__(self) -> str:
        return f"nobody answered {self.interrupt!r} of run {self.run_id!r} before it expired"

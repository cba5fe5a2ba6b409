"""Everything that happens in a run, as typed events: to ``on_event`` and to ``logging``."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import ClassVar, TypeAlias

import msgspec

from durable._records import Scope, StepRecord
from durable._state import ResumeState, state_of

logger = logging.getLogger("durable")
# Without a handler of its own, Python would print our warnings where nobody configured logging.
logger.addHandler(logging.NullHandler())


class DurableWarning(UserWarning):
    """Something that is allowed but rarely meant, said once to the developer."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something happened in the run ``run_id``."""

    level: ClassVar[int] = logging.DEBUG
    run_id: str


class RunBegun(Event, frozen=True, kw_only=True):
    """A pass of the function begins; ``state`` is what earlier ones recorded."""

    level: ClassVar[int] = logging.INFO
    name: str
    attempt: int
    state: ResumeState


class RunCompleted(Event, frozen=True, kw_only=True):
    """The run is finished; ``stored`` says that its result was there already."""

    level: ClassVar[int] = logging.INFO
    name: str
    stored: bool = False


class RunFailed(Event, frozen=True, kw_only=True):
    """The function raised ``error``; the run can be resumed."""

    level: ClassVar[int] = logging.WARNING
    name: str
    error: BaseException


class RunInterrupted(Event, frozen=True, kw_only=True):
    """The pass was cancelled from outside; the run can be resumed."""

    level: ClassVar[int] = logging.INFO
    name: str


class RunTakenOver(Event, frozen=True, kw_only=True):
    """The run was taken from an owner whose lease had lapsed."""

    level: ClassVar[int] = logging.WARNING
    fence: int
    recoveries: int


class RunLost(Event, frozen=True, kw_only=True):
    """Another owner has taken the run; nothing more is written here."""

    level: ClassVar[int] = logging.ERROR
    fence: int


class RunRestarted(Event, frozen=True, kw_only=True):
    """The recorded steps no longer count: a new beginning, or a migration."""

    level: ClassVar[int] = logging.INFO
    reason: str


class ArgumentsChanged(Event, frozen=True, kw_only=True):
    """``run`` was called with other arguments than those recorded, and uses them."""

    level: ClassVar[int] = logging.WARNING


class StateSaved(Event, frozen=True, kw_only=True):
    """The store has acknowledged the log up to its record number ``sequence``."""

    sequence: int


class StepEvent(Event, frozen=True, kw_only=True):
    """Something happened to the step ``step``; ``path`` leads to the child run it is part of."""

    step: str
    path: tuple[str, ...] = ()


class StepBegun(StepEvent, frozen=True, kw_only=True):
    """The step's function is called, for the ``attempt``-th time."""

    attempt: int


class StepCompleted(StepEvent, frozen=True, kw_only=True):
    """The step's result is recorded."""

    record: StepRecord


class StepReplayed(StepEvent, frozen=True, kw_only=True):
    """The step's recorded result was used; its function wasn't called."""

    record: StepRecord


class StepFailed(StepEvent, frozen=True, kw_only=True):
    """The step failed with ``error`` after ``attempts`` attempts."""

    level: ClassVar[int] = logging.WARNING
    error: BaseException
    attempts: int


class StepRetried(StepEvent, frozen=True, kw_only=True):
    """An attempt failed with ``error``; the next one follows in ``delay`` seconds."""

    level: ClassVar[int] = logging.INFO
    error: BaseException
    attempt: int
    delay: float


class StepDrifted(StepEvent, frozen=True, kw_only=True):
    """The step asks for other arguments than were recorded; ``changed`` names them."""

    level: ClassVar[int] = logging.WARNING
    changed: tuple[str, ...]
    stored: str
    requested: str


class StepRenamed(StepEvent, frozen=True, kw_only=True):
    """The step's function has another name than the recorded one; the arguments are the same."""

    level: ClassVar[int] = logging.WARNING
    stored: str
    requested: str


class StepRepeated(StepEvent, frozen=True, kw_only=True):
    """The key was asked for again in the same pass, and got a copy of the first value."""

    level: ClassVar[int] = logging.WARNING


class VariableSet(Event, frozen=True, kw_only=True):
    """The durable variable ``name`` was set; ``path`` leads to the child run it is part of."""

    name: str
    stored: msgspec.Raw
    path: tuple[str, ...] = ()


class StepsUnasked(Event, frozen=True, kw_only=True):
    """The pass has finished without asking for these recorded steps."""

    level: ClassVar[int] = logging.WARNING
    steps: tuple[str, ...]


Observer: TypeAlias = Callable[[Event], Awaitable[None] | None]


async def publish(event: Event, observer: Observer | None) -> None:
    """Log ``event`` and give it to ``observer``; whatever that raises is logged."""
    if logger.isEnabledFor(event.level):
        logger.log(event.level, "%s", _Sentence(event), extra=_extra(event))
    if observer is None:
        return
    try:
        answer = observer(event)
        if inspect.isawaitable(answer):
            await answer
    except Exception:
        logger.exception(
            "on_event raised for %s", type(event).__name__, extra={"run_id": event.run_id}
        )


def is_wanted(kind: type[Event], observer: Observer | None) -> bool:
    """Return whether anybody would see an event of this kind."""
    return observer is not None or logger.isEnabledFor(kind.level)


def wants_steps(observer: Observer | None) -> bool:
    """Return whether anybody would see the events of steps."""
    return is_wanted(StepEvent, observer)


class _Sentence:
    """An event as a line of log, made only if somebody reads it; values are left out."""

    def __init__(self, event: Event) -> None:
        self._event = event

    def __str__(self) -> str:
        event = self._event
        facts = [f"run {event.run_id!r}"]
        if isinstance(event, StepEvent):
            facts.append(f"step {'/'.join((*event.path, event.step))!r}")
        for name in ("name", "attempt", "attempts", "delay", "changed", "steps", "reason", "fence"):
            if hasattr(event, name):
                facts.append(f"{name} {getattr(event, name)}")
        if (error := getattr(event, "error", None)) is not None:
            facts.append(f"error {type(error).__name__}")
        return f"{type(event).__name__}: {', '.join(facts)}"


def _extra(event: Event) -> dict[str, object]:
    extra: dict[str, object] = {"event": type(event).__name__, "run_id": event.run_id}
    if isinstance(event, StepEvent):
        extra |= {"step": event.step, "path": "/".join(event.path)}
    if (attempt := getattr(event, "attempt", None)) is not None:
        extra["attempt"] = attempt
    return extra


class ResumeStateCollector:
    """Keeps the state of the last run it heard of, steps of earlier passes included.

    ```python
    collector = ResumeStateCollector()
    await checkout.options(on_event=collector).run("order-42", "42")
    text = stringify_state(collector.state())
    ```
    """

    def __init__(self) -> None:
        self._run_id = ""
        self._state = ResumeState()
        self._new: list[StepRecord | VariableSet] = []

    def __call__(self, event: Event) -> None:
        """Take note of ``event``."""
        if isinstance(event, RunBegun):
            self._run_id, self._state, self._new = event.run_id, event.state, []
        elif event.run_id == self._run_id:
            if isinstance(event, StepCompleted):
                self._new.append(event.record)
            elif isinstance(event, VariableSet):
                self._new.append(event)

    def state(self) -> ResumeState:
        """Return everything recorded so far."""
        root = Scope()
        _fill(root, self._state)
        for new in self._new:
            if isinstance(new, StepRecord):
                root.at(new.path).steps[new.key] = new
            else:
                root.at(new.path).variables[new.name] = new.stored
        return state_of(root, self._state.function, self._state.function_version)


def _fill(scope: Scope, state: ResumeState) -> None:
    scope.steps.update(state.steps)
    scope.variables.update(state.variables)
    for key, child in state.children.items():
        _fill(scope.at((key,)), child)

"""Durable async functions: a crash costs you nothing that was already done.

A durable function does its work through keyed steps. Each step's result becomes a record in the
run's log, which a store keeps; when the process dies, the same call reads the log and goes on
where it stopped. From the outside in:

- ``durable`` and ``step`` are what you write; ``current_run`` says where you are.
- ``Runs`` and ``recover`` look after runs; ``ResumeState`` and ``StatePersistence`` are for
  keeping state by hand.
- ``durable.store`` says what a store is, ``durable.testing`` checks one.
"""

from typing import TYPE_CHECKING, Any

from durable._clock import Clock
from durable._current import CurrentRun, current_run
from durable._decorated import DecoratedStep
from durable._errors import (
    AlreadyAnsweredError,
    DuplicateStepKeyError,
    DurableError,
    InterruptExpiredError,
    InvalidAnswerError,
    LeaseLostError,
    MissingDriverError,
    NoActiveRunError,
    NotSerializableError,
    Paused,
    RunBusyError,
    RunCancelledError,
    RunEndedError,
    RunMismatchError,
    RunNotFoundError,
    StaleVersionError,
    StateFormatError,
    StepDriftError,
    StepError,
    StoreError,
    TokenExpiredError,
    UnknownSchemeError,
    UnknownTokenError,
    VersionMismatchError,
)
from durable._events import (
    ArgumentsChanged,
    DurableWarning,
    Event,
    ResumeStateCollector,
    RunBegun,
    RunCompleted,
    RunFailed,
    RunInterrupted,
    RunLost,
    RunRestarted,
    RunTakenOver,
    StateSaved,
    StepBegun,
    StepCompleted,
    StepDrifted,
    StepEvent,
    StepFailed,
    StepRenamed,
    StepRepeated,
    StepReplayed,
    StepRetried,
    StepsUnasked,
    VariableSet,
)
from durable._function import DurableFunction, durable
from durable._memory import MemoryStore
from durable._options import Codec
from durable._persistence import StatePersistence
from durable._records import StepRecord, StoredError
from durable._retry import Retry
from durable._runs import RunInfo, Runs
from durable._state import ResumeState, is_step_complete, parse_state, stringify_state
from durable._step import step
from durable._worker import RecoveryReport, recover
from durable.store import Journal, KeyValueStore, open_store, store_from_env

if TYPE_CHECKING:
    from durable._kv_journal import KeyValueJournal

__version__ = "0.1.0"

__all__ = [
    "AlreadyAnsweredError",
    "ArgumentsChanged",
    "Clock",
    "Codec",
    "CurrentRun",
    "DecoratedStep",
    "DuplicateStepKeyError",
    "DurableError",
    "DurableFunction",
    "DurableWarning",
    "Event",
    "InterruptExpiredError",
    "InvalidAnswerError",
    "Journal",
    "KeyValueJournal",
    "KeyValueStore",
    "LeaseLostError",
    "MemoryStore",
    "MissingDriverError",
    "NoActiveRunError",
    "NotSerializableError",
    "Paused",
    "RecoveryReport",
    "ResumeState",
    "ResumeStateCollector",
    "Retry",
    "RunBegun",
    "RunBusyError",
    "RunCancelledError",
    "RunCompleted",
    "RunEndedError",
    "RunFailed",
    "RunInfo",
    "RunInterrupted",
    "RunLost",
    "RunMismatchError",
    "RunNotFoundError",
    "RunRestarted",
    "RunTakenOver",
    "Runs",
    "StaleVersionError",
    "StateFormatError",
    "StatePersistence",
    "StateSaved",
    "StepBegun",
    "StepCompleted",
    "StepDriftError",
    "StepDrifted",
    "StepError",
    "StepEvent",
    "StepFailed",
    "StepRecord",
    "StepRenamed",
    "StepRepeated",
    "StepReplayed",
    "StepRetried",
    "StepsUnasked",
    "StoreError",
    "StoredError",
    "TokenExpiredError",
    "UnknownSchemeError",
    "UnknownTokenError",
    "VariableSet",
    "VersionMismatchError",
    "current_run",
    "durable",
    "is_step_complete",
    "open_store",
    "parse_state",
    "recover",
    "step",
    "store_from_env",
    "stringify_state",
]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: most programs use a store with a journal of its own.
    if name == "KeyValueJournal":
        from durable import _kv_journal

        return _kv_journal.KeyValueJournal
    raise AttributeError(f"module 'durable' has no attribute {name!r}")

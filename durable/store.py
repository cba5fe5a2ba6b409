"""The two contracts of a store.

``KeyValueStore`` is all that is asked of anybody: five methods. ``Journal`` is what a store may
offer on top, so that a step costs one small append however long its run is, and several
processes can share the store. Read this file before writing a store, then let
``durable.testing.check_store`` and ``check_journal`` judge it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import msgspec

from durable._errors import DurableError, MissingDriverError, UnknownSchemeError
from durable._records import Status

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

#: Where runs are kept when nothing else is said.
EMBEDDED_URL = "sqlite:///.durable/runs.db"

__all__ = [
    "Append",
    "Claim",
    "Claimed",
    "Deposit",
    "Guarantees",
    "Head",
    "HeadChange",
    "Journal",
    "KeyValueStore",
    "ListQuery",
    "Refusal",
    "RunLog",
    "SelfCommitting",
    "SwappingStore",
    "open_store",
    "store_from_env",
]


@runtime_checkable
class KeyValueStore(Protocol):
    """Text under keys: everything the library needs of a store.

    Keys and values are any text without lone surrogates (``ValueError``, before anything is
    written); keys are non-empty and the empty value is a value. What ``set`` has returned for is
    durable as far as the store goes, and a reader sees the old value or the new one, never a
    part. Every method works as the first call on a fresh store. A driver's failure arrives as
    ``StoreError`` with the driver's error as ``__cause__``. A cancelled call may or may not have
    had its effect; the store stays usable.
    """

    async def get(self, key: str) -> str | None:
        """Return the value under ``key``, or None when there is none or it has expired."""
        ...

    async def set(self, key: str, value: str, *, ttl: float | None = None) -> None:
        """Put ``value`` under ``key``.

        ``ttl`` is the number of seconds until it expires, and must be positive
        (``ValueError``); None is for good. A write replaces the expiry of an earlier one.
        """
        ...

    async def delete(self, key: str) -> bool:
        """Remove ``key``; return whether there was an unexpired value."""
        ...

    async def exists(self, key: str) -> bool:
        """Return whether there is an unexpired value under ``key``."""
        ...

    async def keys(self, pattern: str) -> list[str]:
        """Return the unexpired keys that match ``pattern``, sorted by code point.

        ``*`` stands for any number of any characters, newlines included; every other character
        stands for itself, letter case included.
        """
        ...


@runtime_checkable
class SwappingStore(Protocol):
    """A store that can also write on condition, which makes versions safe across processes."""

    async def swap(
        self, key: str, expected: str | None, value: str, *, ttl: float | None = None
    ) -> bool:
        """Put ``value`` under ``key`` if what is there is ``expected`` (None: nothing is).

        Return whether it was; one atomic operation.
        """
        ...


class Guarantees(msgspec.Struct, frozen=True):
    """What a store promises, in terms of who may use it at once.

    ``leases``: ``"process"`` - only the tasks of one process may execute runs; ``"machine"`` -
    processes of one machine may share it; ``"network"`` - any number of machines.
    ``durable`` is False when an acknowledged write can be lost by a crash; ``note`` says when.
    ``inline`` is True when the journal's methods never suspend, so nothing can be batched.
    """

    leases: Literal["process", "machine", "network"]
    durable: bool = True
    note: str = ""
    inline: bool = False


class Head(msgspec.Struct, frozen=True):
    """What is known of a run without reading its log.

    Times are seconds since the epoch by the store's clock. ``fence`` grows by one with each
    claim; it starts from the store's time in milliseconds, so that it also grows when a run is
    deleted and recorded anew. ``attempts`` counts claims, ``recoveries`` those that took the run
    over from an owner whose lease had lapsed. ``held`` is the number of seconds that
    the lease still runs, 0 when nobody holds it. ``inbox`` counts the inbox's entries ever made.
    ``sequence`` is the number of lines the log has ever had. ``wake_at`` is when a sleeping run
    is due. ``expires_at`` is when the run is removed unless something happens, None for never.
    ``owner`` is who claimed it last.
    """

    run_id: str
    name: str
    status: Status
    version: int = 1
    fence: int = 0
    attempts: int = 0
    recoveries: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0
    held: float = 0.0
    inbox: int = 0
    sequence: int = 0
    wake_at: float | None = None
    expires_at: float | None = None
    error: str = ""
    owner: str = ""


class HeadChange(msgspec.Struct, frozen=True):
    """What an append changes in the head, in the same atomic operation.

    ``status``, ``version``, ``error``: None leaves them. ``release`` gives the lease back.
    ``wake_at`` replaces the wake-up time (None: none). ``expires_in``: the run is removed this
    many seconds from now; 0 removes it at once with everything it has; None: never. It replaces
    the expiry that comes of the claim's ``ttl``, until the next claim.
    """

    status: Status | None = None
    version: int | None = None
    error: str | None = None
    release: bool = False
    wake_at: float | None = None
    expires_in: float | None = None


class Append(msgspec.Struct, frozen=True):
    """Lines that the owner adds to a run's log.

    ``owner`` and ``fence`` are those of the claim: both must still be the run's. ``first`` is the
    sequence number of the first line (the log's very first line has 1). ``epoch`` says that the
    lines before these don't count any more: ``read`` and ``claim`` never give them again, and
    the store removes them when it suits it.
    """

    run_id: str
    owner: str
    fence: int
    first: int
    lines: tuple[str, ...] = ()
    head: HeadChange | None = None
    epoch: bool = False


class Claim(msgspec.Struct, frozen=True):
    """A request to own a run.

    The claim is granted if nobody holds the run's lease, its name is ``name``, and its status is
    in ``statuses`` or in ``restart``. (A store may see that the holder's process is gone, and
    then needn't wait for its lease to lapse.) Granted, the fence grows by one, the status becomes
    ``running`` and the lease runs for ``lease`` seconds. A run that isn't recorded (or has
    expired) is created with ``begin`` as its log, unless ``begin`` is empty; one whose status is
    in ``restart`` gets ``begin`` as a new epoch, its attempts and recoveries count from 0 again.
    ``ttl``: seconds after the last claim, renewal or release until an unfinished run that nobody
    holds is removed. ``owner`` makes a repeated claim, sent again after a lost reply, be
    recognised: the present owner's claim is granted as it was, nothing changes.
    ``unheld`` creates the run without a lease and with the status ``pending`` (a submission);
    an existing run is then left alone. ``reset`` sets the recoveries back to 0.
    """

    run_id: str
    name: str
    owner: str
    lease: float
    statuses: frozenset[str]
    begin: tuple[str, ...] = ()
    restart: frozenset[str] = frozenset()
    version: int = 1
    ttl: float | None = None
    unheld: bool = False
    reset: bool = False


class RunLog(msgspec.Struct, frozen=True):
    """A run as read: its head, log lines and inbox.

    ``first`` is the sequence number of the first line given; ``more`` is True when the log goes
    on (read again with ``after`` = the last sequence number given). ``inbox`` maps the keys of
    deposits to their values.
    """

    head: Head
    lines: Sequence[str] = ()
    first: int = 1
    more: bool = False
    inbox: dict[str, str] = {}


class Claimed(msgspec.Struct, frozen=True):
    """The answer to a claim.

    ``log`` is the run as it is now: after the claim when it was granted. ``before`` is the
    status that the run had, None when it was created by this claim. ``took_over`` is True when
    an owner's lapsed lease was taken. ``now`` is the store's time.
    """

    granted: bool
    log: RunLog
    now: float
    before: Status | None = None
    took_over: bool = False


class Deposit(msgspec.Struct, frozen=True):
    """The answer to a deposit.

    ``accepted`` is True when this value was stored or was there already. ``value`` is what
    stands under the key; None when the run has ended and takes no deposits. ``status`` is the
    run's status.
    """

    accepted: bool
    value: str | None
    status: Status


class ListQuery(msgspec.Struct, frozen=True):
    """Which runs to list: those that meet every condition given, ordered by run id.

    ``names``: of one of these functions. ``prefix``: literal beginning of the run id. ``after``:
    only run ids beyond this one. ``claimable``: nobody holds them. ``before``: last changed
    (``updated_at``) longer ago than this many seconds.
    """

    status: frozenset[str] | None = None
    names: frozenset[str] | None = None
    prefix: str = ""
    after: str | None = None
    limit: int = 100
    claimable: bool = False
    before: float | None = None


#: What a refused member of a batch gets instead of the inbox count.
Refusal = DurableError


@runtime_checkable
class SelfCommitting(Protocol):
    """A journal that has threads of its own, on which appends that wait together share commits.

    The library then hands over each append at once, instead of gathering them into batches.
    """

    def append_soon(self, member: Append, settle: Callable[[int | Refusal], None]) -> None:
        """Begin to append ``member``, as ``append`` does; return at once and raise nothing.

        ``settle`` is called once, in the running event loop, with the member's outcome, which is
        a ``StoreError`` where ``append`` would raise. Appends to one run take effect in order.
        """
        ...


@runtime_checkable
class Journal(Protocol):
    """What a store may offer beyond the five methods.

    Every operation is atomic. Run ids are any text of up to 1,000 characters; lines are single
    lines of text without line breaks. Time is the store's, never the caller's. Expired runs are
    as if they had never been, for every method, and are removed in small batches on the way.
    """

    @property
    def guarantees(self) -> Guarantees:
        """What this store promises."""
        ...

    async def claim(self, claim: Claim) -> Claimed | None:
        """Claim a run, creating it if need be; return None when there is none and none was made.

        One round trip brings everything needed to go on: the head, the log (its first page if it
        is large) and the inbox. Nothing changes unless the claim is granted.
        """
        ...

    async def append(self, batch: Sequence[Append]) -> Sequence[int | Refusal]:
        """Add lines to the logs of several runs, durably, in one operation.

        A member is refused with ``LeaseLostError`` if the run has another owner by now, or is
        gone; the others are not affected. An accepted one gives the head's inbox count.
        Lines that are on record already, under the same numbers by the same owner, are accepted
        again: that is how a retry after a lost reply finds its own record. (One that removes its
        run is accepted when the run is gone.) Other lines under those numbers, or a gap before
        them, are refused with ``StoreError``. Members of the same
        run stand in order. If it raises, none or all of the batch may have been committed;
        calling again with the same batch is safe.
        """
        ...

    async def renew(self, run_id: str, owner: str, fence: int, lease: float) -> int:
        """Let the lease run for ``lease`` seconds from now; return the head's inbox count.

        Raises ``LeaseLostError`` if the run has another owner by now, was released or is gone. A
        lease that has lapsed but that nobody took is good again.
        """
        ...

    async def read(self, run_id: str, *, after: int = 0) -> RunLog | None:
        """Return the run with the log's lines beyond sequence number ``after``; None if absent."""
        ...

    async def deposit(self, run_id: str, key: str, value: str) -> Deposit | None:
        """Put ``value`` into the run's inbox unless ``key`` is taken; the first one wins.

        Anybody may deposit, whoever holds the run. Returns None when there is no such run.
        """
        ...

    async def list_runs(self, query: ListQuery) -> list[Head]:
        """Return the heads of the runs that ``query`` describes, ordered by run id."""
        ...

    async def delete_run(self, run_id: str, *, held: bool = False) -> bool:
        """Remove the run with everything it has; return whether there was one.

        A run that somebody holds stays, and ``RunBusyError`` is raised, unless ``held``.
        """
        ...

    async def purge(self, limit: int = 100) -> int:
        """Remove up to ``limit`` expired runs and keys; return how many were removed."""
        ...


def open_store(url: str, **options: Any) -> KeyValueStore:
    """Return the store that serves ``url``; it connects at its first use.

    ``options`` go to the store's class. Schemes are entry points of the group
    ``durable.stores``: callables that take the URL and the options. Raises
    ``UnknownSchemeError`` if no installed package serves the scheme, ``MissingDriverError`` if
    the store's driver isn't installed, ``ValueError`` or ``TypeError`` for a URL or options that
    the store doesn't take.
    """
    if not isinstance(url, str):
        raise TypeError(f"a store's URL must be a str, got {type(url).__name__}")
    from importlib.metadata import entry_points

    scheme, separator, _ = url.partition("://")
    schemes = {entry.name: entry for entry in entry_points(group="durable.stores")}
    if not separator or scheme not in schemes:
        raise UnknownSchemeError(scheme if separator else "", sorted(schemes))
    store: KeyValueStore = _load(schemes[scheme])(url, **options)
    return store


def _load(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except ModuleNotFoundError as error:
        if not error.name:
            raise
        package = error.name.partition(".")[0]
        distribution = entry.dist.name if entry.dist else package
        wanted = f"{distribution}[{entry.extras[0]}]" if entry.extras else package
        raise MissingDriverError(
            f"the store for {entry.name}:// URLs", package, f"pip install '{wanted}'"
        ) from error


def store_url_from_env(environ: Mapping[str, str] | None = None) -> str:
    """Return the URL that the environment names, else that of the embedded store."""
    environ = os.environ if environ is None else environ
    for name in ("DURABLE_STORE_URL", "DURABLE_REDIS_URL", "REDIS_URL"):
        if url := environ.get(name):
            return url
    return EMBEDDED_URL


def store_from_env(environ: Mapping[str, str] | None = None) -> KeyValueStore:
    """Return the store that the environment names.

    ``DURABLE_STORE_URL`` counts first, then ``DURABLE_REDIS_URL``, then ``REDIS_URL``; without
    any of them it is SQLite in ``.durable/runs.db``. Raises what ``open_store`` raises.
    """
    return open_store(store_url_from_env(environ))


def ttl_from_env(environ: Mapping[str, str] | None = None) -> float | None:
    """Return the default ttl in seconds that ``DURABLE_TTL_MS`` sets, or None.

    Raises ``ValueError`` if it isn't a positive number of milliseconds.
    """
    text = (os.environ if environ is None else environ).get("DURABLE_TTL_MS")
    if not text:
        return None
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = 0.0
    if not 0 < milliseconds < float("inf"):
        raise ValueError(f"DURABLE_TTL_MS must be a positive number of milliseconds, got {text!r}")
    return milliseconds / 1000

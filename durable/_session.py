"""What everybody who uses one store in one process shares."""

from __future__ import annotations

import asyncio
import importlib
import os
import threading
import weakref
from concurrent.futures import Future
from pathlib import Path

from durable._commit import GroupCommit
from durable._plan import Plans
from durable.store import Guarantees, Journal, KeyValueStore, open_store, store_url_from_env


def _journal_on(store: KeyValueStore) -> Journal:
    # Loaded only where a store needs it: it is a tenth of what importing the library costs.
    module = importlib.import_module("durable._kv_journal")
    journal: Journal = module.KeyValueJournal(store)
    return journal


class LoopState:
    """What belongs to one event loop: its group commit, and what is known of step functions."""

    def __init__(self, journal: Journal) -> None:
        self.commits: GroupCommit = GroupCommit(journal)
        self.plans: Plans = Plans()
        self._saves: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def save_lock(self, key: str) -> asyncio.Lock:
        """Return the lock that savers of ``key`` take in this loop."""
        lock = self._saves.get(key)
        if lock is None:
            lock = self._saves[key] = asyncio.Lock()
        return lock


class Session:
    """One store as this process uses it: its journal, and what hangs on it.

    A store without a journal of its own gets a ``KeyValueJournal``, the same one for everybody,
    since that is where the leases of such a store live. ``calls`` are the plain calls being
    executed, by process and run id.
    """

    def __init__(self, store: KeyValueStore) -> None:
        self.store = store
        self.journal: Journal = store if isinstance(store, Journal) else _journal_on(store)
        self.guarantees: Guarantees = self.journal.guarantees
        self.calls: dict[tuple[int, str], Future[Exception | bytes | None]] = {}
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopState] = (
            weakref.WeakKeyDictionary()
        )

    def here(self) -> LoopState:
        """Return what belongs to the running loop."""
        loop = asyncio.get_running_loop()
        state = self._loops.get(loop)
        if state is None:
            state = self._loops[loop] = LoopState(self.journal)
        return state


# Both only find again what is alive anyway, so nothing in them outlives its users. Equal stores
# must meet in one session: two journals on one five-method store would not see each other's
# leases.
_by_store: weakref.WeakValueDictionary[int, Session] = weakref.WeakValueDictionary()
_by_url: weakref.WeakValueDictionary[tuple[str, str, int], Session] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def session_for(store: KeyValueStore | str | None) -> Session:
    """Return the session of a store, of a store's URL, or (None) of the environment's store.

    Raises ``TypeError`` for anything else, and what ``open_store`` raises.
    """
    if store is None:
        store = store_url_from_env()
    if not isinstance(store, str | KeyValueStore):
        raise TypeError(
            "a store must be a URL or an object with get, set, delete, exists and keys, got "
            f"{type(store).__name__}"
        )
    with _lock:
        if not isinstance(store, str):
            return _session_of(store)
        # A relative URL means another store in another folder; a forked child has its own.
        place = (store, str(Path.cwd()), os.getpid())
        session = _by_url.get(place)
        if session is None:
            session = _by_url[place] = _session_of(open_store(store))
        return session


def _session_of(store: KeyValueStore) -> Session:
    session = _by_store.get(id(store))
    if session is None or session.store is not store:
        session = _by_store[id(store)] = Session(store)
    return session

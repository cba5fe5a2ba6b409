"""``StatePersistence``: states saved by hand, with versions, on any key-value store."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import timedelta
from typing import Any

import msgspec

from durable._errors import StaleVersionError, StateFormatError
from durable._options import check_id, seconds
from durable._session import session_for
from durable._state import ResumeState, parse_state, stringify_state
from durable.store import KeyValueStore, SwappingStore


class StatePersistence:
    """Saves ``ResumeState`` under a key made of ``prefix`` and the run id.

    Every save makes a new version. On stores that can write on condition, two savers never
    overwrite each other, in whatever processes; on others that holds within one event loop.

    ```python
    saved = StatePersistence(store)
    version = await saved.save("order-42", state)
    await saved.save("order-42", later, expected_version=version)
    ```
    """

    def __init__(self, store: KeyValueStore | str, prefix: str = "workflow:state:") -> None:
        self._session = session_for(store)
        self._store = self._session.store
        self._prefix = check_id(prefix, "prefix")

    def __repr__(self) -> str:
        return f"StatePersistence({self._store!r}, prefix={self._prefix!r})"

    async def save(
        self,
        run_id: str,
        state: ResumeState,
        *,
        metadata: Mapping[str, Any] | None = None,
        ttl: float | timedelta | None = None,
        expected_version: int | None = None,
    ) -> int:
        """Save ``state`` and return its new version.

        ``metadata`` is added to the state's own. ``ttl`` (seconds or timedelta): how long it is
        kept. ``expected_version``: save only if this is the current version (0: nothing is
        saved yet), else raise ``StaleVersionError`` whose ``current`` is what is there.
        """
        key, lasts = self._key(run_id), None if ttl is None else seconds(ttl, "ttl")
        if not isinstance(state, ResumeState):
            raise TypeError(f"save takes a ResumeState, got {type(state).__name__}")
        async with self._alone(key):
            while True:
                text = await self._store.get(key)
                current = None if text is None else _parse(text, run_id)
                version = 0 if current is None else current.version
                if expected_version is not None and expected_version != version:
                    raise StaleVersionError(run_id, expected_version, version, current)
                new = msgspec.structs.replace(state, version=version + 1)
                if await self._write(key, text, stringify_state(new, **(metadata or {})), lasts):
                    return version + 1

    async def load(self, run_id: str) -> ResumeState | None:
        """Return the saved state, or None; raise ``StateFormatError`` if it is damaged."""
        text = await self._store.get(self._key(run_id))
        return None if text is None else _parse(text, run_id)

    async def delete(self, run_id: str) -> bool:
        """Remove the saved state; return whether there was one."""
        return await self._store.delete(self._key(run_id))

    async def exists(self, run_id: str) -> bool:
        """Return whether a state is saved."""
        return await self._store.exists(self._key(run_id))

    async def list(self, prefix: str = "") -> list[str]:
        """Return the run ids with a saved state that begin with ``prefix``, sorted."""
        beginning = self._prefix + prefix
        keys = await self._store.keys(beginning + "*")
        # A ``*`` in the prefix is no wildcard.
        return [key[len(self._prefix) :] for key in keys if key.startswith(beginning)]

    def _key(self, run_id: str) -> str:
        return self._prefix + check_id(run_id, "a run id")

    def _alone(self, key: str) -> AbstractAsyncContextManager[object]:
        if isinstance(self._store, SwappingStore):
            return nullcontext()
        return self._session.here().save_lock(key)

    async def _write(self, key: str, old: str | None, new: str, ttl: float | None) -> bool:
        if isinstance(self._store, SwappingStore):
            return await self._store.swap(key, old, new, ttl=ttl)
        await self._store.set(key, new, ttl=ttl)
        return True


def _parse(text: str, run_id: str) -> ResumeState:
    try:
        return parse_state(text)
    except StateFormatError as error:
        raise StateFormatError(f"saved state of {run_id!r}, {error.where}", error.reason) from None

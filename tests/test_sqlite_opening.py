"""``SQLiteStore`` opens what its path or URL says, and leaves nothing open."""

from __future__ import annotations

import asyncio
import gc
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from durable_adapters.sqlite import SQLiteStore
from sqlite_site import Hooks, begin, hook_connections, in_store, rows

from durable._errors import StoreError
from durable.store import Append, ListQuery


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Hooks:
    return hook_connections(monkeypatch)


# Names.


def test_repr_shows_what_it_was_made_with() -> None:
    """``repr`` is the call that makes the store."""
    assert repr(SQLiteStore("a.db")) == "SQLiteStore('a.db')"
    assert repr(SQLiteStore(Path("/x/a.db"), prefix="p")) == "SQLiteStore('/x/a.db', prefix='p')"


def test_urls_name_relative_and_absolute_files() -> None:
    """Three slashes and a relative path, or four; characters may be percent-encoded."""
    assert repr(SQLiteStore.from_url("sqlite:///a/b.db")) == "SQLiteStore('a/b.db')"
    assert repr(SQLiteStore.from_url("sqlite:////a/b.db")) == "SQLiteStore('/a/b.db')"
    assert repr(SQLiteStore.from_url("sqlite:///a%20%3f%C3%A9.db")) == "SQLiteStore('a ?é.db')"
    assert repr(SQLiteStore.from_url("sqlite:///a.db", prefix="p")).endswith("prefix='p')")


@pytest.mark.parametrize(
    "url",
    ["sqlite://a.db", "sqlite:///", "sqlite:a.db", "sqlite:///a.db?mode=ro", "sqlite:///a#b",
     "sqlite:///:memory:", "sqlite:////a/", "sqlite:///a%00b", "other:///a.db"],
)  # fmt: skip
def test_other_urls_are_refused(url: str) -> None:
    """What doesn't name a file is a ``ValueError``."""
    with pytest.raises(ValueError, match=r"SQLite|path"):
        SQLiteStore.from_url(url)


def test_a_url_is_not_shown_in_the_refusal() -> None:
    """A URL of another form may hold a password."""
    with pytest.raises(ValueError) as caught:
        SQLiteStore.from_url("sqlite://me:secret@host/a.db")

    assert "secret" not in str(caught.value)


def test_other_options_and_prefixes_are_refused() -> None:
    """Nothing is silently ignored, and SQLite's own names are not taken."""
    with pytest.raises(TypeError, match="'timeout'"):
        SQLiteStore.from_url("sqlite:///a.db", timeout=3)
    for prefix in ("a b", "sqlite", "sqlite_x", ""):
        with pytest.raises(ValueError, match="prefix"):
            SQLiteStore("a.db", prefix=prefix)


def test_a_relative_path_keeps_its_meaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder counts that was current when the store was made."""
    monkeypatch.chdir(tmp_path)
    store = SQLiteStore("runs.db")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")

    async def main() -> None:
        async with store:
            await store.set("k", "v")

    asyncio.run(main())

    assert (tmp_path / "runs.db").exists()


# Opening and closing.


def test_files_and_folders_appear_at_the_first_use(tmp_path: Path) -> None:
    """Making a store touches nothing; using it makes what it needs, writable by no stranger."""
    path = tmp_path / "a" / "b" / "runs.db"
    SQLiteStore(path)
    assert not (tmp_path / "a").exists()

    umask = os.umask(0)
    try:
        in_store(path, lambda store: store.get("k"))
    finally:
        os.umask(umask)

    for made in (path, path.parent, tmp_path / "a"):
        assert not made.stat().st_mode & stat.S_IWOTH


def test_it_writes_ahead_and_waits_for_the_disk(database: Path, opened: Hooks) -> None:
    """The journal mode is WAL, and each commit reaches the disk."""
    found: list[Any] = []
    for name in ("journal_mode", "synchronous"):
        opened.append(
            lambda connection, name=name: found.append(
                connection.execute(f"PRAGMA {name}").fetchone()[0]
            )
        )

    in_store(database, lambda store: store.get("k"))

    assert found == ["wal", 2]


def test_after_aclose_every_call_is_refused(database: Path) -> None:
    """``aclose`` is for good, may be repeated, and also ends a store that was never used."""

    async def main() -> None:
        store, unused = SQLiteStore(database), SQLiteStore(database)
        await store.set("k", "v")
        for closed in (store, unused):
            await closed.aclose()
            await closed.aclose()
            with pytest.raises(StoreError, match="closed"):
                await closed.get("k")
            with pytest.raises(StoreError, match="closed"):
                await closed.append([Append("r", "me", 1, 1, ("x",))])

    asyncio.run(main())


def test_aclose_finishes_what_was_begun_and_leaves_no_thread(database: Path) -> None:
    """Calls made before ``aclose`` have their effect; the thread and WAL file are gone after."""
    before = threading.active_count()

    async def main() -> None:
        store = SQLiteStore(database)
        pending = [asyncio.ensure_future(store.set(f"k{i}", "v")) for i in range(50)]
        await asyncio.sleep(0)
        await asyncio.gather(store.aclose(), store.aclose())
        await asyncio.gather(*pending)
        assert threading.active_count() == before

    asyncio.run(main())

    assert rows(database, "values") == 50


def test_a_forgotten_store_ends_its_thread(database: Path) -> None:
    """A store that is collected without ``aclose`` leaves no thread behind."""

    async def main() -> threading.Thread:
        await SQLiteStore(database).set("k", "v")
        return next(t for t in threading.enumerate() if t.name == "durable-sqlite")

    thread = asyncio.run(main())
    gc.collect()
    thread.join(5)

    assert not thread.is_alive()


def test_two_prefixes_share_a_file_unseen(database: Path) -> None:
    """Neither sees what the other keeps."""

    async def main() -> None:
        async with SQLiteStore(database) as one, SQLiteStore(database, prefix="durable_x") as two:
            await one.set("k", "1")
            await begin(one, "r")
            assert await two.keys("*") == []
            assert await two.list_runs(ListQuery()) == []
            assert await two.read("r") is None

    asyncio.run(main())

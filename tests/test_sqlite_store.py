"""``SQLiteStore`` keeps the contracts, shares commits and leaves nothing open."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import durable_adapters.sqlite as sqlite_module
import pytest
from durable_adapters._sqlite_schema import HEAD_COLUMNS, open_database
from durable_adapters.sqlite import SQLiteStore
from sqlite_site import (
    Hooks,
    begin,
    claim,
    hook_connections,
    in_store,
    rows,
)
from stores import age_sqlite

from durable._errors import LeaseLostError, StateFormatError, StoreError
from durable._leases import HeadRow
from durable._memory import MemoryStore
from durable.store import Append, HeadChange, ListQuery


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Hooks:
    return hook_connections(monkeypatch)


def test_the_head_has_a_column_for_each_field() -> None:
    """The columns are those of ``HeadRow``, in its order."""
    assert HeadRow.__struct_fields__ == HEAD_COLUMNS


def test_it_promises_leases_on_one_machine(database: Path) -> None:
    """Its guarantees say durable, and as far as the machine reaches."""
    guarantees = SQLiteStore(database).guarantees

    assert (guarantees.leases, guarantees.durable, guarantees.inline) == ("machine", True, False)


# Group commit.


def test_appends_that_wait_together_share_a_commit(database: Path, opened: Hooks) -> None:
    """Two hundred appends that wait take two commits at most, three in sequence three."""
    statements: list[str] = []
    opened.append(lambda connection: connection.set_trace_callback(statements.append))

    async def use(store: SQLiteStore) -> None:
        fences = await asyncio.gather(*(begin(store, f"r{i}") for i in range(200)))
        statements.clear()
        with closing(sqlite3.connect(database, isolation_level=None)) as blocker:
            blocker.execute("BEGIN IMMEDIATE")
            appends = [
                asyncio.ensure_future(
                    store.append([Append(f"r{i}", "me", fence, 2, (f"line {i}",))])
                )
                for i, fence in enumerate(fences)
            ]
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(*appends)
        assert outcomes == [[0]] * 200
        assert statements.count("COMMIT") <= 2
        statements.clear()
        for sequence in range(3, 6):
            await store.append([Append("r0", "me", fences[0], sequence, ("x",))])
        assert statements.count("COMMIT") == 3

    in_store(database, use)
    assert rows(database, "log") == 403


def test_an_append_does_not_touch_the_head(database: Path, opened: Hooks) -> None:
    """A step's append costs two reads and one insert, however long the run is."""
    statements: list[str] = []
    opened.append(lambda connection: connection.set_trace_callback(statements.append))

    async def use(store: SQLiteStore) -> None:
        fence = await begin(store, "r")
        await store.append([Append("r", "me", fence, 2, ("x",) * 1000)])
        statements.clear()
        await store.append([Append("r", "me", fence, 1002, ("y",))])

    in_store(database, use)
    kinds = [statement.split()[0] for statement in statements if "PRAGMA" not in statement]

    assert kinds == ["BEGIN", "SELECT", "SELECT", "INSERT", "COMMIT"]


def test_a_failing_member_leaves_the_others_alone(database: Path, opened: Hooks) -> None:
    """Refused, unstorable and too large jobs fail by themselves within one commit."""
    opened.append(lambda connection: connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2_000_000))

    async def use(store: SQLiteStore) -> None:
        fence = await begin(store, "r")
        big = "x" * 3_000_000
        outcomes = await asyncio.gather(
            store.append([Append("r", "me", fence, 2, ("two",))]),
            store.append([Append("r", "other", fence, 3, ("stolen",))]),
            store.append([Append("r", "me", fence, 3, ("three", big))]),
            store.append([Append("r", "me", fence, 3, ("\ud800",))]),
            store.append([Append("r", "me", fence, 9, ("gap",))]),
            store.set("big", big),
            store.claim(claim("\ud800")),
            store.append([Append("r", "me", fence, 3, ("three",))]),
            store.set("small", "v"),
            return_exceptions=True,
        )
        kinds = [type(item[0] if isinstance(item, list) else item) for item in outcomes]
        assert kinds == [
            int, LeaseLostError, StoreError, StoreError, StoreError,
            StoreError, UnicodeEncodeError, int, type(None),
        ]  # fmt: skip
        log = await store.read("r")
        assert log is not None and log.lines == ("begin", "two", "three")
        assert await store.keys("*") == ["small"]

    in_store(database, use)


def test_if_the_commit_fails_everything_in_it_fails(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told that a write succeeded whose commit failed; the next write is fine."""
    failing = True

    class Session(sqlite_module.RunSession):
        def commit(self) -> None:
            if failing and self.connection.total_changes:
                raise sqlite3.OperationalError("disk I/O error")
            super().commit()

    monkeypatch.setattr(sqlite_module, "RunSession", Session)

    async def use(store: SQLiteStore) -> None:
        nonlocal failing
        outcomes = await asyncio.gather(
            store.set("a", "1"), store.set("b", "2"), begin(store, "r"), return_exceptions=True
        )
        assert all(isinstance(outcome, StoreError) for outcome in outcomes)
        assert all(isinstance(item.__cause__, sqlite3.OperationalError) for item in outcomes)
        failing = False
        assert await store.keys("*") == []
        await store.set("a", "3")
        assert await store.get("a") == "3"

    in_store(database, use)


def test_event_loops_share_a_store(database: Path) -> None:
    """Four loops in four threads use one store at once."""
    store = SQLiteStore(database)

    async def use(name: int) -> None:
        fence = await begin(store, f"r{name}")
        for sequence in range(2, 30):
            assert await store.append([Append(f"r{name}", "me", fence, sequence, ("x",))]) == [0]

    threads = [threading.Thread(target=asyncio.run, args=(use(name),)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(store.aclose())

    assert rows(database, "log") == 4 * 29


def test_a_cancelled_call_leaves_the_store_usable(database: Path) -> None:
    """Whether it had its effect or not, the log stays without a gap."""

    async def use(store: SQLiteStore) -> None:
        fence = await begin(store, "r")
        task = asyncio.ensure_future(store.append([Append("r", "me", fence, 2, ("x",))]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await store.append([Append("r", "me", fence, 2, ("x",))]) == [0]
        log = await store.read("r")
        assert log is not None and log.lines == ("begin", "x")

    in_store(database, use)


# Logs.


def test_large_logs_come_in_pages(database: Path) -> None:
    """``more`` says that a page isn't all, be it for its lines or for its text."""

    async def pages(store: SQLiteStore) -> list[int]:
        sizes, lines, after, more = [], [], 0, True
        while more:
            log = await store.read("r", after=after)
            assert log is not None and log.first == after + 1 and log.head.sequence == 2001
            lines += log.lines
            sizes.append(len(log.lines))
            after, more = after + len(log.lines), log.more
        assert lines == ["begin", *map(str, range(2000))]
        return sizes

    async def main() -> None:
        async with SQLiteStore(database) as store:
            fence = await begin(store, "r")
            await store.append([Append("r", "me", fence, 2, tuple(map(str, range(2000))))])
            assert await pages(store) == [2001]
        async with SQLiteStore(database) as store:
            store._settings.page_lines = 600
            assert await pages(store) == [600, 600, 600, 201]
            claimed = await store.claim(claim("r"))
            assert claimed is not None and claimed.log.more
        async with SQLiteStore(database) as store:
            store._settings.page_text = 500
            assert len(await pages(store)) > 3

    asyncio.run(main())


def test_lines_come_back_whatever_they_hold(database: Path) -> None:
    """Also empty ones, NULs, other scripts, and the line breaks that nobody should append."""
    lines = ("", "a\0b", "\0", "é中\U0001f600", "\r", "\u2028", "one\ntwo", "")

    async def use(store: SQLiteStore) -> None:
        for number, kept in enumerate((lines, lines[:6], ("",), ())):
            fence = await begin(store, f"r\0{number}")
            await store.append([Append(f"r\0{number}", "me", fence, 2, kept)])
            log = await store.read(f"r\0{number}", after=1)
            assert log is not None and tuple(log.lines) == kept

    in_store(database, use)


def test_a_log_with_a_hole_is_not_guessed_at(database: Path) -> None:
    """Lines that vanished from the file are a ``StateFormatError`` that names the run."""

    async def use(store: SQLiteStore) -> None:
        fence = await begin(store, "r")
        await store.append([Append("r", "me", fence, 2, ("a", "b", "c"))])
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            connection.execute("DELETE FROM durable_log WHERE sequence = 3")
        with pytest.raises(StateFormatError, match="run 'r'"):
            await store.read("r")
        with pytest.raises(StateFormatError, match="run 'r'"):
            await store.claim(claim("r"))

    in_store(database, use)


def test_an_expired_run_takes_no_append(database: Path) -> None:
    """Nothing is acknowledged that the next purge would remove."""

    async def use(store: SQLiteStore) -> None:
        fence = await begin(store, "r", ttl=60.0)
        age_sqlite(database, "durable", 100.0)
        (outcome,) = await store.append([Append("r", "me", fence, 2, ("x",))])
        assert isinstance(outcome, LeaseLostError)

    in_store(database, use)


def test_a_claim_clears_expired_runs_away(database: Path) -> None:
    """A new store's first claim removes them with their logs and inboxes."""

    async def leave(store: SQLiteStore) -> None:
        for number in range(5):
            fence = await begin(store, f"r{number}")
            await store.deposit(f"r{number}", "k", "v")
            change = HeadChange(status="finished", release=True, expires_in=60.0)
            await store.append([Append(f"r{number}", "me", fence, 2, ("end",), head=change)])

    in_store(database, leave)
    age_sqlite(database, "durable", 100.0)
    in_store(database, lambda store: store.claim(claim("new")))

    assert [rows(database, table) for table in ("runs", "log", "inbox")] == [1, 1, 0]


def test_the_answers_are_those_of_the_reference(database: Path) -> None:
    """The same calls give the same heads, refusals and logs as in memory."""

    async def story(store: Any) -> list[Any]:
        told: list[Any] = []
        first = await store.claim(claim("r", ttl=60.0))
        fence = first.log.head.fence
        for member in (
            Append("r", "me", fence, 2, ("a", "b")),
            Append("r", "me", fence, 2, ("a", "b")),
            Append("r", "me", fence, 2, ("a", "c")),
            Append("r", "me", fence, 3, ("b", "c")),
            Append("r", "me", fence, 5, ("e",)),
            Append("r", "me", fence, 4, (), head=HeadChange(wake_at=5.0, error="why")),
            Append("r", "me", fence, 4, ("new",), epoch=True),
            Append("r", "me", fence, 4, ("new",), epoch=True),
            Append("r", "me", fence, 3, ("b",)),
            Append("r", "me", fence + 1, 5, ("x",)),
        ):
            (outcome,) = await store.append([member])
            told.append(outcome if isinstance(outcome, int) else type(outcome))
            log = await store.read("r")
            told.append((log.lines, log.first, log.head.sequence, log.head.wake_at))
        told += [await store.deposit("r", key, value) for key, value in ("ab", "cd", "ax", "ab")]
        log = await store.read("r")
        told.append((list(log.inbox.items()), log.head.inbox, log.head.error, log.head.attempts))
        return told

    assert in_store(database, story) == asyncio.run(story(MemoryStore()))


def test_lists_do_not_scan_everything(database: Path) -> None:
    """A list by status or name reads an index; so does the search for expired runs."""
    connection = open_database(str(database), "durable", 1.0)
    session = sqlite_module.RunSession(connection, "durable", 1, 1)
    one, two = frozenset({"paused"}), frozenset({"paused", "pending"})
    queries = [
        session._narrowed(ListQuery(status=one, names=frozenset({"f"}))),
        session._narrowed(ListQuery(status=two, claimable=True)),
        session._narrowed(ListQuery(names=one, prefix="a", after="ab")),
        (session.sql.expired_runs, {"now": 1.0, "limit": 1}),
        (session.sql.expired_keys, {"now": 1.0, "limit": 1}),
    ]

    plans = [
        [row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + sql, values)]
        for sql, values in queries
    ]
    connection.close()

    for plan in plans:
        assert any("SEARCH durable_" in line and "INDEX durable_" in line for line in plan)


ODD = ['{"a": "\\n"}', "'", '"', "é\u2028\U0001f600", "\x01\x1f\x7f", "x" * 5000]


@pytest.mark.parametrize("texts", [ODD, [*ODD, "nul\0inside"]], ids=["plain", "with NUL"])
def test_lines_of_any_text_share_a_commit(texts: list[str], database: Path) -> None:
    """Lines that are written with one statement come back as they were, whatever they hold."""

    async def use(store: SQLiteStore) -> None:
        runs = {f"run {text}": text for text in texts}
        members = [Append(run, "me", await begin(store, run), 2, (runs[run],)) for run in runs]

        outcomes = await asyncio.gather(*(store.append([member]) for member in members))

        assert [list(outcome) for outcome in outcomes] == [[0]] * len(members)
        for run, text in runs.items():
            log = await store.read(run)
            assert log is not None
            assert list(log.lines) == ["begin", text]

    in_store(database, use)

"""``SQLiteStore`` when processes share its file or die, and when disks and files fail."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from durable_adapters.sqlite import SQLiteStore
from sqlite_site import (
    Hooks,
    begin,
    claim,
    finish,
    hook_connections,
    in_store,
    limit_pages,
    rows,
    start,
)

from durable._errors import LeaseLostError, StateFormatError, StoreError
from durable.store import Append, ListQuery


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Hooks:
    return hook_connections(monkeypatch)


# Processes.


@pytest.mark.crash
def test_two_processes_share_the_file(database: Path) -> None:
    """What one process writes the other sees, and a held run stays with its holder."""
    program = """
    async def main():
        async with SQLiteStore(path) as store:
            claimed = await store.claim(claim("r", "child"))
            assert claimed.granted
            await store.append([Append("r", "child", claimed.log.head.fence, 2, ("child's",))])
            print("ready", flush=True)
            sys.stdin.readline()
            print((await store.read("r")).inbox)
    asyncio.run(main())
    """
    child = start(database, program)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"

    async def use(store: SQLiteStore) -> None:
        claimed = await store.claim(claim("r", "parent"))
        assert claimed is not None and not claimed.granted
        assert claimed.log.lines == ("begin", "child's") and claimed.log.head.held > 0
        fence = claimed.log.head.fence
        (refused,) = await store.append([Append("r", "parent", fence, 3, ("parent's",))])
        assert isinstance(refused, LeaseLostError)
        await store.deposit("r", "answer", "yes")

    in_store(database, use)
    output, _ = child.communicate("go on\n", timeout=20)

    assert output == "{'answer': 'yes'}\n"


@pytest.mark.crash
def test_twelve_processes_create_the_file_at_once(tmp_path: Path) -> None:
    """All succeed, and all their runs are there."""
    database = tmp_path / "folder" / "runs.db"
    program = """
    async def main():
        async with SQLiteStore(path) as store:
            assert (await store.claim(claim(sys.argv[2], "child"))).granted
    print("ready", flush=True)
    sys.stdin.readline()
    asyncio.run(main())
    """
    children = [start(database, program, f"r{number:02}") for number in range(12)]
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        finish(child)

    heads = in_store(database, lambda store: store.list_runs(ListQuery()))
    assert [head.run_id for head in heads] == [f"r{number:02}" for number in range(12)]


@pytest.mark.crash
def test_a_killed_process_loses_nothing_acknowledged(database: Path) -> None:
    """After SIGKILL amid writes all that was acknowledged is there, and nothing is half there."""
    program = """
    async def write(store, name):
        fence = (await store.claim(claim(name, "child"))).log.head.fence
        sequence = 2
        while True:
            pair = (f"{sequence}", f"{sequence + 1}")
            await store.append([Append(name, "child", fence, sequence, pair)])
            sequence += 2
            os.write(1, f"{name} {sequence - 1}\\n".encode())
    async def main():
        store = SQLiteStore(path)
        await asyncio.gather(*(write(store, f"r{number}") for number in range(8)))
    asyncio.run(main())
    """
    child = start(database, program)
    assert child.stdout is not None
    acknowledged: dict[str, int] = {}
    for _ in range(400):
        name, last = child.stdout.readline().split()
        acknowledged[name] = int(last)
    child.send_signal(signal.SIGKILL)
    for line in child.stdout.read().splitlines():
        name, last = line.split()
        acknowledged[name] = int(last)
    child.wait()
    child.stdout.close()
    assert child.stdin is not None
    child.stdin.close()

    async def use(store: SQLiteStore) -> None:
        for name, last in acknowledged.items():
            log = await store.read(name)
            assert log is not None and log.head.sequence >= last
            assert log.head.sequence % 2 == 1
            assert list(log.lines[1:]) == [str(n) for n in range(2, log.head.sequence + 1)]

    in_store(database, use)


@pytest.mark.crash
def test_a_forked_child_has_its_own_connection(database: Path) -> None:
    """Parent and child go on with the same store object, and both stores are whole."""
    program = """
    async def write(store, name, count):
        fence = (await store.claim(claim(name, name))).log.head.fence
        for sequence in range(2, count + 2):
            await store.append([Append(name, name, fence, sequence, ("x",))])
    async def close(store):
        await store.aclose()
    store = SQLiteStore(path)
    asyncio.run(write(store, "before", 5))
    child = os.fork()
    asyncio.run(write(store, "child" if child == 0 else "parent", 50))
    asyncio.run(close(store))
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    """
    finish(start(database, program))

    heads = in_store(database, lambda store: store.list_runs(ListQuery()))
    assert [(head.run_id, head.sequence) for head in heads] == [
        ("before", 6), ("child", 51), ("parent", 51)
    ]  # fmt: skip


@pytest.mark.crash
def test_a_process_exits_with_a_job_in_flight(database: Path) -> None:
    """The interpreter doesn't wait for a thread that waits for another process's transaction."""
    in_store(database, lambda store: store.get("k"))
    program = """
    async def main():
        store = SQLiteStore(path)
        await store.get("k")
        task = asyncio.ensure_future(store.set("k", "v"))
        await asyncio.sleep(0.1)
    asyncio.run(main())
    """
    with closing(sqlite3.connect(database, isolation_level=None)) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        finish(start(database, program))

        assert time.monotonic() - begun < 8


# Trouble.


def test_a_writer_waits_and_a_reader_never_does(database: Path) -> None:
    """Another's long transaction ends a write in ``StoreError`` and doesn't disturb reads."""

    async def main() -> None:
        store = SQLiteStore(database)
        store._settings.busy_seconds = 0.1
        async with store:
            await store.set("k", "old")
            with closing(sqlite3.connect(database, isolation_level=None)) as blocker:
                blocker.execute("BEGIN IMMEDIATE")
                with pytest.raises(StoreError, match="locked") as caught:
                    await store.set("k", "new")
                assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
                assert (caught.value.operation, caught.value.key) == ("set", "k")
                assert await store.get("k") == "old"
            await store.set("k", "new")
            assert await store.get("k") == "new"

    asyncio.run(main())


def test_a_full_disk_fails_the_write_and_no_other(database: Path, opened: Hooks) -> None:
    """What is too much is refused whole, what fits goes in, and space makes all well again."""
    opened.append(limit_pages(20))
    big = "x" * 400_000

    async def use(store: SQLiteStore) -> None:
        fence = await begin(store, "r")
        outcomes = await asyncio.gather(
            store.set("small", "v"),
            store.set("big", big),
            store.append([Append("r", "me", fence, 2, ("fits",))]),
            store.append([Append("r", "me", fence, 3, ("too", big, "much"))]),
            return_exceptions=True,
        )
        assert outcomes[0] is None and outcomes[2] == [0]
        for outcome in (outcomes[1], outcomes[3]):
            assert isinstance(outcome, StoreError) and "full" in str(outcome)
            assert isinstance(outcome.__cause__, sqlite3.OperationalError)
        log = await store.read("r")
        assert log is not None and log.lines == ("begin", "fits")
        assert await store.keys("*") == ["small"]
        opened.clear()
        with pytest.raises(StoreError):
            await store.set("big", big)
        await store.set("big", big)
        assert await store.get("big") == big

    in_store(database, use)


def test_a_foreign_file_is_left_as_it_is(database: Path) -> None:
    """A file that isn't a database is a ``StateFormatError``, and stays byte for byte."""
    content = b"Dear diary, " * 1000
    database.write_bytes(content)

    async def use(store: SQLiteStore) -> None:
        for _ in range(2):
            with pytest.raises(StateFormatError, match=r"runs\.db") as caught:
                await store.set("k", "v")
            assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)

    in_store(database, use)
    assert database.read_bytes() == content


def test_a_damaged_file_is_not_guessed_at(database: Path) -> None:
    """Pages full of rubbish are a ``StateFormatError``."""

    async def fill(store: SQLiteStore) -> None:
        fence = await begin(store, "r")
        await store.append([Append("r", "me", fence, 2, ("x" * 500,) * 200)])

    in_store(database, fill)
    content = bytearray(database.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    database.write_bytes(content)

    async def use(store: SQLiteStore) -> None:
        with pytest.raises(StateFormatError, match="malformed"):
            await store.read("r")
        with pytest.raises(StateFormatError, match="malformed"):
            await store.claim(claim("r"))

    in_store(database, use)


def test_a_later_layout_is_refused(database: Path) -> None:
    """Tables of a later version of the library are not touched; another prefix is no obstacle."""
    in_store(database, lambda store: store.set("k", "v"))
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("UPDATE durable_meta SET value = 2 WHERE key = 'schema'")

    async def use(store: SQLiteStore) -> None:
        with pytest.raises(StateFormatError, match="layout 2"):
            await store.get("k")

    in_store(database, use)
    in_store(database, lambda store: store.set("k", "v"), prefix="other")


def test_what_cannot_be_opened_is_a_store_error(tmp_path: Path) -> None:
    """A folder in the file's place, or a file in the folder's; all is well once it's out of way."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")

    async def fails(path: Path) -> None:
        async with SQLiteStore(path) as store:
            for call in (store.get("k"), store.set("k", "v"), store.claim(claim("k"))):
                with pytest.raises(StoreError) as caught:
                    await call
                assert caught.value.key == "k"
                assert isinstance(caught.value.__cause__, OSError | sqlite3.OperationalError)
            obstacle = tmp_path / path.relative_to(tmp_path).parts[0]
            if obstacle.is_dir():
                obstacle.rmdir()
            else:
                obstacle.unlink()
            await store.set("k", "v")
        shutil.rmtree(obstacle) if obstacle.is_dir() else obstacle.unlink()

    asyncio.run(fails(tmp_path / "folder"))
    asyncio.run(fails(tmp_path / "file" / "runs.db"))
    (tmp_path / "file").touch()
    asyncio.run(fails(tmp_path / "file" / "sub" / "runs.db"))


@pytest.mark.crash
def test_missing_permission_is_a_store_error(tmp_path: Path) -> None:
    """A folder or file that the process may not write: ``StoreError``, and fine when it may."""
    tmp_path.chmod(0o755)
    program = """
    from durable import _errors
    user = os.geteuid()
    async def main():
        if user == 0:
            os.seteuid(65534)
        async with SQLiteStore(path) as store:
            for call in (store.set("k", "v"), store.claim(claim("k", "me"))):
                try:
                    await call
                except _errors.StoreError as error:
                    print(error.key, type(error.__cause__).__name__)
            if user == 0:
                os.seteuid(0)
            else:
                os.chmod(os.path.dirname(path), 0o755)
            await store.set("k", "v")
    asyncio.run(main())
    """
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)

    output = finish(start(locked / "runs.db", program))
    assert len(output.splitlines()) == 2 and output.startswith("k ")


def test_a_file_replaced_under_the_store_is_noticed(database: Path) -> None:
    """The first call afterwards is refused, and later ones use the file that is there then."""

    async def use(store: SQLiteStore) -> None:
        fence = await begin(store, "r")
        for suffix in ("", "-wal", "-shm"):
            database.with_name(database.name + suffix).unlink(missing_ok=True)
        with pytest.raises(StoreError, match="deleted or replaced"):
            await store.claim(claim("s"))
        (outcome,) = await store.append([Append("r", "me", fence, 2, ("x",))])
        assert isinstance(outcome, LeaseLostError)
        await begin(store, "s")
        async with SQLiteStore(database) as other:
            assert [head.run_id for head in await other.list_runs(ListQuery())] == ["s"]

    in_store(database, use)


def test_an_append_whose_reply_was_lost_can_be_sent_again(database: Path) -> None:
    """A reply lost with the process doesn't turn its own record into a conflict."""

    async def twice(store: SQLiteStore) -> None:
        fence = await begin(store, "r")
        member = Append("r", "me", fence, 2, ("x", "y"))
        assert await store.append([member, member]) == [0, 0]
        async with SQLiteStore(database) as other:
            assert await other.append([member]) == [0]

    in_store(database, twice)
    assert rows(database, "log") == 3

"""The file store: one readable file per run, safe across processes and crashes."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress
from itertools import chain
from pathlib import Path

import pytest
from durable_adapters._file_disk import Disk
from durable_adapters._file_kept import RunFiles
from durable_adapters._file_names import decode_name, encode_name
from durable_adapters._file_runs import Runs
from durable_adapters._file_scan import Scan
from durable_adapters._file_values import Values
from durable_adapters.file import FileStore
from stores import age_files

from durable._errors import LeaseLostError, StateFormatError, StoreError
from durable.store import Append, Claim, HeadChange, ListQuery

# Helpers.


def a_claim(run_id="r", owner="a", **options):
    options = {"lease": 60.0, "begin": ("begin",), **options}
    statuses = frozenset({"pending", "running", "paused", "failed"})
    return Claim(run_id=run_id, name="work", owner=owner, statuses=statuses, **options)


def an_append(fence, first, *lines, run_id="r", owner="a", **options):
    return Append(run_id, owner, fence, first, lines, **options)


def run_file(folder, run_id="r"):
    return folder / "durable" / "runs" / f"{encode_name(run_id)}.log"


def direct(folder, most_open=8):
    """Return a store's blocking half, without threads."""
    disk = Disk(str(folder), "durable", 1.0)
    return Runs(disk, RunFiles(disk, most_open))


def child(code, *args):
    """Start a Python process that runs ``code``, with what it needs imported."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PREAMBLE) + textwrap.dedent(code), *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
    )


PREAMBLE = """
import asyncio, fcntl, json, os, resource, signal, sys
from durable.store import Append, Claim
from durable_adapters.file import FileStore

def a_claim(run_id, owner):
    statuses = frozenset({"pending", "running", "paused", "failed"})
    return Claim(run_id, "work", owner, 60.0, statuses, begin=("begin",))
"""


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def store_threads():
    return [each for each in threading.enumerate() if each.name.startswith("durable file store")]


# Folders, names and URLs.


def test_url_names_an_absolute_folder():
    """A URL's path is percent-decoded."""
    store = FileStore.from_url("file:///data/my%20runs", prefix="other")

    assert repr(store) == "FileStore('/data/my runs')"


@pytest.mark.parametrize(
    "url", ["file://relative", "file:relative", "file:///", "file:///a?b", "file:///a#b", "x:///a"]
)
def test_other_urls_are_refused(url):
    """A URL that isn't an absolute path is refused with the form that is accepted."""
    with pytest.raises(ValueError, match="file:///folder"):
        FileStore.from_url(url)


def test_unknown_options_are_refused():
    """An unknown option of a URL is named, with those that are known."""
    with pytest.raises(TypeError, match=r"'folder'.*prefix, lock_timeout"):
        FileStore.from_url("file:///data", folder="x")


def test_nothing_is_written_before_the_first_write(tmp_path):
    """Reading, listing and deleting leave no trace of a store that was never written."""

    async def main():
        async with FileStore(tmp_path / "store") as store:
            assert await store.get("k") is None
            assert await store.keys("*") == []
            assert not await store.delete("k")
            assert await store.read("r") is None
            assert await store.list_runs(ListQuery()) == []
            assert await store.claim(a_claim(begin=())) is None
            assert await store.purge() == 0
            assert not await store.delete_run("r")

    asyncio.run(main())
    assert list(tmp_path.iterdir()) == []


def test_files_are_for_their_owner_alone(tmp_path):
    """Folders have mode 0700, files 0600."""

    async def main():
        async with FileStore(tmp_path / "store") as store:
            await store.set("k", "v")
            await store.claim(a_claim())

    asyncio.run(main())
    found = [tmp_path / "store", *(tmp_path / "store").rglob("*")]
    modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in found}
    assert modes == {(True, 0o700), (False, 0o600)}


HOSTILE = [
    "..", ".", "/", "../../etc/passwd", "a/b", "a:1", "a_1", "A", "a", "a%62", "ab", "%", "~", " ",
    "\0", "a\nb", "\u00e9", "e\u0301", "\U0001f600" * 50, "x" * 1000, "x" * 999 + "y", "X" * 1000,
    "x" * 124, "x" * 125, "con", "-rf", ".log", "a.log", "\u2028", "*", "?", "[a]", "\\",
]  # fmt: skip


def test_names_are_safe_and_apart():
    """Any key has a short plain name of its own, which gives the key back unless it was cut."""
    names = [encode_name(key) for key in HOSTILE]

    assert len(set(names)) == len(HOSTILE)
    assert all(re.fullmatch(r"[a-z0-9_%~-]{1,124}", name) for name in names)
    for key, name in zip(HOSTILE, names, strict=True):
        assert decode_name(name) == (None if "~" in name else key)


def test_hostile_keys_come_back(tmp_path):
    """Runs and values under any name are listed as they were named, inside the folder."""

    async def main():
        async with FileStore(tmp_path / "deep" / "store") as store:
            for key in HOSTILE:
                await store.set(key, f"value of {key}")
                await store.claim(a_claim(key))
            assert await store.keys("*") == sorted(HOSTILE)
            heads = await store.list_runs(ListQuery())
            assert [head.run_id for head in heads] == sorted(HOSTILE)
            assert await store.get(HOSTILE[3]) == f"value of {HOSTILE[3]}"

    asyncio.run(main())
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_prefixes_are_apart(tmp_path):
    """Stores with different prefixes in one folder know nothing of each other."""

    async def main():
        async with FileStore(tmp_path, prefix="a") as one, FileStore(tmp_path, prefix="b") as two:
            await one.set("k", "v")
            await one.claim(a_claim())
            assert await two.keys("*") == []
            assert await two.read("r") is None

    asyncio.run(main())


# The life of a store object.


def test_closed_store_refuses(tmp_path):
    """After aclose every call raises StoreError; closing again does nothing."""

    async def main():
        store = FileStore(tmp_path)
        await store.set("k", "v")
        await store.aclose()
        await store.aclose()
        with pytest.raises(StoreError, match="closed"):
            await store.get("k")
        with pytest.raises(StoreError, match="closed"):
            await store.append([an_append(1, 2, "x")])

    asyncio.run(main())


def test_closing_leaves_no_threads_and_no_files(tmp_path):
    """aclose waits for what is under way, then threads and open files are gone."""

    async def main():
        files = open_files()
        store = FileStore(tmp_path)
        claimed = await asyncio.gather(*(store.claim(a_claim(f"r{n}")) for n in range(20)))
        fences = [each.log.head.fence for each in claimed]
        under_way = asyncio.ensure_future(
            store.append(
                [an_append(fence, 2, "x", run_id=f"r{n}") for n, fence in enumerate(fences)]
            )
        )
        await asyncio.sleep(0)
        assert len(store_threads()) == 17
        await store.aclose()
        assert await under_way == [0] * 20
        assert store_threads() == []
        assert open_files() == files

    asyncio.run(main())


def test_forgotten_store_ends_its_threads(tmp_path):
    """A store that is collected without being closed keeps neither threads nor files."""

    async def use():
        files = open_files()
        await FileStore(tmp_path).claim(a_claim())
        return files

    files = asyncio.run(use())
    gc.collect()
    for thread in store_threads():
        thread.join(5)
    gc.collect()

    assert store_threads() == []
    assert open_files() <= files


def test_two_loops_share_a_store(tmp_path):
    """Event loops in several threads may use one store object at once."""
    store = FileStore(tmp_path)

    async def use(number):
        claimed = await store.claim(a_claim(f"r{number}"))
        for first in range(2, 12):
            await store.append([an_append(claimed.log.head.fence, first, "x", run_id=f"r{number}")])

    threads = [threading.Thread(target=asyncio.run, args=(use(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    heads = asyncio.run(store.list_runs(ListQuery()))
    assert [head.sequence for head in heads] == [11] * 4
    asyncio.run(store.aclose())


def test_few_files_are_open_and_nothing_is_read_again(tmp_path, monkeypatch):
    """More runs than may be open are written in turn without their logs being read again."""
    runs = direct(tmp_path, most_open=4)
    fences = [runs.claim(a_claim(f"r{n}", begin=("x" * 9999,))).log.head.fence for n in range(20)]
    files, read = open_files(), []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: read.append(pread(*args)) or read[-1])
    for first in range(2, 5):
        for n, fence in enumerate(fences):
            assert runs.append(f"r{n}", [an_append(fence, first, "y", run_id=f"r{n}")]) == [0]

    assert open_files() == files
    assert sum(map(len, read)) < 60 * 200


# Appends that reach the disk together.


def soon(store, members):
    """Hand over ``members`` at once; return what gives their outcomes, in order."""
    futures = [asyncio.get_running_loop().create_future() for _ in members]
    for member, future in zip(members, futures, strict=True):
        store.append_soon(member, future.set_result)
    return asyncio.gather(*futures)


async def claim_all(store, runs):
    """Claim ``runs``; return the fence of each."""
    claimed = await asyncio.gather(*(store.claim(a_claim(run)) for run in runs))
    return {run: each.log.head.fence for run, each in zip(runs, claimed, strict=True)}


def test_refused_append_is_refused_alone(tmp_path):
    """Of appends that go out together, only those of a lost or absent run are refused."""

    async def main():
        async with FileStore(tmp_path) as store:
            fences = await claim_all(store, "abcd")
            fences["c"] -= 1
            members = [an_append(fences.get(run, 1), 2, run, run_id=run) for run in "abcxd"]
            outcomes = await soon(store, members)
            assert [each for each in outcomes if each == 0] == [0] * 3
            assert {type(outcomes[2]), type(outcomes[3])} == {LeaseLostError}
            assert [len((await store.read(run)).lines) for run in "abcd"] == [2, 2, 1, 2]

    asyncio.run(main())


@pytest.mark.parametrize("broken", ["pwrite", "fdatasync", "flock"])
def test_failure_concerns_one_run_of_those_together(tmp_path, monkeypatch, broken):
    """What fails for one run's file leaves nothing there and doesn't reach the others."""

    async def main():
        async with FileStore(tmp_path) as store:
            fences = await claim_all(store, "abc")
            before, bad = run_file(tmp_path, "b").read_bytes(), run_file(tmp_path, "b").stat()
            members = [
                an_append(fences[run], first, "x" * 50, run_id=run)
                for first in (2, 3)
                for run in "abc"
            ]
            owner = fcntl if broken == "flock" else os
            real = getattr(owner, broken)

            def failing(fd, *args):
                if os.fstat(fd).st_ino == bad.st_ino and args != (fcntl.LOCK_UN,):
                    raise OSError(errno.EIO, "Input/output error")
                return real(fd, *args)

            with monkeypatch.context() as patch:
                patch.setattr(owner, broken, failing)
                outcomes = await soon(store, members)
            assert [each for each in outcomes if each == 0] == [0] * 4
            assert isinstance(outcomes[1], StoreError)
            assert isinstance(outcomes[4], StoreError)
            assert isinstance(outcomes[1].__cause__, OSError)
            assert run_file(tmp_path, "b").read_bytes() == before
            assert await soon(store, members) == [0] * 6
            for run in "abc":
                assert (await store.read(run)).lines == ["begin", "x" * 50, "x" * 50]

    asyncio.run(main())


@pytest.mark.parametrize("broken", ["pwrite", "fdatasync", "flock", "stat"])
def test_lone_append_that_fails_can_be_done_again(tmp_path, monkeypatch, broken):
    """An append that goes out alone and fails is refused, and the store goes on."""

    async def main():
        async with FileStore(tmp_path) as store:
            fence = (await store.claim(a_claim())).log.head.fence
            member = an_append(fence, 2, "x")

            def failing(*args):
                raise OSError(errno.EIO, "Input/output error")

            with monkeypatch.context() as patch:
                patch.setattr(fcntl if broken == "flock" else os, broken, failing)
                [outcome] = await soon(store, [member])
            assert isinstance(outcome, StoreError)
            assert await soon(store, [member]) == [0]
            assert (await store.read("r")).lines == ["begin", "x"]

    asyncio.run(asyncio.wait_for(main(), 10))


def test_lost_markers_refuse_only_who_needs_them(tmp_path, monkeypatch):
    """A folder of markers that can't be synced keeps heads from changing, not lines from going."""

    async def main():
        async with FileStore(tmp_path) as store:
            fences = await claim_all(store, "ab")
            end = HeadChange(status="finished", release=True)
            members = [
                an_append(fences["a"], 2, "end", run_id="a", head=end),
                an_append(fences["b"], 2, "x", run_id="b"),
            ]

            def failing(fd):
                raise OSError(errno.EIO, "Input/output error")

            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", failing)
                refused, accepted = await soon(store, members)
            assert isinstance(refused, StoreError)
            assert accepted == 0
            assert (await store.read("a")).head.status == "running"
            assert await soon(store, members) == [0, 0]
            [head] = await store.list_runs(ListQuery(status=frozenset({"finished"})))
            assert (head.run_id, head.sequence) == ("a", 2)

    asyncio.run(main())


def test_order_within_a_run_whatever_its_appends_do(tmp_path):
    """Lines, changes of the head and epochs of one run take effect in the order given."""
    heads = {0: HeadChange(status="paused"), 1: HeadChange(status="running")}

    async def main():
        async with FileStore(tmp_path) as store:
            fences = await claim_all(store, ["r", "s"])
            members = [
                an_append(
                    fences[run], n, f"line {n}", run_id=run, head=heads.get(n % 5), epoch=n % 7 == 0
                )
                for n in range(2, 42)
                for run in "rs"
            ]
            assert await soon(store, members) == [0] * 80
            for run in "rs":
                log = await store.read(run)
                assert list(log.lines) == [f"line {n}" for n in range(35, 42)]
                assert (log.head.status, log.head.sequence) == ("running", 41)
        found = [path.parent.name for path in (tmp_path / "durable" / "index").glob("*/r")]
        assert found == ["running"]

    asyncio.run(main())


def test_appends_that_wait_for_one_run_share_a_sync(tmp_path, monkeypatch):
    """Concurrent steps of a run don't cost one sync each."""
    synced = []
    fdatasync = os.fdatasync

    async def main():
        async with FileStore(tmp_path) as store:
            fence = (await store.claim(a_claim())).log.head.fence
            monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(fd) or fdatasync(fd))
            assert await soon(store, [an_append(fence, n, "x") for n in range(2, 102)]) == [0] * 100

    asyncio.run(main())
    assert len(synced) < 50


def test_run_locked_elsewhere_holds_up_no_other(tmp_path):
    """Appends to a run whose lock another process holds wait, those of other runs don't."""

    async def main():
        async with FileStore(tmp_path) as store:
            fences = await claim_all(store, "abc")
            members = {run: an_append(fences[run], 2, run, run_id=run) for run in "abc"}
            with run_file(tmp_path, "b").open() as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                waiting = soon(store, [members["b"]])
                assert await soon(store, [members["a"], members["c"]]) == [0, 0]
                assert not waiting.done()
                fcntl.flock(file, fcntl.LOCK_UN)
                assert await waiting == [0]

    asyncio.run(asyncio.wait_for(main(), 10))


def test_stores_that_write_to_the_same_runs_do_not_wait_for_each_other(tmp_path):
    """Two stores appending to the same runs in opposite order both get done."""
    runs = [f"r{n}" for n in range(30)]

    async def main():
        async with FileStore(tmp_path) as one, FileStore(tmp_path) as two:
            fences = await claim_all(one, runs)
            for first in range(2, 12):
                members = [an_append(fences[run], first, "x", run_id=run) for run in runs]
                mine, other = soon(one, members), soon(two, members[::-1])
                assert await mine == await other == [0] * len(runs)
            assert {(await two.read(run)).head.sequence for run in runs} == {11}

    asyncio.run(asyncio.wait_for(main(), 30))


def test_closing_waits_for_appends_of_every_kind(tmp_path):
    """aclose returns when all that was handed over is done, however it is queued."""

    async def main():
        store = FileStore(tmp_path)
        fences = await claim_all(store, "abc")
        members = [
            an_append(fences[run], n, "x", run_id=run, epoch=n % 2 == 0)
            for n in range(2, 12)
            for run in "abc"
        ]
        under_way = soon(store, members)
        await store.aclose()
        assert store_threads() == []
        assert await under_way == [0] * 30

    asyncio.run(asyncio.wait_for(main(), 20))


def test_outcomes_for_a_closed_loop_are_dropped(tmp_path):
    """What an ended loop has left behind is written, and the store serves the next loop."""
    store = FileStore(tmp_path)

    async def leave():
        fences = await claim_all(store, "ab")
        for run, fence in fences.items():
            store.append_soon(an_append(fence, 2, "x", run_id=run), lambda outcome: None)
        return fences

    async def go_on(fences):
        members = [an_append(fence, 3, "y", run_id=run) for run, fence in fences.items()]
        assert await soon(store, members) == [0, 0]
        assert (await store.read("a")).lines == ["begin", "x", "y"]
        await store.aclose()

    asyncio.run(go_on(asyncio.run(leave())))


def test_settle_that_raises_harms_no_other(tmp_path):
    """Every outcome is handed over, whatever the receiver of another one does with its own."""

    async def main():
        async with FileStore(tmp_path) as store:
            fences = await claim_all(store, "abc")
            loop, reported, settled = asyncio.get_running_loop(), [], []
            loop.set_exception_handler(lambda loop, context: reported.append(context))

            def settle(outcome):
                settled.append(outcome)
                raise RuntimeError("mine")

            for run, fence in fences.items():
                store.append_soon(an_append(fence, 2, "x", run_id=run), settle)
        # The store is closed: all is done, and the loop has what is left to hand over.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert settled == [0] * 3
        assert len(reported) == 3

    asyncio.run(main())


# Runs.


def test_append_costs_the_same_however_long_the_run_is(tmp_path, monkeypatch):
    """A step writes its own line and reads nothing, behind 10 lines as behind 5,000."""
    runs = direct(tmp_path)
    fence = runs.claim(a_claim()).log.head.fence
    calls = []
    for name in ("pread", "pwrite", "fdatasync", "open"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, real=real: calls.append(n) or real(*a))
    first = 2
    for count in (10, 5000):
        runs.append("r", [an_append(fence, first, *["x"] * count)])
        size = run_file(tmp_path).stat().st_size
        calls.clear()
        runs.append("r", [an_append(fence, first + count, "y" * 100)])
        assert calls == ["pwrite", "fdatasync"]
        assert run_file(tmp_path).stat().st_size - size < 150
        first += count + 1


def test_listing_reads_only_the_ends_of_a_file(tmp_path, monkeypatch):
    """A large run is listed, with its length, without being read."""

    async def main():
        async with FileStore(tmp_path) as store:
            fence = (await store.claim(a_claim())).log.head.fence
            await store.append([an_append(fence, 2, *["x" * 200] * 5000)])
            read = []
            pread = os.pread
            monkeypatch.setattr(os, "pread", lambda *args: read.append(pread(*args)) or read[-1])
            [head] = await store.list_runs(ListQuery(status=frozenset({"running"})))
            assert (head.sequence, head.status) == (5001, "running")
            assert sum(map(len, read)) < 10_000

    asyncio.run(main())


def test_renewal_does_not_grow_the_file(tmp_path):
    """The lease is renewed in place, and other processes see it."""

    async def main():
        async with FileStore(tmp_path) as store, FileStore(tmp_path) as other:
            fence = (await store.claim(a_claim(lease=60.0))).log.head.fence
            size = run_file(tmp_path).stat().st_size
            await store.renew("r", "a", fence, 5000.0)
            assert run_file(tmp_path).stat().st_size == size
            assert 4900 < (await other.read("r")).head.held <= 5000
            assert 4900 < (await other.list_runs(ListQuery()))[0].held <= 5000
            assert not (await other.claim(a_claim(owner="b"))).granted

    asyncio.run(main())


def test_deposit_does_not_prolong_a_lease(tmp_path):
    """What others put into the inbox leaves the owner's lease as it is."""

    async def main():
        async with FileStore(tmp_path) as store, FileStore(tmp_path) as other:
            fence = (await store.claim(a_claim())).log.head.fence
            await store.renew("r", "a", fence, 1000.0)
            age_files(tmp_path, "durable", 990)
            assert (await other.deposit("r", "k", "v")).accepted
            assert 0 < (await other.read("r")).head.held < 11
            assert await store.append([an_append(fence, 2, "x")]) == [1]

    asyncio.run(main())


def test_restart_by_another_process_is_noticed(tmp_path):
    """A file that was replaced is found out before anything is written to the old one."""

    async def main():
        async with FileStore(tmp_path) as store, FileStore(tmp_path) as other:
            fence = (await store.claim(a_claim())).log.head.fence
            end = HeadChange(status="finished", release=True, expires_in=None)
            await store.append([an_append(fence, 2, "x", head=end)])
            again = a_claim(owner="b", begin=("anew",), restart=frozenset({"finished"}))
            assert (await other.claim(again)).log.lines == ["anew"]
            [outcome] = await store.append([an_append(fence, 3, "late")])
            assert isinstance(outcome, LeaseLostError)
            assert (await store.read("r")).lines == ["anew"]

    asyncio.run(main())


def test_stale_markers_do_no_harm(tmp_path):
    """A marker that a crash left behind neither shows a wrong run nor hides one."""

    async def main():
        async with FileStore(tmp_path) as store:
            await store.claim(a_claim())
            for status in ("paused", "finished"):
                (tmp_path / "durable" / "index" / status / "r").touch()
            (tmp_path / "durable" / "index" / "running" / "gone").touch()
            paused = await store.list_runs(ListQuery(status=frozenset({"paused", "finished"})))
            running = await store.list_runs(ListQuery(status=frozenset({"running", "paused"})))
            assert paused == []
            assert [head.run_id for head in running] == ["r"]

    asyncio.run(main())


def test_purge_removes_what_crashes_have_left(tmp_path):
    """Old temporary files and markers of runs that are gone are cleared away."""

    async def main():
        async with FileStore(tmp_path) as store:
            await store.claim(a_claim())
            left = [
                tmp_path / "durable" / "tmp" / "x",
                tmp_path / "durable" / "index" / "paused" / "x",
            ]
            for path in left:
                path.touch()
                os.utime(path, (1, 1))
            await store.purge()
            assert not any(path.exists() for path in left)
            assert (await store.read("r")).head.status == "running"

    asyncio.run(main())


def test_damaged_run_does_not_hide_the_others(tmp_path, caplog):
    """A run that can't be read is left out of lists with a word in the program's log."""

    async def main():
        async with FileStore(tmp_path) as store:
            await store.claim(a_claim("a"))
            await store.claim(a_claim("b"))
            run_file(tmp_path, "a").write_text("no run\n")
            assert [head.run_id for head in await store.list_runs(ListQuery())] == ["b"]
            for call in (store.read("a"), store.claim(a_claim("a", "x"))):
                with pytest.raises(StateFormatError, match=r"a\.log line 1"):
                    await call

    asyncio.run(main())
    assert "a.log" in caplog.text


# Damage.


def written_run(folder):
    """Write a run with all kinds of lines; return its file's bytes and every state it has had."""
    runs = direct(folder)
    fence = runs.claim(a_claim(lease=60.0)).log.head.fence
    states = [runs.read("r", 0)]

    def note():
        states.append(runs.read("r", 0))

    runs.append("r", [an_append(fence, 2, "caf\u00e9")])
    note()
    runs.deposit("r", "k", "v")
    note()
    runs.append("r", [an_append(fence, 3, "", "x")])
    note()
    runs.append("r", [an_append(fence, 5, "end", head=HeadChange(status="paused"))])
    note()
    runs.append("r", [an_append(fence, 6, "more")])
    note()
    return run_file(folder).read_bytes(), [known(state) for state in states]


def known(log):
    return list(log.lines), log.inbox, log.head.status, log.head.sequence


def what_is_read(folder, data, fences):
    """Return what a damaged file gives, or None when it's refused, which must change nothing."""
    path = run_file(folder)
    path.write_bytes(data)
    runs = direct(folder)
    try:
        found = known(runs.read("r", 0))
    except StateFormatError as error:
        assert str(path) in str(error)
        [outcome] = runs.append("r", [an_append(fences, 7, "next")])
        assert isinstance(outcome, StateFormatError)
        assert path.read_bytes() == data
        return None
    return found


def test_cut_file_is_a_whole_beginning_or_refused(tmp_path):
    """Wherever a file is cut off, what is left of whole operations is read, or nothing."""
    data, states = written_run(tmp_path)
    seen = [what_is_read(tmp_path, data[:size], 0) for size in range(len(data))]

    assert all(found is None or found in states for found in seen)
    assert seen[:300] == [None] * 300
    assert [state for state in states[:-1] if state not in seen] == []


@pytest.mark.parametrize("change", [1, 32, 128, None], ids=str)
def test_changed_byte_is_refused(tmp_path, change):
    """No changed byte gives a wrong line: only a lost last line break looks like a torn write."""
    data, states = written_run(tmp_path)
    for place in range(len(data)):
        byte = 10 if change is None else data[place] ^ change
        if byte == data[place]:
            continue
        changed = data[:place] + bytes([byte]) + data[place + 1 :]
        found = what_is_read(tmp_path, changed, 0)
        assert found == (states[-2] if place == len(data) - 1 else None), place


def test_list_never_shows_what_is_not_so(tmp_path):
    """Wherever a byte is changed, a list shows a head that the run has had, or none."""
    data, states = written_run(tmp_path)
    heads = {(status, sequence) for _, _, status, sequence in states}
    disk = Disk(str(tmp_path), "durable", 1.0)
    scan = Scan(disk, direct(tmp_path), Values(disk))
    for place in range(len(data)):
        run_file(tmp_path).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        found = {(head.status, head.sequence) for head in scan.list_runs(ListQuery())}
        assert found <= heads


def test_torn_operation_is_replaced_by_the_next_write(tmp_path):
    """Lines without the end of their operation don't count, and the next write goes over them."""
    data, _ = written_run(tmp_path)
    start = data.rindex(b"\nr ") + 1
    cut = data[: data.index(b"\nH ", start) + 20]
    run_file(tmp_path).write_bytes(cut)
    runs = direct(tmp_path)
    log = runs.read("r", 0)
    assert log.lines == ["begin", "caf\u00e9", "", "x"]

    assert runs.append("r", [an_append(log.head.fence, 5, "again")]) == [1]
    assert direct(tmp_path).read("r", 0).lines == ["begin", "caf\u00e9", "", "x", "again"]


def test_line_of_another_file_is_refused(tmp_path):
    """Whole lines that were moved, doubled, left out or taken from another run are found out."""
    data, _ = written_run(tmp_path / "one")
    other, _ = written_run(tmp_path / "two")
    header, *lines = data.splitlines(keepends=True)
    foreign = other.splitlines(keepends=True)[1:]
    for changed in (
        lines[:2] + lines[3:],
        [*lines[:3], lines[2], *lines[3:]],
        [lines[0], lines[2], lines[1], *lines[3:]],
        [*lines[:-1], foreign[-1]],
        foreign,
    ):
        assert what_is_read(tmp_path / "one", header + b"".join(changed), 0) is None


def test_file_of_another_run_is_refused(tmp_path):
    """A run's file under another run's name isn't taken for that run."""
    data, _ = written_run(tmp_path)
    run_file(tmp_path, "s").write_bytes(data)

    with pytest.raises(StateFormatError, match="another run, 'r'"):
        direct(tmp_path).read("s", 0)


def test_later_format_is_refused(tmp_path):
    """A file of a later format isn't touched, and the error says what to do."""
    data, _ = written_run(tmp_path)
    run_file(tmp_path).write_bytes(data.replace(b"durable-run 1", b"durable-run 2", 1))

    with pytest.raises(StateFormatError, match="update the library"):
        direct(tmp_path).read("r", 0)


def test_changed_value_is_refused(tmp_path):
    """Any changed byte of a value's file gives the same value or StateFormatError."""
    disk = Disk(str(tmp_path), "durable", 1.0)
    Values(disk).set("key", "the value", 600.0)
    path = Path(disk.value_path("key"))
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with suppress(StateFormatError):
            assert Values(disk).get("key") == "the value"


# What the system refuses.


def test_file_in_the_place_of_the_folder(tmp_path):
    """A folder that can't be one is a StoreError with the system's error as its cause."""
    (tmp_path / "file").write_text("mine")

    async def main():
        async with FileStore(tmp_path / "file") as store:
            for call in (
                store.set("k", "v"), store.get("k"), store.keys("*"), store.claim(a_claim()),
                store.read("r"), store.list_runs(ListQuery()), store.purge(),
            ):  # fmt: skip
                with pytest.raises(StoreError) as caught:
                    await call
                assert isinstance(caught.value.__cause__, OSError)

    asyncio.run(main())
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("broken", ["pwrite", "fdatasync"])
def test_failed_write_leaves_nothing_and_harms_no_other(tmp_path, monkeypatch, broken):
    """An append that fails is refused alone, leaves nothing, and can be done again."""

    async def main():
        async with FileStore(tmp_path) as store:
            fences = [(await store.claim(a_claim(run))).log.head.fence for run in "ab"]
            batch = [an_append(f, 2, "x" * 50, run_id=r) for f, r in zip(fences, "ab", strict=True)]
            before = run_file(tmp_path, "a").read_bytes()
            bad = run_file(tmp_path, "a").stat().st_ino
            real = getattr(os, broken)

            def failing(fd, *args):
                if os.fstat(fd).st_ino == bad:
                    if broken == "pwrite" and len(args[0]) > 20:
                        return real(fd, args[0][:20], *args[1:])
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(fd, *args)

            with monkeypatch.context() as patch:
                patch.setattr(os, broken, failing)
                refused, accepted = await store.append(batch)
            assert isinstance(refused, StoreError)
            assert "No space left" in str(refused)
            assert isinstance(refused.__cause__, OSError)
            assert accepted == 0
            assert run_file(tmp_path, "a").read_bytes() == before
            assert await store.append(batch) == [0, 0]
            assert (await store.read("a")).lines == ["begin", "x" * 50]

    asyncio.run(main())


def test_full_disk(tmp_path):
    """A file that may not grow any more keeps what was acknowledged, and the store goes on."""
    code = """
        async def main():
            store = FileStore(sys.argv[1])
            fence = (await store.claim(a_claim("r", "a"))).log.head.fence
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            first = 2
            while True:
                [outcome] = await store.append([Append("r", "a", fence, first, ("x" * 300,))])
                if outcome != 0:
                    break
                first += 1
            try:
                await store.set("k", "x" * 9999)
            except Exception as error:
                print(type(outcome).__name__, type(error).__name__, first)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            print(await store.append([Append("r", "a", fence, first, ("y",))]))
            print(len((await store.read("r")).lines) == first, await store.get("k"))
        asyncio.run(main())
    """
    printed, _ = child(code, tmp_path).communicate(timeout=20)

    assert re.fullmatch(r"StoreError StoreError \d+\n\[0\]\nTrue None\n", printed)
    assert list((tmp_path / "durable" / "tmp").iterdir()) == []


# Several processes.


@pytest.mark.crash
def test_killed_process_loses_nothing_acknowledged(tmp_path):
    """Whenever the owner is killed, every line it was told of is there, and the run goes on."""
    code = """
        async def main():
            store = FileStore(sys.argv[1])
            claimed = await store.claim(a_claim("r", sys.argv[2]))
            first = claimed.log.head.sequence + 1
            while True:
                await store.append([Append("r", sys.argv[2], claimed.log.head.fence, first,
                                           (str(first), str(first + 1)))])
                first += 2
                os.write(1, b"%d\\n" % (first - 1))
        asyncio.run(main())
    """
    for number in range(5):
        process = child(code, tmp_path, number)
        acknowledged = [process.stdout.readline() for _ in range(15 + 7 * number)]
        process.kill()
        rest = process.communicate()[0].splitlines()
        last = int((rest or acknowledged)[-1])
        lines = direct(tmp_path).read("r", 0).lines
        assert lines == ["begin", *map(str, range(2, len(lines) + 1))]
        assert last <= len(lines) <= last + 2
        assert len(lines) % 2
        age_files(tmp_path, "durable", 100)


def test_processes_share_a_folder(tmp_path):
    """Of processes that claim the same runs at once, exactly one gets each."""
    code = """
        async def main():
            async with FileStore(sys.argv[1]) as store:
                sys.stdin.readline()
                mine = []
                for n in range(25):
                    claimed = await store.claim(a_claim(f"r{n}", sys.argv[2]))
                    if claimed.granted:
                        mine.append(n)
                        await store.append([Append(f"r{n}", sys.argv[2], claimed.log.head.fence, 2,
                                                   (sys.argv[2],))])
                    await store.deposit(f"r{n}", "first", sys.argv[2])
                    done = False
                    while not done:
                        now = await store.get("counter") or "0"
                        done = await store.swap("counter", None if now == "0" else now,
                                                str(int(now) + 1))
                print(json.dumps(mine))
        asyncio.run(main())
    """
    processes = [child(code, tmp_path, name) for name in "abc"]
    claimed = [json.loads(process.communicate(timeout=30)[0]) for process in processes]

    assert sorted(chain(*claimed)) == list(range(25))
    assert Values(Disk(str(tmp_path), "durable", 1.0)).get("counter") == "75"
    for n in range(25):
        log = direct(tmp_path).read(f"r{n}", 0)
        assert len(log.lines) == 2
        assert log.inbox["first"] in "abc"


@pytest.mark.crash
def test_lock_of_a_stopped_process_is_not_waited_for_for_ever(tmp_path):
    """While another process holds the lock and stands still, StoreError comes after the bound."""
    code = """
        fd = os.open(sys.argv[1], os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        print("locked", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    """

    async def main():
        async with FileStore(tmp_path, lock_timeout=0.1) as store:
            fence = (await store.claim(a_claim())).log.head.fence
            process = child(code, run_file(tmp_path))
            try:
                process.stdout.readline()
                [outcome] = await store.append([an_append(fence, 2, "x")])
                assert isinstance(outcome, StoreError)
                assert "lock" in str(outcome)
                with pytest.raises(StoreError, match="lock"):
                    await store.read("r")
                assert [head.run_id for head in await store.list_runs(ListQuery())] == ["r"]
            finally:
                process.kill()
                process.communicate()
            assert await store.append([an_append(fence, 2, "x")]) == [0]

    asyncio.run(main())

"""A process that is certainly gone holds nothing; whatever can't be seen counts as alive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import durable._owners as owners
from durable._owners import is_dead, owner_id

PROGRAM = """
import asyncio, sys
from durable import durable, step

async def work(i: int) -> int:
    print(i, flush=True)
    if i == 2 and "die" in sys.argv:
        await asyncio.sleep(60)
    return i

@durable(store=sys.argv[1])
async def job() -> int:
    return sum([await step(f"s{i}", work, i) for i in range(4)])

print("result", asyncio.run(job()))
"""

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are seen in /proc")


def name_in_child(*, wait: bool) -> tuple[str, subprocess.Popen[str]]:
    """Return the owner's name that a child process gives itself, and the child."""
    code = "from durable._owners import owner_id; print(owner_id(), flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    name = child.stdout.readline().strip()
    if wait:
        child.kill()
        child.communicate()
    return name, child


def test_names_are_never_the_same() -> None:
    """Two passes of one process have different names."""
    assert owner_id() != owner_id()


def test_this_process_is_alive() -> None:
    """An owner of this process isn't dead."""
    assert not is_dead(owner_id())


@on_linux
def test_a_stopped_process_is_alive_and_a_killed_one_is_not() -> None:
    """A process that only stands still keeps its lease; killed, it is dead before it is reaped."""
    name, child = name_in_child(wait=False)
    child.send_signal(signal.SIGSTOP)
    assert not is_dead(name)

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_dead(name)
    child.communicate()
    assert is_dead(name)


@on_linux
def test_a_number_that_is_used_again_is_another_process() -> None:
    """The process of this number began at another time, so the owner is dead."""
    place, number, rest = owner_id().split(".")
    began, _, bits = rest.partition("-")

    assert is_dead(f"{place}.{number}.{int(began) - 1}-{bits}")


@on_linux
def test_a_process_that_proc_hides_counts_as_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ``/proc`` doesn't show another user's process, asking the kernel decides."""
    name, child = name_in_child(wait=False)
    monkeypatch.setattr(owners, "_began", lambda number: None)
    assert not is_dead(name)

    child.kill()
    child.communicate()
    assert is_dead(name)


@pytest.mark.parametrize("owner", ["", "first", "1-2", "a.b.c-d", "..-", "000000000000.1.1-ff"])
def test_what_cant_be_seen_counts_as_alive(owner: str) -> None:
    """Names of another machine, or of another form, say nothing."""
    assert not is_dead(owner)


@on_linux
@pytest.mark.parametrize("scheme", ["sqlite", "file"])
def test_a_killed_script_is_simply_run_again(scheme: str, tmp_path: Path) -> None:
    """Right after SIGKILL, well within the lease, the same script goes on where it stopped."""
    url = f"{scheme}://{'/' if scheme == 'sqlite' else ''}{tmp_path}/store"
    script = tmp_path / "job.py"
    script.write_text(PROGRAM)
    first = subprocess.Popen(
        [sys.executable, script, url, "die"], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    assert [first.stdout.readline() for _ in range(3)] == ["0\n", "1\n", "2\n"]
    first.kill()
    first.communicate()

    second = subprocess.run(
        [sys.executable, script, url], capture_output=True, text=True, timeout=50
    )

    assert second.stdout.split() == ["2", "3", "result", "6"], second.stderr

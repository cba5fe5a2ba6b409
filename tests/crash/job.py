"""A durable job that is there to be killed, and the nursery that its processes come from.

``python job.py FD`` serves requests on the socket ``FD``: for each it forks a process that runs
the job and tells on a pipe what it comes to. Forked processes have everything loaded already, so
a test can afford hundreds of them.

The pipe's lines: ``in`` (the function was entered), ``at POINT`` (the process stands still at the
point where it was asked to crash, and waits to be killed), ``busy``, ``lost``, ``writes N``,
``result JSON``, ``error TEXT``. The log of effects has the lines ``start KEY`` (a step's function
is called), ``stored KEY`` (the store has acknowledged its record) and ``acked KEY`` (the step has
returned).
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from durable import (
    Event,
    LeaseLostError,
    RunBusyError,
    Runs,
    StepCompleted,
    durable,
    open_store,
    recover,
    step,
)
from durable.store import Append, Claim, Claimed, Refusal

#: Seconds after which a process that nobody killed ends by itself.
LIFETIME = 50


@dataclass(frozen=True)
class Request:
    """What a process is to do, and where it is to crash.

    ``how``: ``run``, ``recover``, or ``submit``. ``patient``: wait while somebody else has the
    run. ``observed``: have an ``on_event``. ``crash``: ``write N before``, ``write N after``,
    ``write N during MICROSECONDS``, ``step KEY``, ``torn BYTES``, or nothing.
    """

    url: str
    run_id: str
    effects: str
    how: str = "run"
    crash: str = ""
    lease: float = 0.15
    durability: str = "sync"
    patient: bool = True
    observed: bool = False


@dataclass(frozen=True)
class Part:
    """What a step returns: the digest follows from its key and from what came before."""

    key: str
    digest: str
    filler: str


class Site:
    """Where a process leaves its traces, and where it finds out that it's time to die."""

    def __init__(self, request: Request, pipe: int) -> None:
        self.writes = 0
        self._crash = request.crash
        self._pipe = pipe
        self._effects = os.open(request.effects, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._started: set[str] = set()
        if self._crash.startswith("torn "):
            # The kernel ends the process when a file would grow beyond this: a write that
            # crosses the line is cut off there. Nothing of ours runs afterwards.
            size = int(self._crash.partition(" ")[2])
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)

    def say(self, line: str) -> None:
        """Tell the killer."""
        os.write(self._pipe, f"{line}\n".encode())

    def start(self, key: str) -> None:
        """Note that a step's function is called."""
        self._started.add(key)
        self._effect("start", key)

    def acked(self, key: str) -> None:
        """Note that a step has returned, if it was executed here."""
        if key in self._started:
            self._effect("acked", key)

    def stored(self, batch: Sequence[Append], outcomes: Sequence[int | Refusal]) -> None:
        """Note the steps whose records the store has acknowledged."""
        for member, outcome in zip(batch, outcomes, strict=True):
            for line in member.lines if isinstance(outcome, int) else ():
                record = json.loads(line[8:])
                if record["t"] == "s":
                    self._effect("stored", "/".join([*record.get("p", ()), record["k"]]))

    def _effect(self, what: str, key: str) -> None:
        os.write(self._effects, f"{what} {key}\n".encode())

    def is_due(self, point: str) -> bool:
        """Return whether this is where to crash; tell the killer if so."""
        if point != self._crash:
            return False
        self.say(f"at {point}")
        return True

    def before_write(self) -> str:
        """Crash here if it's due, or soon; return the write's name."""
        self.writes += 1
        name = f"write {self.writes}"
        if self.is_due(f"{name} before"):
            _stand_still()
        if self._crash.startswith(f"{name} during "):
            delay = int(self._crash.rpartition(" ")[2]) / 1e6
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return name

    def after_write(self, name: str) -> None:
        """Crash here if it's due."""
        if self.is_due(f"{name} after"):
            _stand_still()


def _stand_still() -> None:
    """Let nothing more happen in this thread."""
    threading.Event().wait()


#: The stores' classes by scheme: found here once, since it takes as long as half a run.
KINDS: dict[str, Any] = {
    url.partition(":")[0]: type(open_store(url)) for url in ("sqlite:///x", "file:///x")
}


def watched_store(url: str, site: Site) -> Any:
    """Open the store at ``url``; its writes pass by ``site``."""
    kind = KINDS[url.partition(":")[0]]

    class Watched(kind):  # type: ignore[misc, valid-type]
        async def claim(self, claim: Claim) -> Claimed | None:
            name = site.before_write()
            claimed: Claimed | None = await kind.claim(self, claim)
            site.after_write(name)
            return claimed

        async def append(self, batch: Sequence[Append]) -> Sequence[int | Refusal]:
            name = site.before_write()
            outcomes: Sequence[int | Refusal] = await kind.append(self, batch)
            site.stored(batch, outcomes)
            site.after_write(name)
            return outcomes

        def append_soon(self, member: Append, settle: Callable[[int | Refusal], None]) -> None:
            name = site.before_write()

            def settled(outcome: int | Refusal) -> None:
                site.stored((member,), (outcome,))
                site.after_write(name)
                settle(outcome)

            kind.append_soon(self, member, settled)

    return Watched.from_url(url)


class Job:
    """Thirty steps: one after the other, at once, by ``step.map``, in threads, in a child run."""

    def __init__(self, site: Site) -> None:
        self._site = site

    @durable(name="job")
    async def work(self, seed: int) -> dict[str, str]:
        """Return the digests of all steps but those of the child run."""
        self._site.say("in")
        parts = [Part("", str(seed), "")]
        for key in ("one", "two", "three"):
            parts.append(await self._do(key, self._slow, parts[-1]))
            parts.append(await self._do(f"{key}-and-a-half", self._blocking, parts[-1]))
        parts += await asyncio.gather(
            *(self._do(f"wide:{number}", self._slow, parts[-1]) for number in range(6))
        )
        item = functools.partial(self._item, parts[-1].digest)
        parts += await step.map("item", item, range(8), limit=3)
        for number in range(8):
            self._site.acked(f"item:{number}")
        parts.append(await step("child", self.child, parts[-1].digest))
        for key in ("four", "five", "six", "last"):
            parts.append(await self._do(key, self._slow, parts[-1]))
        return {part.key: part.digest for part in parts[1:]}

    @durable(name="child")
    async def child(self, before: str) -> Part:
        """Do four steps, two of them at once."""
        part = await self._do("alpha", self._slow, Part("", before, ""), "child/")
        left, right = await asyncio.gather(
            self._do("left", self._slow, part, "child/"),
            self._do("right", self._blocking, part, "child/"),
        )
        both = Part("", left.digest + right.digest, "")
        return await self._do("omega", self._blocking, both, "child/")

    async def _do(self, key: str, fn: Any, before: Part, path: str = "") -> Part:
        part: Part = await step(key, fn, path + key, before.digest)
        self._site.acked(path + key)
        return part

    async def _slow(self, key: str, before: str) -> Part:
        self._site.start(key)
        if self._site.is_due(f"step {key}"):
            await asyncio.sleep(LIFETIME)
        await asyncio.sleep(0.002)
        return _part(key, before)

    def _blocking(self, key: str, before: str) -> Part:
        self._site.start(key)
        if self._site.is_due(f"step {key}"):
            _stand_still()
        time.sleep(0.002)
        return _part(key, before)

    def _item(self, before: str, number: int) -> Part:
        return self._blocking(f"item:{number}", before)

    def note(self, event: Event) -> None:
        """Note the steps that have completed, sooner than the function itself can."""
        if isinstance(event, StepCompleted):
            self._site.acked("/".join([*event.path, event.step]))


def _part(key: str, before: str) -> Part:
    digest = hashlib.sha256(f"{before} {key}".encode()).hexdigest()[:16]
    return Part(key, digest, digest * 50)


async def perform(request: Request, site: Site) -> None:
    """Do what ``request`` asks for and say what came of it."""
    store = watched_store(request.url, site)
    job = Job(site)
    work = job.work.options(
        store=store,
        lease=request.lease,
        durability=request.durability,
        on_event=job.note if request.observed else None,
    )
    if request.how != "run":
        await work.submit(request.run_id, 7)
    while request.how == "recover" and await _unfinished(store, request.run_id):
        report = await recover(work)
        for error in report.failed.values():
            raise error
        await asyncio.sleep(0.01)
    while request.how != "submit":
        try:
            result = await work.run(request.run_id, 7)
        except RunBusyError as busy:
            if not request.patient:
                site.say("busy")
                break
            await asyncio.sleep((busy.remaining or 0.0) + 0.01)
        except LeaseLostError:
            site.say("lost")
            break
        else:
            site.say(f"result {json.dumps(result)}")
            break
    site.say(f"writes {site.writes}")
    await store.aclose()


async def _unfinished(store: Any, run_id: str) -> bool:
    return (await Runs(store).get(run_id)).status != "finished"


def _live(request: Request, pipe: int) -> None:
    """Be one process of the job, from the fork to its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.alarm(LIFETIME)
    site = Site(request, pipe)
    try:
        asyncio.run(perform(request, site))
    except BaseException:
        site.say(f"error {json.dumps(traceback.format_exc())}")
    finally:
        os._exit(0)


def serve(requests: socket.socket) -> None:
    """Fork a process for each request, until the other side hangs up."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, (*pipes,), _, _ = socket.recv_fds(requests, 4096, 1)
        if not message:
            return
        pid = os.fork()
        if not pid:
            requests.close()
            _live(Request(**json.loads(message)), pipes[0])
        os.close(pipes[0])
        requests.sendall(f"{pid}\n".encode())


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as end:
        serve(end)

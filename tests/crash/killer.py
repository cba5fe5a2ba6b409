"""Starts processes of the job, kills them where it hurts, and reads what they left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType

from crash.job import Request

_JOB = Path(__file__).with_name("job.py")


class Process:
    """A process of the job; its pipe ends when it does."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid = pid
        self._said: list[str] = []
        self._lines = os.fdopen(pipe, "r", encoding="utf-8")

    def lines(self) -> Iterator[str]:
        """Yield what it says from now on, until it is dead."""
        for line in self._lines:
            self._said.append(line.removesuffix("\n"))
            yield self._said[-1]

    def wait_for(self, beginning: str) -> str:
        """Return its next line that begins so."""
        for line in self.lines():
            if line.startswith(beginning):
                return line
        raise AssertionError(f"process {self.pid} ended without saying {beginning!r}")

    def kill(self) -> None:
        """Send SIGKILL, if it is still there."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def end(self, *, kill_after: float | None = None) -> End:
        """Return how it ended; killed where it stands still, or so long after it began."""
        timer: threading.Timer | None = None
        for line in self.lines():
            if line.startswith("at "):
                self.kill()
            elif line == "in" and kill_after is not None:
                timer = threading.Timer(kill_after, self.kill)
                timer.start()
        if timer is not None:
            timer.cancel()
            timer.join()
        self._lines.close()
        return End(tuple(self._said))


@dataclass(frozen=True)
class End:
    """What a process said until its end."""

    said: tuple[str, ...]

    @property
    def died(self) -> bool:
        """Whether it was cut off."""
        return not any(line.startswith(("writes ", "error ")) for line in self.said)

    @property
    def result(self) -> dict[str, str] | None:
        """The job's result, None if it didn't get that far."""
        found = self._find("result ")
        result: dict[str, str] | None = None if found is None else json.loads(found)
        return result

    @property
    def writes(self) -> int:
        """How often it wrote to the store."""
        return int(self._find("writes ") or 0)

    def _find(self, beginning: str) -> str | None:
        return next(
            (line.removeprefix(beginning) for line in self.said if line.startswith(beginning)), None
        )


class Nursery:
    """Where processes of the job come from: one that has loaded everything, and forks."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._requests = ours
        self._answers = ours.makefile("r")
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", str(_JOB), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._answers.close()
        self._requests.close()
        self._process.wait(timeout=10)

    def start(self, request: Request) -> Process:
        """Start a process."""
        reading, writing = os.pipe()
        try:
            with self._lock:
                message = json.dumps(asdict(request)).encode()
                socket.send_fds(self._requests, [message], [writing])
                pid = int(self._answers.readline())
        finally:
            os.close(writing)
        return Process(pid, reading)


@dataclass(frozen=True)
class Kill:
    """How a process is started and killed: at a point of its own, or after so many seconds."""

    crash: str = ""
    after: float | None = None
    how: str = "run"
    observed: bool = False


@dataclass
class Story:
    """One run from its beginning to its end, through every death on the way."""

    request: Request
    kills: list[Kill] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)

    @property
    def deaths(self) -> int:
        """How many processes died."""
        return sum(end.died for end in self.ends)

    @property
    def result(self) -> dict[str, str] | None:
        """What the last process returned."""
        return self.ends[-1].result

    def violations(self) -> list[str]:
        """Return the steps that were started although they were on record, if there are any."""
        done: set[str] = set()
        found: list[str] = []
        for line in Path(self.request.effects).read_text().splitlines():
            what, key = line.split(" ")
            if what == "start" and key in done:
                found.append(key)
            elif what in ("stored", "acked"):
                done.add(key)
        return found

    def starts(self, key: str) -> int:
        """Return how often the step was started."""
        return Path(self.request.effects).read_text().splitlines().count(f"start {key}")

    def describe(self) -> str:
        """Return what happened, for whoever has to find out why."""
        lines = [f"run {self.request.run_id!r} on {self.request.url}"]
        for number, end in enumerate(self.ends):
            kill = self.kills[number] if number < len(self.kills) else "undisturbed"
            lines.append(f"  {kill}: {'; '.join(end.said) or 'said nothing'}")
        log = Path(self.request.effects).read_text().splitlines()
        return "\n".join([*lines, "  effects: " + ", ".join(log)])


def live_through(nursery: Nursery, request: Request, kills: Iterable[Kill]) -> Story:
    """Run the job; kill its processes one after the other as told, then let it finish."""
    story = Story(request)
    for kill in kills:
        wanted = replace(request, crash=kill.crash, how=kill.how, observed=kill.observed)
        story.kills.append(kill)
        story.ends.append(nursery.start(wanted).end(kill_after=kill.after))
        if not story.ends[-1].died:
            return story
    story.ends.append(nursery.start(request).end())
    return story

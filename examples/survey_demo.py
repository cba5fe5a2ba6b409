"""The demo's story: start the survey, have it killed twice, and tell what was done how often."""

from __future__ import annotations

import random
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from survey_effects import Effect, read_effects

_TICK = 0.005


@dataclass
class Process:
    """One process of the survey: when it was started, and what the log says of it."""

    started: float
    pid: int
    end: str
    effects: list[Effect]

    def count(self, what: str) -> int:
        """Return how many files it has a line ``what`` for."""
        return sum(effect.what == what for effect in self.effects)

    @property
    def first_file(self) -> float | None:
        """Seconds from its start until the first file was done."""
        return next(
            (each.time - self.started for each in self.effects if each.what == "measured"), None
        )

    @property
    def waited(self) -> float:
        """Seconds of it spent waiting for the last one's lease to lapse."""
        return sum(float(each.subject) for each in self.effects if each.what == "waited")


def run_demo(
    script: Path, output: Path, store: str, limit: int | None, total: int, seed: int | None
) -> int:
    """Run ``script`` three times and kill it twice; return the exit status."""
    seed = secrets.randbelow(10_000) if seed is None else seed
    chance = random.Random(seed)
    log = output / "effects.log"
    log.unlink(missing_ok=True)
    command = [sys.executable, str(script), "--output", str(output), "--store", store]
    command += ["--run", f"demo-{secrets.token_hex(4)}"]
    command += [] if limit is None else ["--limit", str(limit)]
    first = chance.randint(total // 6, total // 3)
    second = chance.randint(total // 2, total * 3 // 4)
    print(f"A survey of {total:,} files, one durable step each. It will be killed twice.")
    print(f"(Output: {output}. The same kills once more: --seed {seed})")

    _headline("1. Start it. It will kill itself somewhere on the way.")
    started, child = _start([*command, "--die-after", str(max(first, 1))])
    processes = [_ended(started, child, log, "killed itself")]
    if child.returncode != -signal.SIGKILL:
        return _unexpected(child)

    _headline("2. Start it again, and kill it from here at a random moment.")
    started, child = _start(command)
    try:
        _wait_for(log, second, child)
        time.sleep(chance.uniform(0.0, 0.05))
    finally:
        child.kill()
    processes.append(_ended(started, child, log, "killed from outside"))
    if child.returncode != -signal.SIGKILL:
        return _unexpected(child)

    _headline("3. Start it once more.")
    started, child = _start(command)
    processes.append(_ended(started, child, log, "finished"))
    if child.returncode != 0:
        return _unexpected(child)
    return _tell(processes, log, total)


def _headline(text: str) -> None:
    print(f"\n{text}", flush=True)


def _start(command: list[str]) -> tuple[float, subprocess.Popen[bytes]]:
    return time.time(), subprocess.Popen(command)


def _wait_for(log: Path, count: int, child: subprocess.Popen[bytes]) -> None:
    """Return when the log has ``count`` lines of files done, or the child has ended."""
    with log.open("rb") as lines:
        while child.poll() is None:
            count -= lines.read().count(b" measured ")
            if count <= 0:
                return
            time.sleep(_TICK)


def _ended(started: float, child: subprocess.Popen[bytes], log: Path, end: str) -> Process:
    """Wait for the child and return what is known of it."""
    try:
        status = child.wait()
    except KeyboardInterrupt:
        child.wait()
        raise SystemExit(130) from None
    effects = [effect for effect in read_effects(log) if effect.pid == child.pid]
    process = Process(started, child.pid, end, effects)
    if status == -signal.SIGKILL:
        if sys.stderr.isatty():
            # It died while it drew its progress bar, with the cursor hidden.
            print("\x1b[?25h", file=sys.stderr, flush=True)
        print(f"SIGKILL: process {child.pid} is dead, after {process.count('measured'):,} files.")
    return process


def _unexpected(child: subprocess.Popen[bytes]) -> int:
    print(f"\nProcess {child.pid} ended with status {child.returncode}; that wasn't the plan.")
    return 1


def _tell(processes: list[Process], log: Path, total: int) -> int:
    """Say in plain words what the log of effects shows; return the exit status."""
    recorded: set[str] = set()
    measured: set[str] = set()
    again: list[str] = []
    in_flight: list[str] = []
    for effect in read_effects(log):
        if effect.what == "recorded":
            recorded.add(effect.subject)
        elif effect.what == "measured":
            if effect.subject in recorded:
                again.append(effect.subject)
            elif effect.subject in measured:
                in_flight.append(effect.subject)
            measured.add(effect.subject)

    _headline(f"What really happened, counted from {log}, a file outside of the store:\n")
    print(f"  {'process':<10}{'files done':>12}{'acknowledged':>15}   how it ended")
    for process in processes:
        print(
            f"  {process.pid:<10}{process.count('measured'):>12,}{process.count('recorded'):>15,}"
            f"   {process.end}"
        )
    killed = processes[:-1]
    kept = sum(process.count("recorded") for process in killed)
    print(f"\n  Files:                                          {total:>6,}")
    print(f"  Files done at least once:                       {len(measured):>6,}")
    print(f"  Acknowledged as steps before a kill:            {kept:>6,}")
    print(f"  Of these, done again afterwards:                {len(again):>6,}")
    print(f"  In flight at a kill, and so done a second time: {len(in_flight):>6,}")
    print(
        "\n  A step that had returned was never executed again. One that was being executed\n"
        "  at the kill may be: its work was done, but nobody had written that down yet."
    )
    for number, process in enumerate(processes[1:], 2):
        if process.first_file is not None:
            print(
                f"\n  Start {number}: {process.first_file:.1f} s until the first new file was done."
            )
            if process.waited:
                print(
                    f"  Of these, {process.waited:.1f} s went by until the dead process's lease "
                    "had lapsed."
                )
    if again or len(measured) != total:
        print("\n  This is not what was promised.")
        return 1
    return 0

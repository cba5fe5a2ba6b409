"""The log of effects: what was really done, on record outside of the store.

It is the witness of the demo, so it knows nothing of steps and records: each line is one write
to a file opened for appending, and stays there whatever happens to the process afterwards.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Effect:
    """One line: at ``time`` the process ``pid`` did ``what`` with ``subject``.

    ``measured``: the work on this file is done. ``recorded``: the store has acknowledged the
    step of this file. ``waited``: so many seconds until a dead process's lease lapsed.
    """

    time: float
    pid: int
    what: str
    subject: str


class EffectsLog:
    """Appends effects to a file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, what: str, subject: str) -> None:
        """Append one line with one call of the system."""
        line = f"{time.time():.6f} {os.getpid()} {what} {subject}\n"
        os.write(self._file, line.encode("utf-8", "surrogateescape"))


def read_effects(path: Path) -> list[Effect]:
    """Return the lines that are in the file now."""
    if not path.exists():
        return []
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    effects: list[Effect] = []
    for line in text.splitlines():
        moment, pid, what, subject = line.split(" ", 3)
        effects.append(Effect(float(moment), int(pid), what, subject))
    return effects

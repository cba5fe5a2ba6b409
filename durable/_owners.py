"""Who holds a run: names that tell, on the same machine, whether their process still lives.

A process that was killed can't give its lease back. Others wait until it lapses, unless they can
see for themselves that the process is gone: then there is nobody to wait for.
"""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import socket
from pathlib import Path

_PROC = Path("/proc")


def owner_id() -> str:
    """Return a new name for one pass of one run: its process, and 64 random bits."""
    return f"{_process(os.getpid())}-{secrets.token_hex(8)}"


def random_part(owner: str) -> str:
    """Return the random bits of an owner's name."""
    return owner.rpartition("-")[2]


def is_dead(owner: str) -> bool:
    """Return whether ``owner``'s process certainly is gone.

    False whenever this can't be seen from here: another machine, another container, a name of
    another form, or a system without ``/proc``.
    """
    place, _, rest = owner.partition(".")
    number, _, rest = rest.partition(".")
    began = rest.partition("-")[0]
    if not place or place != _place() or not number.isdecimal() or not began.isdecimal():
        return False
    found = _began(int(number))
    return found != began if found is not None else not _exists(int(number))


@functools.cache
def _process(number: int) -> str:
    return f"{_place()}.{number}.{_began(number)}"


@functools.cache
def _place() -> str:
    """Return what processes share whose numbers mean the same; '' where that isn't known."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text()
        numbers = (_PROC / "self/ns/pid").readlink()
    except OSError:
        return ""
    facts = f"{socket.gethostname()} {boot} {numbers}"
    return hashlib.blake2b(facts.encode(), digest_size=6).hexdigest()


def _began(number: int) -> str | None:
    """Return when the process ``number`` began, in the kernel's ticks; None if that isn't shown.

    Numbers are used again, the two together are not. A process that has ended and that its
    parent hasn't asked about yet (``''``) is gone as well.
    """
    try:
        # The name in brackets may hold anything; what follows it is fixed (proc(5)).
        fields = (_PROC / str(number) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]


def _exists(number: int) -> bool:
    """Return whether there is such a process; ``/proc`` may hide those of other users."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

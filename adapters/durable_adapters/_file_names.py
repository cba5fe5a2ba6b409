"""Keys as file names: any key is safe as a name, and comes back as it was.

Names consist of lower-case letters, digits, ``_``, ``-`` and ``%``, so they are the same on file
systems that ignore letter case or normalise Unicode. A key whose name would be too long is cut
and continued by its SHA-256 behind a ``~``, which no other name contains.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import unquote

#: Characters of a name at most, its ending apart; some file systems stop at 143.
_LONGEST = 124
_KEPT = 56

_UNSAFE = re.compile(rb"[^a-z0-9_-]")


def encode_name(key: str) -> str:
    """Return the file name of ``key``, without an ending; different keys have different names."""
    name = _UNSAFE.sub(lambda found: b"%%%02x" % found[0][0], key.encode()).decode()
    if len(name) <= _LONGEST:
        # A lone % stands for the empty key: no escape is that short.
        return name or "%"
    return f"{name[:_KEPT]}~{hashlib.sha256(key.encode()).hexdigest()}"


def decode_name(name: str) -> str | None:
    """Return the key whose name is ``name``; None if the name was cut, or is nobody's."""
    if name == "%":
        return ""
    try:
        key = unquote(name, errors="strict")
    except UnicodeDecodeError:
        return None
    return key if encode_name(key) == name else None

"""What every store asks of keys, values and expiry, and what ``*`` means in a pattern."""

from __future__ import annotations

import re
from collections.abc import Callable


def check_text(text: str, what: str) -> str:
    """Return ``text`` if any store can keep it; raise ``ValueError`` that names ``what`` if not."""
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str, got {type(text).__name__}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{what} holds a lone surrogate at position {error.start}, which is no valid "
                "Unicode; decode the bytes that it came from first"
            ) from None
    return text


def check_key(key: str) -> str:
    """Return ``key`` if it can be a key; raise ``TypeError`` or ``ValueError`` if not."""
    if not check_text(key, "a key"):
        raise ValueError("a key must not be empty")
    return key


def check_ttl(ttl: float | None) -> float | None:
    """Return ``ttl`` if it is None or positive; raise ``ValueError`` if not."""
    if ttl is not None and not 0 < ttl < float("inf"):
        raise ValueError(f"ttl must be a positive number of seconds or None, got {ttl!r}")
    return ttl


def key_matcher(pattern: str) -> Callable[[str], bool]:
    """Return a predicate for keys in which ``*`` alone is special."""
    parts = (re.escape(part) for part in check_text(pattern, "a pattern").split("*"))
    compiled = re.compile(".*".join(parts), re.DOTALL)
    return lambda key: compiled.fullmatch(key) is not None

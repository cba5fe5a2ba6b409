"""What the adapters share: names that are safe to build on, and text checks."""

from __future__ import annotations

import re

_PREFIX = re.compile(r"[a-z_][a-z0-9_]{0,30}", re.ASCII)


def check_prefix(prefix: str) -> str:
    """Return ``prefix`` if it may name tables, collections, keys or folders.

    Raises ``ValueError`` for anything but a lower-case letter or underscore followed by up to 30
    lower-case letters, digits and underscores; ``TypeError`` for what isn't a str.
    """
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a str, got {type(prefix).__name__}")
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(
            f"prefix {prefix!r} can't be used in names: take a lower-case letter or underscore, "
            "then up to 30 lower-case letters, digits and underscores"
        )
    return prefix


def check_options(store: str, options: dict[str, object], known: tuple[str, ...]) -> None:
    """Raise ``TypeError`` if ``options`` has a name that isn't in ``known``."""
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(
            f"{store} has no option {unknown[0]!r}; it takes: {', '.join(known) or 'none'}"
        )

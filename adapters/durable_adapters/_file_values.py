"""The five methods and ``swap`` on files: one small JSON file per key."""

# Made for each write or each file: a Path would cost as much as the calls themselves.
# ruff: noqa: PTH104, PTH108, PTH123, PTH208

from __future__ import annotations

import os
from collections.abc import Iterator
from zlib import crc32

import msgspec

from durable._errors import StateFormatError
from durable._keys import key_matcher
from durable_adapters._file_disk import Disk, sync_folder
from durable_adapters._file_names import decode_name, encode_name

FORMAT = 1


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file's content. ``checksum`` is the CRC-32 of everything else."""

    format: int
    key: str
    expires_at: float | None
    value: str
    checksum: int

    def checked(self) -> int:
        """Return what the checksum must be."""
        return crc32(self.value.encode(), crc32(f"{self.key}\n{self.expires_at!r}\n".encode()))


_decode = msgspec.json.Decoder(Value).decode


def format_value(key: str, value: str, expires_at: float | None) -> bytes:
    """Return a value file's content."""
    draft = Value(FORMAT, key, expires_at, value, 0)
    return msgspec.json.encode(msgspec.structs.replace(draft, checksum=draft.checked())) + b"\n"


def parse_value(data: bytes, path: str) -> Value:
    """Return a value file's content; raise ``StateFormatError`` that names the file."""
    try:
        found = _decode(data)
    except (ValueError, msgspec.DecodeError) as error:
        raise StateFormatError(path, f"it isn't the file of a value ({error})") from error
    if found.format != FORMAT:
        reason = f"it has format {found.format}, this version reads {FORMAT}: update the library"
        raise StateFormatError(path, reason)
    if found.checksum != found.checked():
        raise StateFormatError(path, "its checksum doesn't fit")
    return found


class Values:
    """A store's values."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def get(self, key: str) -> str | None:
        """Return the unexpired value under ``key``, or None."""
        found = self._live(encode_name(key))
        if found is not None and found.key != key:
            path = self._disk.value_path(encode_name(key))
            raise StateFormatError(path, f"it is the file of another key, {found.key!r}")
        return None if found is None else found.value

    def set(self, key: str, value: str, ttl: float | None) -> None:
        """Put ``value`` under ``key``."""
        with self._disk.value_lock(encode_name(key)):
            self._write(key, value, ttl)

    def delete(self, key: str) -> bool:
        """Remove ``key``; return whether it was there."""
        name = encode_name(key)
        if not os.path.lexists(self._disk.value_path(name)):
            return False
        with self._disk.value_lock(name):
            present = self._live(name) is not None
            return self._remove(name) and present

    def swap(self, key: str, expected: str | None, value: str, ttl: float | None) -> bool:
        """Put ``value`` under ``key`` if ``expected`` is there; return whether it was."""
        with self._disk.value_lock(encode_name(key)):
            if self.get(key) != expected:
                return False
            self._write(key, value, ttl)
            return True

    def keys(self, pattern: str) -> list[str]:
        """Return the unexpired keys that match ``pattern``, sorted.

        The key of a damaged file is one of them, so that nobody takes it for free.
        """
        fits = key_matcher(pattern)
        found: list[str] = []
        for name in self.names():
            key = decode_name(name)
            if key is not None and not fits(key):
                continue
            try:
                live = self._live(name)
                key = None if live is None else live.key
            except StateFormatError:
                if key is None:
                    raise
            if key is not None and fits(key):
                found.append(key)
        return sorted(found)

    def names(self) -> Iterator[str]:
        """Give the names of all value files, in no order."""
        try:
            entries = os.listdir(self._disk.values)
        except FileNotFoundError:
            return
        for entry in entries:
            if entry.endswith(".json"):
                yield entry.removesuffix(".json")

    def remove_expired(self, name: str) -> bool:
        """Remove the value called ``name`` if it has expired; return whether it has."""
        if not self._is_expired(name):
            return False
        with self._disk.value_lock(name):
            return self._is_expired(name) and self._remove(name)

    def _is_expired(self, name: str) -> bool:
        return self._load(name) is not None and self._live(name) is None

    def _live(self, name: str) -> Value | None:
        found = self._load(name)
        if found is None or found.expires_at is None:
            return found
        return None if found.expires_at <= self._disk.now() else found

    def _load(self, name: str) -> Value | None:
        path = self._disk.value_path(name)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return None
        return parse_value(data, path)

    def _write(self, key: str, value: str, ttl: float | None) -> None:
        expires_at = None if ttl is None else self._disk.now() + ttl
        with self._disk.new_file(format_value(key, value, expires_at)) as (fd, path):
            os.rename(path, self._disk.value_path(encode_name(key)))
        os.close(fd)
        sync_folder(self._disk.values)

    def _remove(self, name: str) -> bool:
        try:
            os.unlink(self._disk.value_path(name))
        except FileNotFoundError:
            return False
        sync_folder(self._disk.values)
        return True

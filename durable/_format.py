"""Records as checked lines of text.

A line is eight hexadecimal digits of CRC-32 and the record's JSON. The checksum is seeded with
the run's id and the line's position behind its ``Begin``, so a line that was changed, moved or
taken from another run is told apart from one that belongs.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import msgspec

from durable._errors import StateFormatError
from durable._records import Begin, Record, RunRecords

#: The newest format this version reads, and the one it writes.
FORMAT = 1

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Record).decode


def line_seed(run_id: str) -> int:
    """Return what the checksums of a run's lines start from."""
    return zlib.crc32(run_id.encode())


def format_line(record: Record, seed: int, position: int) -> str:
    """Return ``record`` as the line at ``position`` (a ``Begin`` has position 1)."""
    data = _encode(record)
    return f"{zlib.crc32(data, seed ^ position):08x}{data.decode()}"


def format_lines(run_id: str, records: Sequence[Record]) -> tuple[str, ...]:
    """Return the lines of a log that begins with ``records``."""
    seed = line_seed(run_id)
    return tuple(format_line(record, seed, at) for at, record in enumerate(records, 1))


def fold_lines(run_id: str, lines: Sequence[str], into: RunRecords | None = None) -> RunRecords:
    """Fold ``lines``, the log of ``run_id`` or its next page, and return the result.

    Raises ``StateFormatError`` that names the line for anything but a faithful log.
    """
    records = RunRecords() if into is None else into
    seed, apply = line_seed(run_id), records.apply
    crc32, decode = zlib.crc32, _decode
    for position, line in enumerate(lines, records.sequence + 1):
        try:
            data = line.encode()
            if int(data[:8], 16) != crc32(body := data[8:], seed ^ position):
                raise ValueError("its checksum doesn't fit: the line was changed or moved")
            apply(decode(body))
        except (ValueError, msgspec.DecodeError) as error:
            raise _line_error(run_id, position, error) from None
    if into is None and lines:
        _check_begin(run_id, records.begin)
    return records


def _line_error(run_id: str, position: int, error: Exception) -> StateFormatError:
    known = not isinstance(error, msgspec.DecodeError)
    return StateFormatError(
        f"record {position} of run {run_id!r}",
        "its checksum doesn't fit: the line was changed or moved"
        if known
        else "it isn't a record that this version knows",
    )


def _check_begin(run_id: str, begin: Begin | None) -> None:
    if begin is None:
        raise StateFormatError(f"record 1 of run {run_id!r}", "the log doesn't begin with a Begin")
    if begin.format > FORMAT:
        raise StateFormatError(
            f"record 1 of run {run_id!r}",
            f"it has format {begin.format}, this version reads up to {FORMAT}: update the library",
        )

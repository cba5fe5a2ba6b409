"""Records as checked lines of text.

A line is eight hexadecimal digits of CRC-32 and the record's JSON. The checksum is seeded with
the run's id and the line's position behind its ``Begin``, so a line that was changed, moved or
taken from another run is told apart from one that belongs.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence

import msgspec

from durable._errors import StateFormatError
from durable._records import Record, RunRecords

#: The newest format this version reads, and the one it writes.
FORMAT = 1

_encode = msgspec.json.Encoder().encode


@functools.cache
def _decoder() -> msgspec.json.Decoder[Record]:
    # Made at its first use: it is a tenth of what importing the library costs.
    return msgspec.json.Decoder(Record)


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

    Raises ``StateFormatError`` that names the record for anything but a faithful log.
    """
    records = RunRecords() if into is None else into
    start = records.sequence + 1
    bodies = [line[8:].encode(errors="surrogatepass") for line in lines]
    _check_sums(run_id, lines, bodies, start)
    if start == 1 and bodies:
        _check_begin(run_id, bodies[0])
    try:
        records.apply(map(_decoder().decode, bodies))
    except msgspec.DecodeError:
        where = f"record {records.sequence + 1} of run {run_id!r}"
        raise StateFormatError(where, "it isn't a record that this version knows") from None
    return records


def _check_sums(run_id: str, lines: Sequence[str], bodies: list[bytes], start: int) -> None:
    seed, crc32 = line_seed(run_id), zlib.crc32
    # Twice as fast as an f-string, and half of what reading a long log consists of.
    expected = [
        "%08x" % crc32(body, seed ^ position)  # noqa: UP031
        for position, body in enumerate(bodies, start)
    ]
    found = [line[:8] for line in lines]
    if found == expected:
        return
    pairs = enumerate(zip(found, expected, strict=True))
    wrong = next(at for at, (is_, should_be) in pairs if is_ != should_be)
    raise StateFormatError(
        f"record {start + wrong} of run {run_id!r}",
        "its checksum doesn't fit: the line was changed or moved",
    )


class _Opening(msgspec.Struct):
    """What a log's first record says of the log, whatever its format."""

    t: str = ""
    f: int = FORMAT


def _check_begin(run_id: str, body: bytes) -> None:
    where = f"record 1 of run {run_id!r}"
    try:
        opening = msgspec.json.decode(body, type=_Opening)
    except msgspec.DecodeError:
        raise StateFormatError(where, "it isn't a record that this version knows") from None
    if opening.t != "b":
        raise StateFormatError(where, "the log doesn't begin with a Begin")
    if opening.f > FORMAT:
        raise StateFormatError(
            where,
            f"it has format {opening.f}, this version reads up to {FORMAT}: update the library",
        )

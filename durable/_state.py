"""``ResumeState``: what is recorded of a run, in the user's hands, and its text form."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from durable._codec import UNKNOWN, TypeCodec
from durable._errors import NotSerializableError, StateFormatError
from durable._format import FORMAT
from durable._records import Scope, StepRecord, Variable, forget

_CHECKSUM = 16
_OPENING = '{"checksum":"'


class ResumeState(msgspec.Struct, frozen=True):
    """What is recorded of a run: enough to go on from it, here or anywhere.

    ``steps`` maps each completed step's key to its record; ``children`` does the same for child
    runs, by the key they were called under. ``metadata`` is the user's own. ``version`` is that
    of the last save through ``StatePersistence``, 0 before the first. ``function_version`` is
    the version of the function that recorded it. A state is a value: the methods return new ones.
    """

    steps: Mapping[str, StepRecord] = {}
    metadata: Mapping[str, Any] = {}
    version: int = 0
    function_version: int = 1
    function: str = ""
    variables: Mapping[str, msgspec.Raw] = {}
    children: Mapping[str, ResumeState] = {}

    def without(self, key: str) -> ResumeState:
        """Return the state without the step ``key``: it will run again.

        The steps that its function asked for go with it, and so does its child run. Raises
        ``KeyError`` if no such step is recorded.
        """
        if key not in self.steps and key not in self.children:
            raise KeyError(key)
        left = Scope()
        left.steps, left.children = dict(self.steps), dict.fromkeys(self.children, left)
        forget(left, key)
        children = {name: child for name, child in self.children.items() if name in left.children}
        return msgspec.structs.replace(self, steps=left.steps, children=children)

    def with_value(self, key: str, value: object) -> ResumeState:
        """Return the state with ``value`` as the stored result of the step ``key``.

        Nothing is said of the arguments it was computed from, so no drift is seen. Raises
        ``NotSerializableError`` if JSON can't carry the value.
        """
        where = f"step {key!r}"
        try:
            stored, _ = TypeCodec(UNKNOWN).store(value, where)
        except NotSerializableError:
            stored, _ = TypeCodec(type(value)).store(value, where)
        old = self.steps.get(key)
        record = StepRecord(
            key=key,
            stored=msgspec.Raw(stored),
            version=self.function_version,
            path=old.path if old else (),
        )
        return msgspec.structs.replace(self, steps={**self.steps, key: record})


def is_step_complete(state: ResumeState, key: str) -> bool:
    """Return whether ``state`` holds a result, or a final failure, for the step ``key``."""
    return key in state.steps


def state_of(scope: Scope, function: str, function_version: int) -> ResumeState:
    """Return a copy of what ``scope`` holds."""
    return ResumeState(
        steps=dict(scope.steps),
        function=function,
        function_version=function_version,
        variables=dict(scope.variables),
        children={
            key: state_of(child, "", function_version)
            for key, child in scope.children.items()
            if child.steps or child.variables or child.children
        },
    )


def state_records(
    state: ResumeState, path: tuple[str, ...] = ()
) -> Iterator[StepRecord | Variable]:
    """Yield the records that recorded ``state``, those of its child runs included."""
    for name, stored in state.variables.items():
        yield Variable(name=name, stored=stored, path=path)
    for record in state.steps.values():
        yield record if record.path == path else msgspec.structs.replace(record, path=path)
    for key, child in state.children.items():
        yield from state_records(child, (*path, key))


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    """The text form, the checksum in front of it apart."""

    format: int
    function: str
    function_version: int
    version: int
    metadata: dict[str, Any]
    steps: list[StepRecord]
    variables: list[Variable]


def stringify_state(state: ResumeState, /, **metadata: Any) -> str:
    """Return ``state`` as text: stable JSON with a format number and a checksum.

    ``metadata`` is added to the state's own. Equal states give equal text. Raises
    ``NotSerializableError`` if JSON can't carry the metadata.
    """
    merged = {**state.metadata, **metadata}
    TypeCodec(dict[str, Any]).store(merged, "metadata")
    records = sorted(state_records(state), key=_place)
    document = _Document(
        format=FORMAT,
        function=state.function,
        function_version=state.function_version,
        version=state.version,
        metadata=merged,
        steps=[record for record in records if isinstance(record, StepRecord)],
        variables=[record for record in records if isinstance(record, Variable)],
    )
    body = msgspec.json.encode(document, order="deterministic")
    return f'{_OPENING}{_checksum(body)}",{body[1:].decode()}'


def parse_state(text: str, /) -> ResumeState:
    """Return the state that ``stringify_state`` made ``text`` from.

    Raises ``StateFormatError`` that names the place if the text was cut, changed, isn't a state
    at all, or has a later format than this version reads.
    """
    body = _checked_body(text)
    try:
        document = msgspec.json.decode(body, type=_Document)
    except msgspec.DecodeError as error:
        raise StateFormatError("state text", _reason(body, error)) from None
    if not 1 <= document.format <= FORMAT:
        raise StateFormatError("state text", _foreign(document.format))
    root = Scope()
    for record in document.steps:
        root.at(record.path).steps[record.key] = record
    for variable in document.variables:
        root.at(variable.path).variables[variable.name] = variable.stored
    state = state_of(root, document.function, document.function_version)
    return msgspec.structs.replace(state, version=document.version, metadata=document.metadata)


def _checked_body(text: str) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"parse_state takes a str, got {type(text).__name__}")
    start = len(_OPENING)
    end = start + _CHECKSUM
    if not text.startswith(_OPENING) or text[end : end + 2] != '",':
        raise StateFormatError("state text, character 0", "it doesn't begin as a state does")
    body = b"{" + text[end + 2 :].encode(errors="surrogatepass")
    if text[start:end] != _checksum(body):
        raise StateFormatError(
            f"state text, characters {start} to {len(text)}",
            "its checksum doesn't fit: the text was cut or changed",
        )
    return body


def _reason(body: bytes, error: Exception) -> str:
    try:
        found = msgspec.json.decode(body)["format"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return str(error)
    return _foreign(found) if isinstance(found, int) and found > FORMAT else str(error)


def _foreign(found: int) -> str:
    return f"it has format {found}, this version reads 1 to {FORMAT}: update the library"


def _checksum(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=_CHECKSUM // 2).hexdigest()


def _place(record: StepRecord | Variable) -> tuple[tuple[str, ...], str]:
    return record.path, record.key if isinstance(record, StepRecord) else record.name

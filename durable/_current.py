"""``current_run()``: the run as the code inside it sees it, and its durable variables."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from durable._codec import TypeCodec
from durable._errors import NoActiveRunError
from durable._events import VariableSet
from durable._options import check_id
from durable._records import Variable
from durable._run import Frame, current_frame

VARIABLE = "a variable's name"


class CurrentRun:
    """The run that the code is part of.

    ``id``: its run id. ``attempt``: how often the function was begun, this time included.
    ``fence``: a number that grows with each owner, for conditional writes of the outside world.
    """

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        run = frame.call.run
        self.id: str = run.id
        self.attempt: int = run.attempt
        self.fence: int = run.fence

    def __repr__(self) -> str:
        return f"CurrentRun(id={self.id!r}, attempt={self.attempt})"

    @property
    def replaying(self) -> bool:
        """Whether this pass has recorded steps and hasn't executed a new one yet."""
        return self._frame.call.run.replaying

    def idempotency_key(self, step_key: str | None = None) -> str:
        """Return a key for the outside world: the same over retries, resumes and processes.

        ``step_key`` names the step; inside a step it defaults to that step. A run that begins
        anew under the same id has other keys. Raises ``ValueError`` outside of a step without
        ``step_key``.
        """
        call = self._frame.call
        key = step_key if step_key is not None else self._frame.step
        if key is None:
            raise ValueError("idempotency_key() outside of a step needs the step's key")
        parts = [self.id, call.run.begin.incarnation, *call.scope.path, check_id(key, "a step key")]
        return hashlib.blake2b(msgspec.json.encode(parts), digest_size=16).hexdigest()

    def get(self, name: str, default: Any = None) -> Any:
        """Return the durable variable ``name`` as plain JSON types, or ``default``."""
        call = self._frame.call
        stored = call.scope.variables.get(check_id(name, VARIABLE))
        if stored is None:
            return default
        return msgspec.json.decode(call.run.unpack(stored, f"variable {name!r}"))

    async def set(self, name: str, value: object) -> None:
        """Set the durable variable ``name``; it follows the run over crashes.

        Raises ``NotSerializableError`` if plain JSON can't carry ``value``.
        """
        call = self._frame.call
        where = f"variable {check_id(name, VARIABLE)!r}"
        data, _ = TypeCodec().store(value, where)
        self._frame.check_open(name)
        record = Variable(name=name, stored=call.run.pack(data), path=call.scope.path)

        def settled(written: bool) -> None:
            # It's set when it is on record, even if the caller has gone by then.
            if written:
                call.scope.variables[name] = record.stored

        await call.run.writer.write(record, settled)
        if call.run.observed:
            event = VariableSet(
                run_id=self.id, name=name, stored=record.stored, path=call.scope.path
            )
            await call.run.publish(event)


def current_run() -> CurrentRun:
    """Return the run that the calling code is part of.

    Raises ``NoActiveRunError`` outside of durable functions.
    """
    frame = current_frame.get()
    if frame is None:
        raise NoActiveRunError("current_run()")
    return CurrentRun(frame)

"""An exception comes back as the same type with the same text, or as a ``StepError``."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest

from durable._errors import RunBusyError, StepError
from durable._records import StoredError
from durable._stored_errors import describe_error, rebuild_error, settled_error

STEP = "charge"


class Declined(Exception):
    """An exception with a message of its own making."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"declined ({code}): {reason}")
        self.code = code
        self.reason = reason


class Keyword(Exception):
    """An exception that takes keywords only."""

    def __init__(self, *, code: int) -> None:
        super().__init__(code)
        self.code = code


class Facts(Exception):
    """An exception that keeps its facts and makes its text of them."""

    def __init__(self, code: int) -> None:
        super().__init__(code)

    def __str__(self) -> str:
        return f"code {self.args[0]}"


class Reduced(Exception):
    """An exception that says itself how it is copied."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code

    def __reduce__(self) -> Any:
        return (Reduced, (self.code,))


class WithClient(Exception):
    """An exception that carries something JSON can't."""

    def __init__(self, text: str, client: object) -> None:
        super().__init__(text)
        self.client = client
        self.status = 503


class Mute(Exception):
    """An exception whose text can't be made."""

    def __str__(self) -> str:
        raise RuntimeError


class Growing(Exception):
    """An exception whose text is never the same twice."""

    count = 0

    def __str__(self) -> str:
        type(self).count += 1
        return str(self.count)


class Outer:
    """A class that holds an exception type."""

    class Inner(ValueError):
        """The exception."""


def noted() -> Exception:
    """Return an exception with a note."""
    error = ValueError("x")
    error.add_note("look here")
    return error


def replayed(error: Exception, allowed: Any = Exception) -> Exception:
    """Return what a later pass raises, after the stored form went through bytes."""
    allowed = allowed if isinstance(allowed, tuple) else (allowed,)
    data = msgspec.json.encode(describe_error(error))
    return rebuild_error(msgspec.json.decode(data, type=StoredError), allowed, STEP)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        ValueError(),
        KeyError("key"),
        ValueError("a", 1, None, 2.5, [1]),
        TimeoutError(),
        OSError(2, "missing", "file.txt"),
        FileNotFoundError(2, "missing"),
        ImportError("no", name="x", path="y"),
        Declined(51, "no money"),
        Keyword(code=3),
        Facts(4),
        Reduced(5),
        Outer.Inner("nested"),
        RunBusyError("run-1", 2.5),
        StepError("a", "b", "c", "d"),
        noted(),
        ValueError("\0 \u2028 \U0001f600"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_comes_back_as_it_was(error: Exception) -> None:
    """Type, text and attributes are those of the original."""

    again = replayed(error)

    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.args == error.args
    assert vars(again) == vars(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError(object()),
        ValueError((1, 2)),
        ValueError({1: 2}),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        ExceptionGroup("several", [ValueError("x")]),
        ValueError("\ud800"),
        Growing(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_cannot_be_rebuilt_is_a_step_error(error: Exception) -> None:
    """Type name, message and traceback survive when the type can't be had back."""
    try:
        raise error
    except Exception as raised:
        again = replayed(raised)

    assert isinstance(again, StepError)
    assert again.step == STEP
    assert again.type_name == type(error).__qualname__
    assert "Traceback" in again.traceback


def test_only_allowed_types_are_rebuilt() -> None:
    """A stored type that isn't allowed is a ``StepError``, whatever it is called."""

    assert type(replayed(ValueError("x"), OSError)) is StepError
    assert type(replayed(FileNotFoundError(2, "x"), (KeyError, OSError))) is FileNotFoundError


@pytest.mark.parametrize(
    "name", ["", ":", "os:system", "no_such_module:X", "builtins:KeyboardInterrupt", "a..b:c", "x"]
)
def test_stored_names_that_mean_no_exception_are_harmless(name: str) -> None:
    """Damaged or hostile names end in a ``StepError`` and raise nothing."""

    found = rebuild_error(StoredError(type=name, message="m"), (BaseException,), STEP)

    assert type(found) is StepError
    assert found.message == "m"


@pytest.mark.parametrize("raw", [b"1", b"{}", b'["x"', b"\xff", b"null"])
def test_damaged_contents_are_harmless(raw: bytes) -> None:
    """Arguments that can't be read end in a ``StepError`` and raise nothing."""
    stored = StoredError("builtins:ValueError", "x", "", msgspec.Raw(raw), msgspec.Raw(raw))

    assert type(rebuild_error(stored, (Exception,), STEP)) is StepError


def test_a_type_that_is_not_loaded_is_imported_by_its_name() -> None:
    """Another process finds the type in its module, if it is allowed."""
    stored = StoredError("zipfile:BadZipFile", "x", "", msgspec.Raw(b'["x"]'))
    program = (
        "import sys\n"
        "from durable._stored_errors import rebuild_error, StoredError, msgspec\n"
        "assert 'zipfile' not in sys.modules\n"
        f"stored = msgspec.json.decode({msgspec.json.encode(stored)!r}, type=StoredError)\n"
        "print(type(rebuild_error(stored, (Exception,), 's')).__name__)"
    )

    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert answer.stdout.strip() == b"BadZipFile"


def test_a_type_of_the_main_script_is_found_under_its_imported_name() -> None:
    """A worker imports the script that another process ran as ``__main__``."""
    stored = describe_error(Facts(4))
    as_main = msgspec.structs.replace(stored, type="__main__:Facts")

    assert type(rebuild_error(as_main, (Facts,), STEP)) is Facts


def test_the_first_pass_raises_the_original() -> None:
    """What can be rebuilt is raised itself, traceback and all."""
    error = Declined(51, "no money")

    stored, raised = settled_error(error, (Declined,), STEP)

    assert raised is error
    assert type(rebuild_error(stored, (Declined,), STEP)) is Declined


def test_the_first_pass_raises_a_step_error_where_a_replay_would() -> None:
    """What can't be rebuilt is a ``StepError`` from the first pass on, caused by the original."""
    error = ValueError(object())

    stored, raised = settled_error(error, (ValueError,), STEP)

    assert type(raised) is StepError
    assert raised.__cause__ is error
    assert str(rebuild_error(stored, (ValueError,), STEP)) == str(raised)


def test_an_attribute_that_cannot_be_stored_is_missing_from_the_first_pass_on() -> None:
    """A handler sees the same attributes on every pass."""
    error = WithClient("down", object())

    stored, raised = settled_error(error, (WithClient,), STEP)

    assert type(raised) is WithClient
    assert raised.__cause__ is error
    assert vars(raised) == vars(rebuild_error(stored, (WithClient,), STEP)) == {"status": 503}


def test_a_long_traceback_keeps_its_end() -> None:
    """The traceback is bounded, and what was raised last stays."""
    error: Exception = ValueError("first")
    for index in range(200):
        try:
            raise ValueError(f"number {index}") from error
        except ValueError as caught:
            error = caught

    text = describe_error(error).traceback

    assert len(text) <= 8_010
    assert text.rstrip().endswith("ValueError: number 199")


def test_every_exception_can_be_described() -> None:
    """Interrupts, groups and broken exceptions have a stored form too."""

    for error in (KeyboardInterrupt(), SystemExit(1), Mute(), ValueError("\ud800"), Growing()):
        data = msgspec.json.encode(describe_error(error))
        assert msgspec.json.decode(data, type=StoredError).type_name == type(error).__qualname__

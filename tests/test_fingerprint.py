"""Fingerprints say what a value is: the same in every process, and nothing when in doubt."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import subprocess
import sys
from collections import OrderedDict
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from values import Colour, Everything, Level, Point, everythings, plain_json

from durable._fingerprint import (
    changed_arguments,
    fingerprint,
    fingerprint_arguments,
    function_name,
    run_fingerprint,
)

quick = settings(
    max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


class Broken:
    """A class whose every special method fails."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    def __repr__(self) -> str:
        raise RuntimeError

    __hash__ = None  # type: ignore[assignment]


@dataclasses.dataclass
class DataclassOld:
    """A class before it gained fields."""

    a: int


@dataclasses.dataclass
class DataclassNew:
    """The same class afterwards."""

    a: int
    b: list[int] = dataclasses.field(default_factory=list)
    c: str = ""


class StructOld(msgspec.Struct):
    """A class before it gained fields."""

    a: int


class StructNew(msgspec.Struct):
    """The same class afterwards."""

    a: int
    b: list[int] = []
    c: str = ""


@attrs.define
class AttrsOld:
    """A class before it gained fields."""

    a: int


@attrs.define
class AttrsNew:
    """The same class afterwards."""

    a: int
    b: list[int] = attrs.Factory(list)
    c: str = ""


class ModelOld(pydantic.BaseModel):
    """A class before it gained fields."""

    a: int


class ModelNew(pydantic.BaseModel):
    """The same class afterwards."""

    a: int
    b: list[int] = pydantic.Field(default_factory=list)
    c: str = ""


class TupleOld(NamedTuple):
    """A class before it gained fields."""

    a: int


class TupleNew(NamedTuple):
    """The same class afterwards."""

    a: int
    b: tuple[int, ...] = ()


@pytest.mark.parametrize(
    "values",
    [
        (1, 1.0, True, "1", b"1", Decimal(1), None),
        (0, 0.0, -0.0, False, "", None, [], (), {}, set()),
        ([1, 2], (1, 2), {1, 2}, [2, 1], [[1], 2], [1, [2]]),
        ({"a": 1}, {"a": 1.0}, {"b": 1}, [("a", 1)], {1: "a"}, {"1": "a"}),
        (["ab", "c"], ["a", "bc"], ["abc"], "abc"),
        (float("nan"), float("inf"), -float("inf")),
        (Decimal("1.0"), Decimal("1.00"), Decimal("NaN")),
        (date(2020, 1, 1), datetime(2020, 1, 1), datetime(2020, 1, 1, tzinfo=UTC), "2020-01-01"),
        (datetime(2020, 1, 1, fold=1), datetime(2020, 1, 1)),
        (
            datetime(2020, 1, 1, tzinfo=ZoneInfo("Europe/Paris")),
            datetime(2020, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")),
        ),
        (Colour.RED, "red", Colour.BLUE, Level.LOW, 1),
        (DataclassNew(1), DataclassNew(2), DataclassNew(1, [0]), DataclassNew(1, [], "x")),
        (UUID(int=1), str(UUID(int=1))),
        ("\ud800", "\\ud800"),
        (10**5000, 10**5000 + 1),
        (Path("a"), "a"),
        (range(3), range(4), [0, 1, 2]),
    ],
)
def test_values_that_differ_have_different_fingerprints(values: tuple[object, ...]) -> None:
    """Types count as much as values."""

    found = [fingerprint(value) for value in values]

    assert None not in found
    assert len(set(found)) == len(values)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": 1}, OrderedDict(a=1)),
        ({1, 2, 3}, {3, 2, 1}),
        (float("nan"), -float("nan")),
        (DataclassOld(1), DataclassNew(1)),
        (StructOld(1), StructNew(1)),
        (AttrsOld(1), AttrsNew(1)),
        (ModelOld(a=1), ModelNew(a=1)),
        (TupleOld(1), TupleNew(1)),
        ([DataclassOld(1)], [DataclassNew(1, [])]),
        (DataclassOld(1), StructOld(1)),
        (
            datetime(2020, 1, 1, tzinfo=UTC),
            datetime(2020, 1, 1, tzinfo=ZoneInfo("UTC")),
        ),
    ],
)
def test_what_means_the_same_has_the_same_fingerprint(one: object, other: object) -> None:
    """Order, class names, and fields that have their default don't count."""

    assert fingerprint(one) == fingerprint(other) is not None


@pytest.mark.parametrize(
    "value",
    [len, lambda: 1, object(), Broken(), [Broken()], {"f": len}, int, sys, iter([])],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_canonical_form_has_no_fingerprint(value: object) -> None:
    """Functions, classes, clients, and whatever holds one of them are "no information"."""

    assert fingerprint(value) is None


def test_a_cycle_has_no_fingerprint() -> None:
    """A value inside itself is "no information"."""
    value: list[Any] = []
    value.append(value)

    assert fingerprint(value) is None


def test_fingerprints_stay_as_they_are() -> None:
    """Fingerprints are stored, so they must not change between releases."""

    assert fingerprint("order-42") == "788fb647b89c9d55"
    assert fingerprint({"a": [1, 2.5, None], "b": (True, "x")}) == "0e50921026fcdabc"


@quick
@given(everythings())
def test_a_copy_has_the_same_fingerprint(value: Everything) -> None:
    """What a value is depends on nothing but its contents."""
    fields = {f.name: getattr(value, f.name) for f in reversed(dataclasses.fields(value))}

    assert fingerprint(Everything(**fields)) == fingerprint(value) is not None


@quick
@given(plain_json(), plain_json())
def test_fingerprints_are_equal_exactly_for_equal_values(one: object, other: object) -> None:
    """Plain values have equal fingerprints exactly when they are written alike."""

    def written(value: object) -> object:
        if isinstance(value, dict):
            return {key: written(item) for key, item in sorted(value.items())}
        return [written(item) for item in value] if isinstance(value, list) else repr(value)

    assert (fingerprint(one) == fingerprint(other)) == (written(one) == written(other))


@pytest.mark.parametrize("seed", ["0", "1", "4711"])
def test_every_process_gives_the_same_fingerprint(seed: str) -> None:
    """The hash seed of a process doesn't matter."""
    value = "{'b': {'x', 'y', 'z'}, 'a': frozenset({1, 2.5, 'q', None}), 'c': [b'1', 1j]}"
    program = f"from durable._fingerprint import fingerprint; print(fingerprint({value}))"

    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )

    assert answer.stdout.strip() == fingerprint(eval(value))


# Arguments.


def test_arguments_become_one_short_text() -> None:
    """Positional fingerprints come first, then names in order; ``-`` is "no information"."""
    one, two = fingerprint(1), fingerprint("2")

    assert fingerprint_arguments((), {}) == ""
    assert fingerprint_arguments((1,), {}) == one
    assert fingerprint_arguments((1, len), {"z": "2", "a": 1}) == f"{one} - a={one} z={two}"
    assert fingerprint_arguments((len,), {}) == "-"


@pytest.mark.parametrize(
    ("stored", "current", "changed"),
    [
        (((1, 2), {}), ((1, 2), {}), ()),
        (((1, 2), {}), ((1, 3), {}), ("b",)),
        (((1, 2), {}), ((2, 1), {}), ("a", "b")),
        (((1,), {"b": 2}), ((1, 2), {}), ()),
        (((1,), {"b": 2}), ((1, 3), {}), ("b",)),
        (((1,), {}), ((1, 2), {}), ("b",)),
        (((1, 2), {}), ((1,), {}), ("b",)),
        (((len, 2), {}), ((1, 2), {}), ()),
        (((1, 2), {}), ((1, len), {}), ()),
        (((1,), {}), ((1,), {"client": len}), ()),
        (((1,), {}), ((1,), {"extra": 1}), ("extra",)),
        (((1, 2, 3), {}), ((1, 2, 4), {}), ("argument 3",)),
        (((), {"a=b c%3D": 1}), ((), {"a=b c%3D": 2}), ("a=b c%3D",)),
    ],
)
def test_changed_arguments_are_named(stored: Any, current: Any, changed: tuple[str, ...]) -> None:
    """Arguments are matched by parameter, and those without a fingerprint never count."""

    found = changed_arguments(
        fingerprint_arguments(*stored), fingerprint_arguments(*current), ["a", "b"]
    )

    assert found == changed


# Whole calls.


def call(a: int, b: list[int] | None = None, *rest: int, key: str = "", **others: Any) -> None:
    """Take arguments of every kind."""


def run(*args: Any, **kwargs: Any) -> str:
    """Return the fingerprint of a call of ``call``."""
    return run_fingerprint(inspect.signature(call), args, kwargs)


def test_how_an_argument_is_passed_does_not_count() -> None:
    """Positional, by name, or left at its default: the call is the same."""

    assert run(1) == run(a=1) == run(1, None) == run(1, b=None, key="")
    assert len(run(1)) == 32


def test_calls_that_differ_have_different_fingerprints() -> None:
    """Each argument counts, and so does its name."""
    calls = [run(1), run(2), run(1, [1]), run(1, None, 1), run(1, key="x"), run(1, other="x")]

    assert len(set(calls)) == len(calls)


def test_a_new_parameter_with_a_default_changes_nothing() -> None:
    """A function may gain a parameter without losing its unfinished runs."""
    old = inspect.signature(lambda a: None)
    new = inspect.signature(lambda a, b=0, *rest, c=(), **others: None)

    assert run_fingerprint(old, (1,), {}) == run_fingerprint(new, (1,), {})


def test_an_argument_without_a_fingerprint_is_named() -> None:
    """The refusal names the parameter and says to use ``run``."""

    with pytest.raises(TypeError, match=r"'key'.*\.run\(run_id"):
        run(1, key=object())


def test_arguments_that_do_not_fit_are_a_type_error() -> None:
    """A wrong call fails as it would without the fingerprint."""

    with pytest.raises(TypeError, match="missing"):
        run()


# Names.


class Service:
    """A class with methods."""

    def fetch(self) -> None:
        """Do nothing."""

    @classmethod
    def make(cls) -> None:
        """Do nothing."""

    def __call__(self) -> None:
        """Do nothing."""


class Special(Service):
    """A subclass."""


def test_functions_are_named_without_their_module() -> None:
    """Whatever is called, its name says which code it is."""

    def inner() -> None: ...

    assert function_name(call) == "call"
    assert function_name(functools.partial(functools.partial(call, 1), 2)) == "call"
    assert function_name(Service()) == "Service"
    assert function_name(Service) == "Service"
    assert function_name(Service.fetch) == "Service.fetch"
    assert function_name(Service().fetch) == "Service.fetch"
    assert function_name(Special().fetch) == "Special.fetch"
    assert function_name(Service.make) == "Service.make"
    assert function_name(Point(1).count) == "Point.count"
    assert function_name(inner).endswith("<locals>.inner")

"""Values are stored faithfully, or refused at once."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import math
import sys
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from values import (
    Access,
    Box,
    Cat,
    Colour,
    Dog,
    Everything,
    Level,
    Money,
    Options,
    Point,
    everythings,
    plain_json,
)

from durable._codec import UNKNOWN, TypeCodec
from durable._errors import NotSerializableError, StateFormatError
from durable._fingerprint import fingerprint

WHERE = "step 'charge'"
SECRET = "hunter2"

quick = settings(
    max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


class Name(str):
    """A subclass that JSON would lose."""


class Mixed(enum.Enum):
    """An enumeration that JSON can't tell apart."""

    TEXT = "1"
    NUMBER = 1


@dataclasses.dataclass
class Person:
    """A dataclass for people."""

    name: str
    age: int = 0


@dataclasses.dataclass
class Employee(Person):
    """A dataclass with one more field."""

    salary: int = 0


@dataclasses.dataclass
class Checked:
    """A dataclass that refuses some values."""

    name: str

    def __post_init__(self) -> None:
        if self.name == SECRET:
            raise ValueError(f"bad name {self.name}")


def spoiled() -> Checked:
    """Return a value that its own class wouldn't make."""
    value = Checked("fine")
    value.name = SECRET
    return value


@dataclasses.dataclass
class Cached:
    """A dataclass that keeps a value it can make again."""

    radius: int

    @functools.cached_property
    def area(self) -> int:
        """Return the area, roughly."""
        return 3 * self.radius**2


class Order(msgspec.Struct, rename="camel"):
    """A Struct whose stored names differ from its own."""

    line_items: dict[str, list[int]]


def store(value: object, annotation: object = UNKNOWN) -> Any:
    """Return what the first call gives, after checking that a later one gives the same."""
    codec = TypeCodec(annotation)
    data, first = codec.store(value, WHERE)
    later = TypeCodec(annotation).load(data, WHERE)
    assert fingerprint(first) == fingerprint(later)
    assert type(first) is type(later)
    return first


def refusal(value: object, annotation: object = UNKNOWN) -> NotSerializableError:
    """Return the refusal of a value."""
    with pytest.raises(NotSerializableError) as caught:
        TypeCodec(annotation).store(value, WHERE)
    assert caught.value.where == WHERE
    return caught.value


@quick
@given(everythings())
def test_everything_comes_back_as_it_was(value: Everything) -> None:
    """A value of every kind of field at once comes back equal, with exact types."""

    first = store(value, Everything)

    assert fingerprint(first) == fingerprint(value) is not None


@quick
@given(plain_json())
def test_plain_json_needs_no_annotation(value: object) -> None:
    """JSON's own types come back as they were without any annotation."""

    first = store(value)

    assert repr(first) == repr(value)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (2**64, int),
        (-(10**400), UNKNOWN),
        (-0.0, float),
        ("\0 \u2028 \U0001f600", str),
        ({1: "a", -(2**70): "b"}, dict[int, str]),
        ({1.5: 1}, dict[float, int]),
        ({UUID(int=1): date(1, 1, 1)}, dict[UUID, date]),
        ({Level.LOW: Colour.RED}, dict[Level, Colour]),
        (Decimal("NaN123"), Decimal),
        (Decimal("-0.00"), Decimal),
        (datetime(2020, 1, 1, tzinfo=UTC), datetime),
        (datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=-5))), datetime),
        (timedelta.max, timedelta),
        (bytearray(b"\xff"), bytearray),
        ((1, "a", None), tuple[int, str, None]),
        (frozenset({Money(Decimal("1.0"))}), frozenset[Money]),
        (Access.READ | Access.WRITE, Access),
        ([Cat(), Dog("rex")], list[Cat | Dog]),
        (Box(Box(1)), Box[Box[int]]),
        ({"name": "x"}, Options),
        (Point(1), Point),
        (None, None),
        ("a", Literal["a", 1]),
        (3, Annotated[int, msgspec.Meta(ge=1)]),
        ([1], collections.abc.Sequence[int]),
    ],
)
def test_annotated_values_come_back(value: object, annotation: object) -> None:
    """With an annotation, types that JSON doesn't have come back as they were."""

    first = store(value, annotation)

    assert repr(first) == repr(value)
    assert type(first) is type(value)


@pytest.mark.parametrize(
    ("value", "annotation", "path"),
    [
        (math.nan, float, "$"),
        ([1.0, -math.inf], UNKNOWN, "$[1]"),
        ({"a": [math.inf]}, dict[str, list[float | None]], "$.a[0]"),
        ("\ud800", str, "$"),
        ({"\ud800": 1}, UNKNOWN, "$"),
        ({1: "a"}, UNKNOWN, "$[1]"),
        ({1: "a", "1": "b"}, dict[int | str, str], "$[1]"),
        ({2**53: "a", 2**53 + 1: "b"}, dict[float, str], "$"),
        ({(1, 2): "a"}, UNKNOWN, "$"),
        ((1, 2), UNKNOWN, "$"),
        ({"when": {1}}, UNKNOWN, "$.when"),
        ({"odd key": date(2020, 1, 1)}, UNKNOWN, "$['odd key']"),
        (True, int, "$"),
        (1, bool, "$"),
        (True, float, "$"),
        (2**53 + 1, float, "$"),
        ([1, 2, True], list[int], "$[2]"),
        ({"a": 1, "b": "x"}, dict[str, int], "$.b"),
        (Name("x"), str, "$"),
        ([Name("x")], UNKNOWN, "$[0]"),
        ({Name("x"): 1}, UNKNOWN, "$.x"),
        (Level.LOW, int, "$"),
        (collections.OrderedDict(a=1), dict, "$"),
        (collections.defaultdict(int), dict[str, int], "$"),
        (collections.namedtuple("P", "x")(1), UNKNOWN, "$"),
        (Employee("x"), Person, "$"),
        ([Person("x", 1), Person("y", True)], list[Person], "$[1].age"),
        (Point(1, "y"), Point, "$[1]"),
        (Order({"a": [1], "b": [1, "x"]}), Order, "$.lineItems.b[1]"),
        ({"name": "x", "extra": 1}, Options, "$"),
        (datetime(2020, 1, 1, tzinfo=ZoneInfo("Europe/Paris")), datetime, "$"),
        (datetime(2020, 1, 1, tzinfo=timezone(timedelta(0), "GMT")), datetime, "$"),
        (datetime(2020, 1, 1, tzinfo=timezone(timedelta(seconds=90))), datetime, "$"),
        (datetime(2020, 1, 1, fold=1), datetime, "$"),
        (time(1, tzinfo=ZoneInfo("Europe/Paris")), time, "$"),
        (Mixed.TEXT, Mixed, "$"),
        ("2020-01-01", date | str, "$"),
        ([1], list[int] | set[int], "$"),
        ({"f": len}, UNKNOWN, "$.f"),
        ([iter([])], UNKNOWN, "$[0]"),
        (1j, complex, "$"),
        (msgspec.UNSET, UNKNOWN, "$"),
        (1, tuple[int, str] | Annotated[int, msgspec.Meta(ge=1)], "$"),
        (1, "NotAType", "$"),
    ],
)
def test_what_would_change_is_refused(value: object, annotation: object, path: str) -> None:
    """A value that wouldn't come back as it was is refused, and the refusal says where."""

    error = refusal(value, annotation)

    assert error.path == path


@pytest.mark.parametrize(
    ("value", "annotation", "words"),
    [
        ((1, 2), UNKNOWN, "returns="),
        ({1: 2}, UNKNOWN, "use str keys"),
        (datetime(2020, 1, 1, tzinfo=ZoneInfo("Europe/Paris")), datetime, "UTC"),
        (math.nan, float, "NaN"),
        ((n for n in ()), UNKNOWN, "list"),
        (2**53 + 1, float, "annotate it as int"),
    ],
)
def test_a_refusal_says_what_to_do(value: object, annotation: object, words: str) -> None:
    """The reason of a refusal holds advice."""

    assert words in refusal(value, annotation).reason


def test_an_awaitable_is_refused_with_the_advice_to_await_it() -> None:
    """A forgotten ``await`` is named as such."""

    async def work() -> None: ...

    coroutine = work()
    error = refusal(coroutine)
    coroutine.close()

    assert "awaited" in error.reason


def test_a_value_inside_itself_is_refused() -> None:
    """A cycle is refused instead of overflowing the stack."""
    value: list[Any] = []
    value.append(value)

    assert "contains itself" in refusal(value).reason


def test_too_deep_a_value_is_refused() -> None:
    """Nesting beyond what can be read back is refused."""
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]

    assert "nested too deeply" in refusal(value).reason


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ([SECRET], list[int]),
        (SECRET, UUID),
        (SECRET, Colour),
        (SECRET, Literal["a"]),
        (SECRET, Decimal),
        (SECRET, datetime),
        (spoiled(), Checked),
        ({"a": Name(SECRET)}, UNKNOWN),
        ({"kind": SECRET}, Cat | Dog),
    ],
)
def test_a_refusal_never_shows_the_value(value: Any, annotation: object) -> None:
    """Values may be secrets, so messages name types and places only."""
    error = refusal(value, annotation)

    assert SECRET not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__


def test_an_int_under_float_becomes_the_equal_float() -> None:
    """An int that a float holds exactly widens, and the first caller gets the float too."""

    first = store([1, 2.5], list[float])

    assert first == [1.0, 2.5]
    assert list(map(type, first)) == [float, float]


def test_the_first_caller_gets_a_copy() -> None:
    """What the first call returns isn't shared with what the function keeps."""
    mine = {"a": [1]}

    first = store(mine)
    mine["a"].append(2)

    assert first == {"a": [1]}


def test_cached_properties_are_no_obstacle() -> None:
    """A cached property isn't part of the value."""
    value = Cached(2)
    assert value.area == 12

    assert store(value, Cached) == Cached(2)


def test_an_extra_attribute_would_be_lost() -> None:
    """An attribute that isn't a field is refused rather than dropped."""
    value = Person("x")
    value.nickname = "y"  # type: ignore[attr-defined]

    assert refusal(value, Person).type_name.endswith("Person")


def test_text_that_holds_too_many_digits_is_refused() -> None:
    """Integers are kept up to the length that Python turns into text."""
    assert "digits" in refusal(10 ** (sys.get_int_max_str_digits() + 1)).reason


@pytest.mark.parametrize(
    "data", [b"", b"[1", b'{"x"', b"\xff", b'{"a":', b"[" * 100_000, b"9" * 5000, b"NaN"]
)
@pytest.mark.parametrize("annotation", [dict[str, int], Person, list[Colour], UNKNOWN])
def test_damaged_data_is_a_state_format_error(data: bytes, annotation: object) -> None:
    """Nothing but ``StateFormatError`` comes out of ``load``."""
    codec = TypeCodec(annotation)

    with pytest.raises(StateFormatError, match="charge"):
        codec.load(data, WHERE)


def test_stored_data_that_no_longer_fits_names_the_place() -> None:
    """A changed annotation is named with the path and what was expected, not the value."""

    with pytest.raises(StateFormatError) as caught:
        TypeCodec(list[Person]).load(b'[{"name":"hunter2","age":"x"}]', WHERE)

    assert "$[0].age" in str(caught.value)
    assert "Expected `int`" in str(caught.value)
    assert SECRET not in str(caught.value)


@quick
@given(st.data(), everythings())
def test_mutated_data_is_read_or_refused(data: st.DataObject, value: Everything) -> None:
    """However the stored bytes are damaged, the error is a ``StateFormatError``."""
    codec = TypeCodec(Everything)
    stored = bytearray(codec.store(value, WHERE)[0])
    for _ in range(data.draw(st.integers(1, 3))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))

    try:
        codec.load(bytes(stored), WHERE)
    except StateFormatError as error:
        assert error.where == WHERE

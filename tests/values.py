"""One type that holds a field of everything that can be stored, and how to make such values."""

from __future__ import annotations

import dataclasses
import enum
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar
from uuid import UUID

import msgspec
from hypothesis import strategies as st

T = TypeVar("T")


class Colour(enum.Enum):
    """An enumeration of text."""

    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    """An enumeration of numbers."""

    LOW = 1
    HIGH = 10


class Access(enum.Flag):
    """Flags that can be combined."""

    READ = 1
    WRITE = 2


class Point(NamedTuple):
    """A named tuple."""

    x: int
    y: float = 0.0


class Options(TypedDict):
    """A typed dict, one key of which may be missing."""

    name: str
    retries: NotRequired[int]


@dataclasses.dataclass(frozen=True)
class Money:
    """A frozen dataclass."""

    amount: Decimal
    currency: str = "EUR"


@dataclasses.dataclass(slots=True)
class Box(Generic[T]):
    """A generic dataclass with slots."""

    content: T


class Cat(msgspec.Struct, tag=True):
    """One of two Structs that a tag tells apart."""

    lives: int = 9


class Dog(msgspec.Struct, tag=True):
    """The other one."""

    name: str


@dataclasses.dataclass
class Everything:
    """A field of each kind."""

    text: str
    whole: int
    real: float
    flag: bool
    nothing: None
    data: bytes
    buffer: bytearray
    moment: datetime
    day: date
    clock: time
    duration: timedelta
    price: Decimal
    identity: UUID
    colour: Colour
    level: Level
    access: Access
    choice: Literal["a", "b", 3]
    point: Point
    options: Options
    money: Money | None
    box: Box[int | None]
    pet: Cat | Dog
    numbers: list[int]
    pair: tuple[int, str]
    many: tuple[float, ...]
    names: set[str]
    moneys: frozenset[Money]
    by_number: dict[int, str]
    by_day: dict[date, list[Point]]
    either: int | str | None
    plain: Any
    children: list[Everything] = dataclasses.field(default_factory=list)


def plain_json() -> st.SearchStrategy[Any]:
    """Make values that JSON has by itself."""
    leaves = st.none() | st.booleans() | st.integers() | finite() | st.text(max_size=8)
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=8,
    )


def finite() -> st.SearchStrategy[float]:
    """Make floats that JSON has, both zeros among them."""
    return st.floats(allow_nan=False, allow_infinity=False)


def zones() -> st.SearchStrategy[Any]:
    """Make no zone, UTC, or an offset of whole minutes."""
    minutes = st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m)))
    return st.none() | st.just(UTC) | minutes


def unfolded(moment: Any) -> Any:
    """Return a time that isn't the second one of its name on its day."""
    return moment.replace(fold=0)


def moneys() -> st.SearchStrategy[Money]:
    """Make amounts of money, some of them not a number."""
    return st.builds(Money, st.decimals(), st.text(max_size=3))


def everythings() -> st.SearchStrategy[Everything]:
    """Make values of ``Everything``."""
    points = st.builds(Point, st.integers(), finite())
    fields: dict[str, st.SearchStrategy[Any]] = {
        "text": st.text(),
        "whole": st.integers() | st.integers(-(10**300), 10**300),
        "real": finite(),
        "flag": st.booleans(),
        "nothing": st.none(),
        "data": st.binary(),
        "buffer": st.binary().map(bytearray),
        "moment": st.datetimes(timezones=zones()).map(unfolded),
        "day": st.dates(),
        "clock": st.times(timezones=zones()).map(unfolded),
        "duration": st.timedeltas(),
        "price": st.decimals(),
        "identity": st.uuids(),
        "colour": st.sampled_from(Colour),
        "level": st.sampled_from(Level),
        "access": st.sampled_from([Access.READ, Access.WRITE, Access.READ | Access.WRITE]),
        "choice": st.sampled_from(["a", "b", 3]),
        "point": points,
        "options": st.fixed_dictionaries({"name": st.text()}, optional={"retries": st.integers()}),
        "money": st.none() | moneys(),
        "box": st.builds(Box, st.none() | st.integers()),
        "pet": st.builds(Cat, st.integers()) | st.builds(Dog, st.text()),
        "numbers": st.lists(st.integers(), max_size=20),
        "pair": st.tuples(st.integers(), st.text()),
        "many": st.lists(finite(), max_size=12).map(tuple),
        "names": st.sets(st.text(), max_size=12),
        "moneys": st.frozensets(
            st.builds(Money, st.decimals(allow_nan=False), st.text()), max_size=3
        ),
        "by_number": st.dictionaries(st.integers(), st.text(), max_size=12),
        "by_day": st.dictionaries(st.dates(), st.lists(points, max_size=2), max_size=2),
        "either": st.none() | st.integers() | st.text(),
        "plain": plain_json(),
    }
    leaf = st.builds(Everything, **fields)
    return leaf | st.builds(Everything, **fields, children=st.lists(leaf, max_size=1))

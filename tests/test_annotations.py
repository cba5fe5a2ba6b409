"""What callables say about their types decides how their values are stored."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Awaitable, Coroutine
from datetime import date
from typing import Any, Self, TypedDict, TypeVar, Unpack

import msgspec
import pytest
from values import Point

from durable._codec import ArgumentsCodec, return_codec
from durable._errors import NotSerializableError, StateFormatError

WHERE = "step 'charge'"

T = TypeVar("T")


@dataclasses.dataclass
class Person:
    """A dataclass for people."""

    name: str
    age: int = 0


class Order(msgspec.Struct, rename="camel"):
    """A Struct whose stored names differ from its own."""

    line_items: dict[str, list[int]]


class Client:
    """An object with methods."""

    def fetch(self) -> Self:
        """Return itself."""
        return self

    def __call__(self) -> tuple[int, ...]:
        """Return nothing."""
        return ()


async def gives_pair() -> tuple[int, int]:
    """Return a pair."""
    return (1, 2)


def gives_awaitable() -> Awaitable[tuple[int, int]]:
    """Return something to await."""
    return gives_pair()


def gives_coroutine() -> Coroutine[Any, Any, tuple[int, int]]:
    """Return a coroutine."""
    return gives_pair()


def gives_missing(x: Missing) -> tuple[int, int]:  # type: ignore[name-defined]  # noqa: F821
    """Return a pair; another annotation can't be resolved."""
    return (1, 2)


@functools.wraps(gives_pair)
def wrapper(*args: Any) -> Any:
    """Stand for a decorated function."""


@pytest.mark.parametrize(
    ("fn", "annotation"),
    [
        (gives_pair, tuple[int, int]),
        (gives_awaitable, tuple[int, int]),
        (gives_coroutine, tuple[int, int]),
        (gives_missing, tuple[int, int]),
        (functools.partial(functools.partial(gives_pair)), tuple[int, int]),
        (wrapper, tuple[int, int]),
        (functools.lru_cache(gives_coroutine), tuple[int, int]),
        (Client(), tuple[int, ...]),
        (Client().fetch, Client),
        (Person, Person),
        (len, Any),
        (lambda: 1, Any),
    ],
)
def test_the_return_annotation_is_found(fn: Any, annotation: object) -> None:
    """However a callable is wrapped, what it gives in the end is what counts."""

    assert return_codec(fn).annotation == annotation


def test_a_class_defined_inside_a_function_is_found() -> None:
    """A string annotation may name what its function sees."""

    @dataclasses.dataclass
    class Local:
        x: int

    def make() -> Local:
        return Local(1)

    assert return_codec(make).annotation is Local


def test_an_unresolvable_annotation_is_named_in_the_refusal() -> None:
    """A refusal says that the annotation exists but names nothing."""

    def make() -> Missing:  # type: ignore[name-defined]  # noqa: F821
        return (1, 2)

    with pytest.raises(NotSerializableError, match="'Missing'"):
        return_codec(make).store((1, 2), WHERE)


def test_a_bare_type_variable_is_named_in_the_refusal() -> None:
    """A type variable alone says nothing about the value."""

    def same(x: T) -> T:
        return x

    with pytest.raises(NotSerializableError, match="type variable T"):
        return_codec(same).store({1}, WHERE)


def test_returns_overrides_the_annotation() -> None:
    """``returns=`` wins, ``None`` included."""

    assert return_codec(gives_pair, returns=list[int]).annotation == list[int]
    assert return_codec(gives_pair, returns=None).store(None, WHERE)[0] == b"null"


class Extra(TypedDict, total=False):
    """Typed keyword arguments."""

    when: date


def call(
    order: Order, /, point: Point, *days: date, flag: bool = False, **others: Unpack[Extra]
) -> None:
    """Take arguments of every kind."""


def test_arguments_come_back_by_their_annotations() -> None:
    """Each argument is read as its parameter says, however it was passed."""
    codec = ArgumentsCodec(call)
    order, day = Order({"a": [1]}), date(2020, 1, 1)

    data = codec.store((order, Point(1), day, day), {"flag": True, "when": day}, WHERE)

    assert codec.load(data, WHERE) == (
        (order, Point(1), day, day),
        {"flag": True, "when": day},
    )
    assert codec.load(codec.store((order,), {"point": Point(2)}, WHERE), WHERE)[1] == {
        "point": Point(2)
    }


def test_self_is_no_argument() -> None:
    """A method's arguments begin after ``self``."""

    codec = ArgumentsCodec(Person.__init__, skip_first=True)

    assert codec.load(codec.store(("x",), {"age": 1}, WHERE), WHERE) == (("x",), {"age": 1})


def test_a_refused_argument_is_named_first() -> None:
    """The path of a refused argument begins with the parameter."""
    with pytest.raises(NotSerializableError) as caught:
        ArgumentsCodec(call).store((Order({"a": [1, True]}), Point(1)), {}, WHERE)

    assert caught.value.path == "$.order.lineItems.a[1]"


def test_an_unannotated_argument_asks_for_an_annotation() -> None:
    """The advice is about the parameter, not about the return type."""
    with pytest.raises(NotSerializableError, match="annotate the parameter"):
        ArgumentsCodec(lambda x: x).store(({1},), {}, WHERE)


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b'{"args":[]}',
        b'{"args":[1],"kwargs":{}}',
        b'{"args":[],"kwargs":{"order":{"lineItems":{}}}}',
        b'{"args":[{"lineItems":{}},[1,2.0],1],"kwargs":{}}',
        b"\xff",
    ],
)
def test_arguments_that_no_longer_fit_are_a_state_format_error(data: bytes) -> None:
    """A changed signature is named, and nothing is called."""
    with pytest.raises(StateFormatError, match="charge"):
        ArgumentsCodec(call).load(data, WHERE)

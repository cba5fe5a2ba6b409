"""A value is the same first and later, or refused at once."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

import msgspec
import pytest
from step_helpers import Boom, Crashing, fail_then_run, go, recorded

from durable import (
    MemoryStore,
    NotSerializableError,
    durable,
    step,
)


class Colour(Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int


class Movie(TypedDict):
    title: str


@dataclasses.dataclass
class User:
    name: str
    tags: set[str] = dataclasses.field(default_factory=set)


class Order(msgspec.Struct):
    total: Decimal


VALUES: list[tuple[Any, Any]] = [
    (None, None),
    (True, bool),
    (2**40, int),
    (1.5, float),
    ("a\x00b €", str),
    ([1, "two", None], Any),
    ((1, "two"), tuple[int, str]),
    ({1: "one"}, dict[int, str]),
    ({1, 2}, set[int]),
    (b"\x00\xff", bytes),
    (datetime(2024, 1, 2, tzinfo=UTC), datetime),
    (timedelta(seconds=3), timedelta),
    (Decimal("1.10"), Decimal),
    (UUID(int=7), UUID),
    (Colour.RED, Colour),
    (Point(1, 2), Point),
    ({"title": "Alien"}, Movie),
    (User("ann", {"x"}), User),
    ([User("ann")], list[User]),
    (Order(Decimal("9.99")), Order | None),
]


@pytest.mark.parametrize(("value", "annotation"), VALUES, ids=repr)
def test_the_first_call_and_every_later_one_give_the_same(value: Any, annotation: Any) -> None:
    """The same value of the same type comes back now and after a resume."""
    seen: list[Any] = []

    async def make() -> Any:
        return value

    @durable(store=MemoryStore())
    async def flow() -> None:
        seen.append(await step.options(returns=annotation)("a", make))
        if len(seen) == 1:
            raise Boom

    go(fail_then_run(flow))
    assert seen == [value, value]
    assert [type(each) for each in seen] == [type(value)] * 2


def test_the_return_annotation_says_what_is_decoded_to() -> None:
    """Without ``returns`` the function's own annotation counts."""
    crash = Crashing()

    async def make() -> list[User]:
        return [User("ann", {"a"})]

    @durable(store=MemoryStore())
    async def flow() -> str:
        users = await step("users", make)
        crash()
        return f"{users[0].name} {users[0].tags}"

    assert go(fail_then_run(flow)) == "ann {'a'}"


def test_the_caller_gets_what_was_stored_and_not_the_object_itself() -> None:
    """Changing the value afterwards changes neither the record nor the function's own object."""
    own: list[int] = [1]
    crash = Crashing()

    async def make() -> list[int]:
        return own

    @durable(store=MemoryStore())
    async def flow() -> list[int]:
        value = await step("a", make)
        value.append(2)
        crash()
        return value

    assert go(fail_then_run(flow)) == [1, 2]
    assert own == [1]


def test_what_cannot_be_stored_is_refused_at_the_first_call() -> None:
    """The error names the step, the path and the type, and nothing is recorded."""
    store = MemoryStore()

    async def make() -> Any:
        return {"items": [1, object()]}

    @durable(store=store)
    async def flow() -> None:
        await step("a", make)

    with pytest.raises(NotSerializableError) as caught:
        go(flow.run("r"))
    assert (caught.value.where, caught.value.path) == ("step 'a'", "$.items[1]")
    assert caught.value.type_name == "object"
    assert not go(recorded(store)).root.steps


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, {1: "a"}, "\ud800"])
def test_what_json_would_change_is_refused_or_kept(value: Any) -> None:
    """An unannotated value comes back equal, or is refused at once."""

    async def make() -> Any:
        return value

    @durable(store=MemoryStore())
    async def flow() -> bool:
        return (await step("a", make)) == value

    try:
        assert go(flow.run("r"))
    except NotSerializableError as error:
        assert error.where == "step 'a'"


def test_an_unannotated_tuple_is_refused_with_advice() -> None:
    """The message says how to make it storable."""

    async def make():  # type: ignore[no-untyped-def]
        return (1, 2)

    @durable(store=MemoryStore())
    async def flow() -> None:
        await step("a", make)

    with pytest.raises(NotSerializableError, match="returns="):
        go(flow.run("r"))

"""pydantic models and attrs classes are stored like everything else."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

import attrs
import pydantic
import pytest
from pydantic.dataclasses import dataclass as pydantic_dataclass

from durable._codec import TypeCodec
from durable._errors import NotSerializableError, StateFormatError

WHERE = "step 'fetch'"


class Address(pydantic.BaseModel):
    """A model inside others."""

    city: str
    zip: str | None = None


class User(pydantic.BaseModel):
    """A model with fields of many types."""

    kind: Literal["user"] = "user"
    name: str = pydantic.Field(alias="fullName")
    born: date | None = None
    seen: datetime | None = None
    home: Path | None = None
    tags: set[str] = set()
    addresses: list[Address] = []
    by_year: dict[int, Address] = {}


class Bot(pydantic.BaseModel):
    """A model that only its kind tells from another."""

    kind: Literal["bot"] = "bot"
    name: str = ""


class Open(pydantic.BaseModel, extra="allow"):
    """A model that takes more than its fields."""

    _note: str = pydantic.PrivateAttr("")


class Strict(pydantic.BaseModel, strict=True):
    """A model that converts nothing."""

    day: date


class Numbers(pydantic.RootModel[list[int]]):
    """A model of one value."""


class Secretive(pydantic.BaseModel):
    """A model that hides a field when dumped."""

    key: pydantic.SecretStr


@pydantic_dataclass
class Team:
    """A pydantic dataclass that holds models."""

    lead: User
    others: list[User]


@dataclasses.dataclass
class Report:
    """A plain dataclass that holds a model."""

    user: User | None = None


@attrs.define
class Shape:
    """An attrs class."""

    sides: int = attrs.field(validator=attrs.validators.gt(2))
    names: set[str] = attrs.Factory(set)


@attrs.frozen
class Private:
    """An attrs class with a private field, which is not stored."""

    _x: int = 0


def store(value: Any, annotation: object) -> Any:
    """Return what the first call gives, after checking that a later one gives the same."""
    data, first = TypeCodec(annotation).store(value, WHERE)
    assert TypeCodec(annotation).load(data, WHERE) == first
    return first


USER = User(
    fullName="Ada",
    born=date(1815, 12, 10),
    seen=datetime(2020, 1, 1, tzinfo=UTC),
    home=Path("/home/ada"),
    tags={"x"},
    addresses=[Address(city="London"), Address(city="Paris", zip="75")],
    by_year={1830: Address(city="London", zip=None)},
)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (USER, User),
        (USER, User | None),
        ([USER, User(fullName="Bob")], list[User]),
        ({"a": USER}, dict[str, User]),
        (Report(USER), Report),
        (Report(), Report),
        (Team(USER, [USER]), Team),
        (Open(x=1, y=[2]), Open),  # type: ignore[call-arg]
        (Strict(day=date(2020, 1, 1)), Strict),
        (Numbers([1, 2]), Numbers),
        (USER, User | Bot),
        (Bot(), User | Bot),
        (Shape(3, {"a"}), Shape),
        ([Shape(4)], list[Shape]),
        (Private(), Private),
    ],
)
def test_models_come_back_as_they_were(value: object, annotation: object) -> None:
    """A model comes back equal, wherever it is."""

    first = store(value, annotation)

    assert first == value
    assert type(first) is type(value)


def test_fields_set_by_hand_stay_known() -> None:
    """``model_dump(exclude_unset=True)`` gives the same before and after, at every depth."""

    first = store(USER, User)

    assert first.model_dump(exclude_unset=True) == USER.model_dump(exclude_unset=True)
    assert first.addresses[0].model_fields_set == {"city"}
    assert first.by_year[1830].model_fields_set == {"city", "zip"}


def test_a_changed_default_changes_nothing_stored() -> None:
    """A field that only had its default is stored with it."""

    assert b'"zip":null' in TypeCodec(Address).store(Address(city="x"), WHERE)[0]


def test_handwritten_data_needs_no_marks() -> None:
    """Plain JSON of a model is read too."""

    assert TypeCodec(User).load(b'{"fullName":"Ada"}', WHERE) == User(fullName="Ada")


def with_note() -> Open:
    """Return a model with something in a private attribute."""
    model = Open()
    model._note = "x"
    return model


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (Secretive(key=pydantic.SecretStr("hunter2")), Secretive),
        (with_note(), Open),
        (User.model_construct(name=1), User),
        (USER, Any),
        (Private(1), Private),
    ],
)
def test_models_that_would_lose_something_are_refused(value: object, annotation: object) -> None:
    """Hidden, private and invalid contents are refused, without being shown."""

    with pytest.raises(NotSerializableError) as caught:
        TypeCodec(annotation).store(value, WHERE)

    assert "hunter2" not in str(caught.value)


def test_stored_data_that_a_model_refuses_names_its_fields() -> None:
    """A changed model is named with the fields that don't fit, not their values."""

    with pytest.raises(StateFormatError) as caught:
        TypeCodec(list[Address]).load(b'[{"zip":"hunter2"}]', WHERE)

    assert "missing at city" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_pydantic_is_never_imported() -> None:
    """A program that doesn't use pydantic or attrs doesn't load them."""
    program = (
        "import sys, durable._codec as c\n"
        "c.TypeCodec(list[int]).store([1], 'x')\n"
        "sys.exit(bool({'pydantic', 'attr', 'attrs'} & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

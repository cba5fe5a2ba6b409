"""Misuse speaks at once: what came, what is accepted, and what comes nearest."""

from __future__ import annotations

import gc
import warnings
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest
from step_helpers import go, recorded

from durable import MemoryStore, NotSerializableError, current_run, durable, step


async def work(number: int = 1) -> int:
    return number


async def inside(use: Any) -> Any:
    """Return what ``use()`` gives within a run."""

    @durable(store=MemoryStore())
    async def flow() -> Any:
        found = use()
        return await found if hasattr(found, "__await__") else None

    return await flow.run("r")


@pytest.mark.parametrize(
    ("make", "near"),
    [
        (lambda: durable(durabilty="sync"), "durable has no option 'durabilty'.*'durability'"),
        (lambda: durable(work).options(max_recovery=3), "'max_recoveries'"),
        (lambda: step.options(retrys=3), "step has no option 'retrys'.*'retry'"),
        (lambda: step(time_out=3), "'timeout'"),
        (lambda: step(work).options(save_error=KeyError), "'save_errors'"),
        (lambda: step.options(xyz="x"), "no option 'xyz'; it takes: .*timeout"),
    ],
    ids=["durable", "options", "step.options", "decorator", "decorated", "nothing near"],
)
def test_a_misspelt_option_names_the_nearest(make: Any, near: str) -> None:
    """Nothing is silently ignored."""
    with pytest.raises(TypeError, match=near):
        make()


def sync() -> int:
    return 1


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


class Class:
    pass


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (sync, "sync is not an async function"),
        (generator, "generator is not an async function"),
        (async_generator, "async_generator is an async generator"),
        (Class, "Class is not an async function"),
        (5, "int is not an async function"),
        (staticmethod(work), "goes below @staticmethod"),
        (durable(work), "is durable already"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_only_async_functions_can_be_durable(fn: Any, said: str) -> None:
    """Anything else is a TypeError that says what came, at decoration."""
    with pytest.raises(TypeError, match=said):
        durable(fn)


@pytest.mark.parametrize("key", [5, 1.5, b"key", ("a", 1), ["a"]], ids=repr)
def test_a_key_is_text(key: Any) -> None:
    """Another type is named."""
    with pytest.raises(TypeError, match=f"key must be a str or None, got {type(key).__name__}"):
        go(inside(lambda: step(key, work)))


def test_a_forgotten_key_is_named() -> None:
    """The function stands where the key should."""
    with pytest.raises(TypeError, match="a step key must be a str or None, got function"):
        go(inside(lambda: step(work, 5)))


def test_a_coroutine_instead_of_a_function_is_refused_and_closed() -> None:
    """The message shows the call to write, and Python has nothing to complain of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TypeError, match=r"started already.*step\('a', work, …\)"):
            go(inside(lambda: step("a", work(5))))
        with pytest.raises(TypeError, match=r"step\(key, fn, \*args\)"):
            go(inside(lambda: step(work(5))))
        gc.collect()


@pytest.mark.parametrize(("fn", "kind"), [(None, "NoneType"), (5, "int"), ("work", "str")])
def test_what_cannot_be_called_is_refused(fn: Any, kind: str) -> None:
    """With the key and the type of what came."""
    with pytest.raises(TypeError, match=f"step 'a' needs a function to call, got {kind}"):
        go(inside(lambda: step("a", fn)))


BAD_IDS = ["", "x" * 1001, "a\ud800b"]
GOOD_IDS = ["x", "x" * 1000, "a\x00b", "€ 🎉", "a/b:c*%_[]\n"]


@pytest.mark.parametrize("key", BAD_IDS, ids=["empty", "1001", "surrogate"])
def test_a_wrong_key_is_refused_before_anything_runs(key: str) -> None:
    """As a step's key, a prefix, a variable's name, and a run id."""
    calls: list[int] = []

    @durable(store=MemoryStore())
    async def flow() -> None:
        await step(key, calls.append, 1)

    with pytest.raises(ValueError, match=r"a step key (must have 1 to 1,000|holds a lone)"):
        go(flow.run("r"))
    with pytest.raises(ValueError, match=r"a run id (must have 1 to 1,000|holds a lone)"):
        go(flow.run(key))
    with pytest.raises(ValueError, match=r"prefix (must have 1 to 1,000|holds a lone)"):
        go(inside(lambda: step.map(key, work, [1])))
    with pytest.raises(ValueError, match=r"name (must have 1 to 1,000|holds a lone)"):
        go(inside(lambda: current_run().set(key, 1)))
    with pytest.raises(ValueError):
        step(key=key)
    assert not calls


@pytest.mark.parametrize("key", GOOD_IDS, ids=ascii)
def test_any_other_text_is_a_key(key: str) -> None:
    """Any characters, up to 1,000 of them; it comes back as it was."""
    store = MemoryStore()

    @durable(store=store)
    async def flow() -> int:
        return await step(key, work, 5)

    assert go(flow.run(key)) == 5
    assert list(go(recorded(store, key)).root.steps) == [key]


@pytest.mark.parametrize("name", ["ttl", "timeout"])
@pytest.mark.parametrize(
    "value", [0, -1, float("inf"), float("nan"), timedelta(0), timedelta(seconds=-1)], ids=repr
)
def test_a_time_must_be_positive_and_finite(name: str, value: Any) -> None:
    """Zero isn't "for ever", and nothing lasts for infinity."""
    with pytest.raises(ValueError, match=f"{name} must be positive and finite"):
        step.options(**{name: value})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ttl": "5"}, "ttl must be seconds or a timedelta, got str"),
        ({"timeout": True}, "timeout must be seconds or a timedelta, got bool"),
        ({"retry": 3}, "retry must be a Retry, got int"),
        ({"save_errors": "ValueError"}, "save_errors must be an exception type.*got 'ValueError'"),
        ({"save_errors": [KeyError]}, "save_errors must be an exception type or a tuple"),
        ({"save_errors": (KeyError, KeyboardInterrupt)}, "KeyboardInterrupt.*derives from Exc"),
    ],
    ids=str,
)
def test_an_option_of_another_type_is_refused(options: dict[str, Any], said: str) -> None:
    """When it's given, not when it's needed."""
    with pytest.raises(TypeError, match=said):
        step.options(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"aliases": "old"}, "aliases must be a tuple of names, got str"),
        ({"aliases": ("old", 5)}, "an alias must be a str, got int"),
        ({"name": 5}, "name must be a str, got int"),
        ({"key": 5}, "key must be a str template or a function, got int"),
    ],
    ids=str,
)
def test_a_wrong_option_of_the_decorator_is_refused(options: dict[str, Any], said: str) -> None:
    """At decoration."""
    with pytest.raises(TypeError, match=said):
        step(**options)


def test_times_may_be_timedeltas() -> None:
    """As everywhere."""

    def use() -> Any:
        return step.options(ttl=timedelta(hours=1), timeout=timedelta(seconds=9))("a", work, 3)

    assert go(inside(use)) == 3


def test_a_value_that_cannot_be_stored_is_no_secret_in_the_message() -> None:
    """Paths and types are told, never values."""

    class Client:
        def __repr__(self) -> str:
            return "hunter2"

    async def make() -> Any:
        return {"client": Client()}

    with pytest.raises(NotSerializableError) as caught:
        go(inside(lambda: step("a", make)))
    assert caught.value.path == "$.client"
    assert caught.value.type_name.endswith("Client")
    assert "hunter2" not in str(caught.value)

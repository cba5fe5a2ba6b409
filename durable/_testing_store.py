"""The conformance checks of ``KeyValueStore``: one function for each promise."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

from durable._testing_site import (
    ODD_KEYS,
    Check,
    Site,
    expect,
    expect_equal,
    expect_raises,
)
from durable.store import KeyValueStore, SwappingStore

StoreSite: TypeAlias = Site[KeyValueStore]
Call: TypeAlias = Callable[[], Awaitable[object]]

_MEGABYTE = 1_000_000
_ODD_VALUES = (
    *("", " ", "\0", "a\0b", "\n", "\r\n", "\r", "a\n", "null", "NaN", "0", "1.0", "true", "{}"),
    *("'", '"', "\\", "\\n", "%s", "$1", "é", "e\u0301", "😀", "\u2028", "\ufeffa", "\U0010ffff"),
    *("x" * _MEGABYTE, "😀" * 100_000),
)
_SURROGATES = ("\ud800", "a\udfff", "\udcff" * 3)


async def every_method_works_first(site: StoreSite) -> None:
    """Every method works as the first call on a fresh store."""
    expect_equal(await site.store.get("a"), None, "get of a missing key is None")
    store = await site.fresh()
    await store.set("a", "1")
    expect_equal(await store.get("a"), "1", "a fresh store can be written to first")
    store = await site.fresh()
    expect_equal(await store.delete("a"), False, "delete on a fresh store is False")
    store = await site.fresh()
    expect_equal(await store.exists("a"), False, "exists on a fresh store is False")
    store = await site.fresh()
    expect_equal(await store.keys("*"), [], "keys of a fresh store are an empty list")
    store = await site.fresh()
    if isinstance(store, SwappingStore):
        expect_equal(await store.swap("a", None, "1"), True, "swap works on a fresh store")


async def values_come_back(site: StoreSite) -> None:
    """A value comes back exactly as it was set, whatever text it is."""
    for number, value in enumerate(_ODD_VALUES):
        await site.store.set(f"key-{number}", value)
    for number, value in enumerate(_ODD_VALUES):
        expect_equal(await site.store.get(f"key-{number}"), value, "a value comes back as it was")


async def keys_are_apart(site: StoreSite) -> None:
    """Keys that look alike, or are special elsewhere, are kept apart and come back as they were."""
    for key in ODD_KEYS:
        await site.store.set(key, f"value of {key}")
    for key in ODD_KEYS:
        expect_equal(
            await site.store.get(key), f"value of {key}", f"the key {key[:20]!r} has its own value"
        )
    expect_equal(
        await site.store.keys("*"), sorted(ODD_KEYS), "keys come back as they were, all of them"
    )
    for key in ODD_KEYS[::2]:
        expect_equal(await site.store.delete(key), True, f"delete({key[:20]!r}) finds it")
    for number, key in enumerate(ODD_KEYS):
        expect_equal(
            await site.store.exists(key), number % 2 == 1, f"deleting touches {key[:20]!r} alone"
        )


async def writes_replace(site: StoreSite) -> None:
    """A write replaces the earlier value, shorter or longer."""
    for value in ("short", "x" * 10_000, "s", ""):
        await site.store.set("a", value)
        expect_equal(await site.store.get("a"), value, "a write replaces the earlier value")
    expect_equal(await site.store.keys("*"), ["a"], "a key that is set again is listed once")


async def delete_tells(site: StoreSite) -> None:
    """``delete`` returns whether there was a value, and ``exists`` whether there is."""
    store = site.store
    await store.set("a", "")
    expect_equal(await store.exists("a"), True, "an empty value is a value")
    expect_equal(await store.delete("a"), True, "delete of what is there is True")
    expect_equal(await store.delete("a"), False, "delete of what is gone is False")
    expect_equal(await store.exists("a"), False, "what was deleted doesn't exist")
    expect_equal(await store.get("a"), None, "what was deleted has no value")
    expect_equal(await store.keys("*"), [], "what was deleted is not listed")
    await store.set("a", "2")
    expect_equal(await store.get("a"), "2", "a deleted key can be set again")


async def star_alone_is_special(site: StoreSite) -> None:
    """In a pattern ``*`` matches any text, and every other character only itself."""
    store = site.store
    for key in ODD_KEYS:
        await store.set(key, "")
    for key in ODD_KEYS:
        shown = f"{key[:20]!r}"
        expect_equal(await store.keys(key), [key], f"the pattern {shown} matches itself alone")
        starts = sorted(each for each in ODD_KEYS if each.startswith(key))
        expect_equal(await store.keys(key + "*"), starts, f"{shown} + '*' matches beginnings")
        ends = sorted(each for each in ODD_KEYS if each.endswith(key))
        expect_equal(await store.keys("*" + key), ends, f"'*' + {shown} matches endings")
        holds = sorted(each for each in ODD_KEYS if key in each)
        expect_equal(await store.keys(f"*{key}*"), holds, f"'*' around {shown} matches inside")


async def stars_stand_anywhere(site: StoreSite) -> None:
    """``*`` may stand several times in a pattern, match nothing, newlines, and stars in keys."""
    keys = ["a1b2c", "abc", "a\nb\nc", "acb", "a*c", "A1B2C", "*", "ab"]
    for key in keys:
        await site.store.set(key, "")
    table = {
        "a*b*c": ["a\nb\nc", "a1b2c", "abc"],
        "a*c": ["a\nb\nc", "a*c", "a1b2c", "abc"],
        "a**c": ["a\nb\nc", "a*c", "a1b2c", "abc"],
        "*b*": ["a\nb\nc", "a1b2c", "ab", "abc", "acb"],
        "a": [],
        "": [],
        "*": sorted(keys),
        "a*a": [],
        "ab*b": [],
    }
    for pattern, matching in table.items():
        expect_equal(await site.store.keys(pattern), sorted(matching), f"keys({pattern!r})")


async def many_keys_are_sorted(site: StoreSite) -> None:
    """``keys`` lists every key once, sorted by code point, however many there are."""
    keys = [f"{number * 7919 % 1200:x}" for number in range(1200)]
    keys += ["Z", "a-b", "a_b", "aB", "ä", "\uffff", "😀"]
    for start in range(0, len(keys), 50):
        await asyncio.gather(*(site.store.set(key, key) for key in keys[start : start + 50]))
    expect_equal(await site.store.keys("*"), sorted(set(keys)), "keys are sorted by code point")


async def ttl_ends_values(site: StoreSite) -> None:
    """A value is gone for every method once its ttl has passed, and no sooner than that."""
    store = site.store
    for key in ("get", "exists", "delete", "keys"):
        await store.set(key, "1", ttl=site.short)
    await store.set("long", "1", ttl=site.short * 1000)
    await store.set("good", "1")
    await site.lapse()
    expect_equal(await store.get("get"), None, "an expired value is not served")
    expect_equal(await store.exists("exists"), False, "an expired value doesn't exist")
    expect_equal(await store.delete("delete"), False, "delete of an expired value is False")
    expect_equal(await store.keys("*"), ["good", "long"], "expired keys alone are not listed")
    expect_equal(await store.get("long"), "1", "a value stays until its ttl has passed")
    await store.set("get", "2")
    expect_equal(await store.get("get"), "2", "an expired key can be set again")


async def writes_replace_ttl(site: StoreSite) -> None:
    """A write replaces the expiry of an earlier one: without ttl, a longer one, a shorter one."""
    store, short = site.store, site.short
    await store.set("none", "1", ttl=short)
    await store.set("none", "2")
    await store.set("longer", "1", ttl=short)
    await store.set("longer", "2", ttl=short * 1000)
    await store.set("shorter", "1")
    await store.set("shorter", "2", ttl=short)
    await site.lapse()
    expect_equal(await store.get("none"), "2", "a write without ttl takes the old expiry away")
    expect_equal(await store.get("longer"), "2", "a write with a longer ttl replaces the old one")
    expect_equal(await store.get("shorter"), None, "a write with a ttl adds it")


async def ttl_is_positive(site: StoreSite) -> None:
    """A ttl that isn't a positive number is a ``ValueError``, and nothing is written."""
    for ttl in (0, -1, 0.0, float("nan"), float("inf"), float("-inf")):
        await expect_raises(
            ValueError, site.store.set("a", "1", ttl=ttl), f"ttl={ttl} is refused with ValueError"
        )
    expect_equal(await site.store.keys("*"), [], "nothing is written under a refused ttl")
    await site.store.set("a", "1", ttl=10**9)
    expect_equal(await site.store.get("a"), "1", "a ttl of many years is kept")


async def surrogates_are_refused(site: StoreSite) -> None:
    """Lone surrogates are a ``ValueError`` in keys, values and patterns; nothing is written."""
    store = site.store
    for bad in _SURROGATES:
        calls: list[tuple[str, Call]] = [
            ("get", partial(store.get, bad)),
            ("set of the key", partial(store.set, bad, "1")),
            ("set of the value", partial(store.set, "a", bad)),
            ("delete", partial(store.delete, bad)),
            ("exists", partial(store.exists, bad)),
            ("keys", partial(store.keys, bad)),
        ]
        if isinstance(store, SwappingStore):
            calls.append(("swap of the value", partial(store.swap, "a", None, bad)))
        for name, call in calls:
            await expect_raises(ValueError, call(), f"{name} refuses lone surrogates: {bad!r}")
    expect_equal(await store.keys("*"), [], "nothing is written of a refused text")


async def empty_keys_are_refused(site: StoreSite) -> None:
    """The empty key is a ``ValueError``."""
    store = site.store
    calls: list[tuple[str, Call]] = [
        ("get", partial(store.get, "")),
        ("set", partial(store.set, "", "1")),
        ("delete", partial(store.delete, "")),
        ("exists", partial(store.exists, "")),
    ]
    for name, call in calls:
        await expect_raises(ValueError, call(), f"{name} refuses the empty key")


async def other_types_are_refused(site: StoreSite) -> None:
    """Keys and values that are no str are a ``TypeError``, and nothing is written."""
    store: Any = site.store
    for bad in (None, 1, b"a", ["a"]):
        calls: list[tuple[str, Call]] = [
            ("get", partial(store.get, bad)),
            ("delete", partial(store.delete, bad)),
            ("exists", partial(store.exists, bad)),
            ("set of the key", partial(store.set, bad, "1")),
            ("set of the value", partial(store.set, "a", bad)),
        ]
        for name, call in calls:
            await expect_raises(TypeError, call(), f"{name} refuses {bad!r}")
    expect_equal(await store.keys("*"), [], "nothing is written of a refused type")


async def tasks_may_share(site: StoreSite) -> None:
    """Many tasks may use one store at once."""
    keys = [f"key-{number:03}" for number in range(100)]
    await asyncio.gather(*(site.store.set(key, f"value of {key}") for key in keys))
    values = await asyncio.gather(*(site.store.get(key) for key in keys))
    expect_equal(values, [f"value of {key}" for key in keys], "100 writes at once all count")
    await asyncio.gather(*(site.store.set("one", "x" * 1000 + str(n)) for n in range(20)))
    value = await site.store.get("one")
    whole = value is not None and value.startswith("x" * 1000) and value[1000:].isdigit()
    expect(whole, "of 20 writes at once to one key a whole one stands")
    gone = await asyncio.gather(*(site.store.delete("one") for _ in range(10)))
    expect_equal(sum(gone), 1, "of 10 deletions at once exactly one finds the value")


async def cancelling_harms_nothing(site: StoreSite) -> None:
    """A cancelled call leaves the old value or the new one, and a store that works."""
    store = site.store
    await store.set("a", "old")
    for pauses in range(6):
        task = asyncio.ensure_future(store.set("a", "new" * 1000))
        for _ in range(pauses):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        expect(
            await store.get("a") in ("old", "new" * 1000),
            "a cancelled set leaves the old value or the new one",
        )
    await store.set("b", "1")
    expect_equal(await store.get("b"), "1", "the store works after a cancelled call")
    expect_equal(await store.keys("*"), ["a", "b"], "a cancelled set leaves nothing else behind")


async def clients_see_each_other(site: StoreSite) -> None:
    """A second client of the same data sees what the first one wrote, and the other way round."""
    second = await site.second()
    await site.store.set("a", "1")
    expect_equal(await second.get("a"), "1", "a second client sees what was set")
    await second.set("a", "2")
    expect_equal(await site.store.get("a"), "2", "the first client sees what the second set")
    expect_equal(await second.delete("a"), True, "a second client can delete")
    expect_equal(await site.store.keys("*"), [], "the first client sees the deletion")


async def swap_compares(site: StoreSite) -> None:
    """``swap``, where it is offered, writes only over what is expected, atomically."""
    store = site.store
    if not isinstance(store, SwappingStore):
        return
    expect_equal(await store.swap("a", "0", "1"), False, "swap over a missing key is refused")
    expect_equal(await store.swap("a", None, ""), True, "swap over nothing writes")
    expect_equal(await store.swap("a", None, "1"), False, "an empty value isn't nothing")
    expect_equal(await store.swap("a", "", "1"), True, "swap over what is expected writes")
    expect_equal(await store.swap("a", "2", "3"), False, "swap over another value is refused")
    expect_equal(await site.store.get("a"), "1", "a refused swap writes nothing")
    won = await asyncio.gather(*(store.swap("a", "1", f"new {n}") for n in range(20)))
    expect_equal(sum(won), 1, "of 20 swaps at once exactly one wins")
    winner = f"new {won.index(True)}"
    expect_equal(await site.store.get("a"), winner, "the winner's value stands")
    await expect_raises(ValueError, store.swap("a", winner, "2", ttl=0), "swap refuses ttl=0")
    expect_equal(await site.store.get("a"), winner, "nothing is written under a refused ttl")


async def swap_takes_ttl(site: StoreSite) -> None:
    """``swap``, where it is offered, sets and replaces the expiry; what has expired is nothing."""
    store = site.store
    if not isinstance(store, SwappingStore):
        return
    await store.swap("a", None, "1", ttl=site.short)
    await store.swap("b", None, "1", ttl=site.short)
    await store.swap("b", "1", "2")
    await site.lapse()
    expect_equal(await site.store.get("a"), None, "swap's ttl ends the value")
    expect_equal(await site.store.get("b"), "2", "swap without ttl takes the old expiry away")
    expect_equal(await store.swap("a", "1", "2"), False, "an expired value isn't expected")
    expect_equal(await store.swap("a", None, "2"), True, "what has expired is nothing")


STORE_CHECKS: tuple[Check[KeyValueStore], ...] = tuple(
    Check(function)
    for function in (
        every_method_works_first,
        values_come_back,
        keys_are_apart,
        writes_replace,
        delete_tells,
        star_alone_is_special,
        stars_stand_anywhere,
        many_keys_are_sorted,
        ttl_ends_values,
        writes_replace_ttl,
        ttl_is_positive,
        surrogates_are_refused,
        empty_keys_are_refused,
        other_types_are_refused,
        tasks_may_share,
        cancelling_harms_nothing,
        clients_see_each_other,
        swap_compares,
        swap_takes_ttl,
    )
)

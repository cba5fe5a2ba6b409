"""``StatePersistence``: versions, conflicts and literal prefixes, on any store."""

import asyncio
from datetime import timedelta

import pytest
from five_method_store import FiveMethodStore
from flows import under_clock

from durable import (
    MemoryStore,
    ResumeState,
    StaleVersionError,
    StateFormatError,
    StatePersistence,
)

STATE = ResumeState().with_value("flight", 1)


def leisurely(kind):
    """Return a kind of store whose reads let others run before they return."""

    class Leisurely(kind):
        async def get(self, key):
            value = await super().get(key)
            await asyncio.sleep(0)
            return value

    return Leisurely


STORES = {"five methods": leisurely(FiveMethodStore), "memory": leisurely(MemoryStore)}


@pytest.fixture(params=STORES.values(), ids=STORES)
def store(request):
    return request.param()


def test_every_save_makes_a_new_version(store):
    """Versions count from 1, whatever version the state itself says."""
    saved = StatePersistence(store)

    async def main():
        assert await saved.load("a") is None
        assert not await saved.exists("a")
        assert await saved.save("a", STATE) == 1
        assert await saved.save("a", STATE) == 2
        loaded = await saved.load("a")
        assert (loaded.version, loaded.steps) == (2, STATE.steps)
        assert await saved.save("a", loaded.with_value("flight", 2)) == 3
        assert (await saved.load("a")).steps["flight"].value == 2
        assert await saved.exists("a")
        assert await saved.delete("a") is True
        assert await saved.delete("a") is False
        assert await saved.save("a", STATE) == 1

    asyncio.run(main())


def test_a_stale_save_is_refused_and_shows_what_is_there(store):
    """``expected_version`` that isn't the current one raises, with the state as it stands."""
    saved = StatePersistence(store)

    async def main():
        assert await saved.save("a", STATE, expected_version=0) == 1
        assert await saved.save("a", STATE.with_value("hotel", 2), expected_version=1) == 2
        for expected in (0, 1, 3):
            with pytest.raises(StaleVersionError) as raised:
                await saved.save("a", STATE, expected_version=expected)
            error = raised.value
            assert (error.run_id, error.expected, error.actual) == ("a", expected, 2)
            assert error.current == await saved.load("a")
        with pytest.raises(StaleVersionError) as raised:
            await saved.save("new", STATE, expected_version=1)
        assert (raised.value.actual, raised.value.current) == (0, None)
        assert not await saved.exists("new")

    asyncio.run(main())


def test_of_concurrent_savers_one_wins(store):
    """Savers that expect the same version: exactly one saves, the others are told."""
    savers = [StatePersistence(store, "p:") for _ in range(3)]

    async def main():
        await savers[0].save("a", STATE)
        saves = (saver.save("a", STATE, expected_version=1) for saver in savers)
        results = await asyncio.gather(*saves, return_exceptions=True)
        assert [result for result in results if isinstance(result, int)] == [2]
        assert sum(isinstance(result, StaleVersionError) for result in results) == 2

    asyncio.run(main())


def test_concurrent_savers_without_expectation_all_save(store):
    """None of the versions is given twice."""
    saved = StatePersistence(store)

    async def main():
        versions = await asyncio.gather(*(saved.save("a", STATE) for _ in range(10)))
        assert sorted(versions) == list(range(1, 11))

    asyncio.run(main())


def test_metadata(store):
    """Metadata is saved with the state and joins what it has."""
    saved = StatePersistence(store)

    async def main():
        await saved.save("a", STATE, metadata={"by": "me", "state": 1})
        loaded = await saved.load("a")
        assert loaded.metadata == {"by": "me", "state": 1}
        await saved.save("a", loaded, metadata={"by": "you"})
        assert (await saved.load("a")).metadata == {"by": "you", "state": 1}

    asyncio.run(main())


def test_ttl():
    """A saved state goes when its ttl has passed; a later save replaces it."""
    saved = StatePersistence(MemoryStore())

    async def test(clock):
        await saved.save("a", STATE, ttl=10)
        await saved.save("b", STATE, ttl=timedelta(seconds=10))
        await saved.save("b", STATE)
        await clock.advance(11)
        assert await saved.load("a") is None
        assert await saved.list() == ["b"]
        assert await saved.save("a", STATE, expected_version=0) == 1
        for ttl in (0, -1, float("inf")):
            with pytest.raises(ValueError, match="ttl"):
                await saved.save("a", STATE, ttl=ttl)

    under_clock(test)


def test_prefixes_are_literal(store):
    """``*`` in a prefix is a star, and a prefix lists only what is under it."""

    async def main():
        star, other = StatePersistence(store, "s*:"), StatePersistence(store, "sx:")
        await star.save("one", STATE)
        await other.save("two", STATE)
        await other.save("t*", STATE)
        assert await star.list() == ["one"]
        assert await other.list() == ["t*", "two"]
        assert await other.list("t*") == ["t*"]
        assert await other.list("tw") == ["two"]
        assert await star.load("two") is None

    asyncio.run(main())


def test_keys_are_prefix_and_run_id(store):
    """Other tools find a state under the documented key."""

    async def main():
        await StatePersistence(store).save("a/b", STATE)
        assert await store.keys("*") == ["workflow:state:a/b"]

    asyncio.run(main())


def test_damaged_text_is_no_missing_state(store):
    """Damage is raised by ``load`` and ``save``, names the run, and is left as it was."""
    saved = StatePersistence(store)

    async def main():
        await saved.save("a", STATE)
        text = await store.get("workflow:state:a")
        await store.set("workflow:state:a", text[:-2])
        for call in (saved.load("a"), saved.save("a", STATE)):
            with pytest.raises(StateFormatError, match="saved state of 'a'"):
                await call
        assert await store.get("workflow:state:a") == text[:-2]

    asyncio.run(main())


def test_misuse(store):
    """Wrong arguments are refused before the store is asked."""
    saved = StatePersistence(store)

    async def main():
        with pytest.raises(TypeError, match="ResumeState, got dict"):
            await saved.save("a", {})
        with pytest.raises(ValueError, match="run id"):
            await saved.save("", STATE)
        with pytest.raises(TypeError, match="run id"):
            await saved.load(None)

    asyncio.run(main())
    with pytest.raises(ValueError, match="prefix"):
        StatePersistence(store, "")
    with pytest.raises(TypeError, match="store"):
        StatePersistence(object())

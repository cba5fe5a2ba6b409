"""A run recorded under another version of its function: refused, restarted or migrated."""

import asyncio

import pytest
from flows import Effects, flaky_memory, under_clock

from durable import (
    DurableWarning,
    MemoryStore,
    NotSerializableError,
    ResumeState,
    Runs,
    StoreError,
    VersionMismatchError,
    current_run,
    durable,
    recover,
    step,
)

CHARGED = {"charge": 10}


def checkout(store, effects, *, crash=False, **options):
    @durable(store=store, name="checkout", **options)
    async def checkout(amount: int = 10) -> int:
        run = current_run()
        effects.append(("key", run.idempotency_key("charge")))
        charge = await step("charge", effects.do, amount)
        await run.set("charged", charge)
        if crash:
            raise RuntimeError("crashed")
        return charge

    return checkout


async def crashed(store, effects, **options):
    """Leave run ``a`` of version 1 behind, failed after its step."""
    with pytest.raises(RuntimeError):
        await checkout(store, effects, crash=True, **options).run("a")


def charges(effects):
    return [effect for effect in effects if isinstance(effect, int)]


async def snapshot(store):
    """Return everything the store has of run ``a`` that a user can see."""
    runs = Runs(store)
    info, log = await runs.get("a"), await store.read("a")
    facts = (info.status, info.version, info.error, info.held, info.steps, info.variables)
    return facts, tuple(log.lines), await runs.state("a")


def test_another_version_is_refused():
    """By default it raises, executes nothing, and leaves the run as it was."""
    store, effects = MemoryStore(), Effects()

    async def main():
        await crashed(store, effects)
        before, done = await snapshot(store), list(effects)
        later = checkout(store, effects, version=2)
        for call in (later.run("a"), later.resume("a")):
            with pytest.raises(VersionMismatchError) as raised:
                await call
            error = raised.value
            assert (error.run_id, error.stored, error.requested) == ("a", 1, 2)
        assert await snapshot(store) == before
        assert effects == done
        assert await checkout(store, effects).run("a") == 10

    asyncio.run(main())
    assert charges(effects) == [10]


def test_an_older_version_is_refused_too():
    """Code that was rolled back doesn't touch what newer code recorded."""
    store, effects = MemoryStore(), Effects()

    async def main():
        await crashed(store, effects, version=2)
        with pytest.raises(VersionMismatchError):
            await checkout(store, effects).run("a")

    asyncio.run(main())


def test_recover_reports_another_version_and_leaves_the_run():
    """It is among the failed of the report, and still there for the code that fits."""
    store, effects = MemoryStore(), Effects()

    async def main():
        await checkout(store, effects).submit("a")
        report = await recover(checkout(store, effects, version=2))
        assert isinstance(report.failed["a"], VersionMismatchError)
        report = await recover(checkout(store, effects))
        assert report.finished == ("a",)

    asyncio.run(main())


def test_a_finished_run_gives_its_result_under_any_version():
    """What is finished isn't executed again, so its version doesn't matter."""
    store, effects = MemoryStore(), Effects()

    async def main():
        await checkout(store, effects).run("a")
        assert await checkout(store, effects, version=2).run("a") == 10

    asyncio.run(main())


def test_restart():
    """``"restart"`` forgets what was recorded; variables and idempotency keys are new."""
    store, effects, events = MemoryStore(), Effects(), []
    options = {"version": 2, "on_version_mismatch": "restart", "on_event": events.append}

    async def main():
        await crashed(store, effects)
        assert await checkout(store, effects, crash=False, **options).run("a", 20) == 20
        info = await Runs(store).get("a")
        assert (info.version, info.variables, info.status) == (2, {"charged": 20}, "finished")

    asyncio.run(main())
    assert charges(effects) == [10, 20]
    keys = [effect for effect in effects if isinstance(effect, tuple)]
    assert len(set(keys)) == 2
    assert "RunRestarted" in [type(event).__name__ for event in events]


def test_restart_without_arguments_takes_the_stored_ones():
    """``resume`` restarts with the arguments that the run was begun with."""
    store, effects = MemoryStore(), Effects()

    async def main():
        await crashed(store, effects)
        later = checkout(store, effects, version=2, on_version_mismatch="restart")
        assert await later.resume("a") == 10

    asyncio.run(main())
    assert charges(effects) == [10, 10]
    keys = [effect for effect in effects if isinstance(effect, tuple)]
    assert len(set(keys)) == 2


def migrate(state: ResumeState) -> ResumeState:
    return state.with_value("charge", 99)


async def migrate_later(state: ResumeState) -> ResumeState:
    await asyncio.sleep(0)
    return migrate(state)


@pytest.mark.parametrize("migration", [migrate, migrate_later])
def test_migration(migration):
    """A function, sync or async, turns the old state into the one to go on from."""
    store, effects, seen = MemoryStore(), Effects(), []

    def watched(state):
        seen.append(state)
        return migration(state)

    async def main():
        await crashed(store, effects)
        later = checkout(store, effects, version=2, on_version_mismatch=watched)
        assert await later.run("a") == 99
        assert (await Runs(store).get("a")).version == 2

    asyncio.run(main())
    (state,) = seen
    assert {key: record.value for key, record in state.steps.items()} == CHARGED
    assert state.function_version == 1
    assert charges(effects) == [10]
    keys = [effect for effect in effects if isinstance(effect, tuple)]
    assert len(set(keys)) == 1, "a migration keeps the idempotency keys"


def fails(state):
    raise LookupError("can't migrate")


async def fails_later(state):
    raise LookupError("can't migrate")


def gives_nothing(state):
    return None


@pytest.mark.parametrize(
    ("migration", "error"),
    [(fails, LookupError), (fails_later, LookupError), (gives_nothing, TypeError)],
)
def test_when_the_migration_raises_nothing_has_changed(migration, error):
    """The run is as it was, to the last line, and the error goes to the caller."""
    store, effects = MemoryStore(), Effects()

    async def main():
        await crashed(store, effects)
        before = await snapshot(store)
        later = checkout(store, effects, version=2, on_version_mismatch=migration)
        with pytest.raises(error):
            await later.run("a")
        assert await snapshot(store) == before
        assert await checkout(store, effects).run("a") == 10

    asyncio.run(main())
    assert charges(effects) == [10]


@pytest.mark.parametrize("policy", ["restart", migrate])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_leaves_the_old_state_or_the_new_one(policy, when):
    """A process that dies as the change is written leaves one of the two, whole."""
    store, effects = flaky_memory(), Effects()

    async def test(clock):
        await crashed(store, effects)
        before = await snapshot(store)
        later = checkout(store, effects, version=2, on_version_mismatch=policy)
        store.fail("append", times=None, when=when, error=StoreError("append", "a"))
        with pytest.raises(StoreError):
            await later.run("a")
        store.heal()
        await clock.advance(31)
        if when == "before":
            assert (await snapshot(store))[1:] == before[1:]
            assert await checkout(store, effects).run("a") == 10
        else:
            assert (await Runs(store).get("a")).version == 2
            assert await later.run("a") == (10 if policy == "restart" else 99)

    under_clock(test)


def test_a_restart_writes_once():
    """The new beginning and the new version go out in one append."""
    store, effects = flaky_memory(), Effects()

    async def main():
        await crashed(store, effects)
        later = checkout(
            store, effects, crash=True, version=2, on_version_mismatch="restart", durability="exit"
        )
        store.reset()
        with pytest.raises(RuntimeError):
            await later.run("a")
        assert store.calls == {"claim": 1, "append": 2}  # the restart, and the end of the pass

    asyncio.run(main())


def test_arguments_that_cannot_be_loaded_stop_a_migration_before_it_happens():
    """``resume`` with no stored arguments raises and leaves the old version in place."""
    store, called = MemoryStore(), []

    def works(thing: object):
        raise RuntimeError

    async def body(thing: object):
        works(thing)

    def watched(state):
        called.append(state)
        return state

    async def main():
        with pytest.raises(RuntimeError):
            await durable(store=store, name="work")(body).run("a", object())
        later = durable(store=store, name="work", version=2, on_version_mismatch=watched)(body)
        with pytest.raises(NotSerializableError):
            await later.resume("a")
        assert (await Runs(store).get("a")).version == 1

    asyncio.run(main())
    assert called == []


def test_drift_only_warns_across_versions():
    """Other arguments under a key recorded by an older version warn, and the value is used."""
    store, effects = MemoryStore(), Effects()

    async def main():
        await crashed(store, effects)
        later = checkout(store, effects, version=2, on_version_mismatch=lambda state: state)
        with pytest.warns(DurableWarning) as warned:
            assert await later.run("a", 11) == 10
        assert any("recorded for other arguments" in str(each.message) for each in warned)

    asyncio.run(main())
    assert charges(effects) == [10]

"""``Runs``: looking at what a store holds, and steering it."""

import asyncio
from datetime import timedelta

import pytest
from flows import Effects, Gates, flaky_memory, mark, under_clock, until

from durable import (
    MemoryStore,
    RunBusyError,
    RunCancelledError,
    RunNotFoundError,
    Runs,
    current_run,
    durable,
    recover,
    step,
)


def work_on(store, effects, name="work", **options):
    @durable(store=store, name=name, **options)
    async def work(item: str = "x", fail: bool = False) -> str:
        await step("first", effects.do, item)
        await step("second", effects.do, item)
        if fail:
            raise ValueError(f"no {item}")
        return item

    return work


def ids(runs):
    return [run.run_id for run in runs]


# ``list``.


def test_list_by_status_name_and_prefix():
    """Runs are listed by id, of the status, name and prefix that are asked for."""
    store, effects = MemoryStore(), Effects()
    runs = Runs(store)

    async def main():
        work, other = work_on(store, effects), work_on(store, effects, "other")
        await work.submit("b")
        await work.run("a")
        await other.run("ab")
        with pytest.raises(ValueError):
            await other.run("c", "x", True)
        assert ids(await runs.list()) == ["a", "ab", "b", "c"]
        assert ids(await runs.list("finished")) == ["a", "ab"]
        assert ids(await runs.list(["failed", "pending"])) == ["b", "c"]
        assert ids(await runs.list(name="other")) == ["ab", "c"]
        assert ids(await runs.list(prefix="a")) == ["a", "ab"]
        assert ids(await runs.list("finished", "other", "a")) == ["ab"]
        assert await runs.list("paused") == []

    asyncio.run(main())


def test_pages():
    """``limit`` and ``after`` walk through all runs."""
    store, effects = MemoryStore(), Effects()
    runs = Runs(store)

    async def main():
        for number in range(5):
            await work_on(store, effects).submit(f"run {number}")
        first = await runs.list(limit=3)
        assert ids(first) == ["run 0", "run 1", "run 2"]
        assert ids(await runs.list(limit=3, after=first[-1].run_id)) == ["run 3", "run 4"]

    asyncio.run(main())


def test_prefixes_are_literal():
    """``*``, ``%`` and ``_`` in a prefix stand for themselves."""
    store, effects = MemoryStore(), Effects()

    async def main():
        for run_id in ("a*b", "axb", "a%b", "a_b"):
            await work_on(store, effects).submit(run_id)
        for run_id in ("a*", "a%", "a_"):
            assert ids(await Runs(store).list(prefix=run_id)) == [run_id + "b"]

    asyncio.run(main())


def test_misuse_of_list():
    """Unknown statuses and limits are refused, naming what there is."""

    async def main():
        runs = Runs(MemoryStore())
        with pytest.raises(ValueError, match=r"'done'.*finished"):
            await runs.list("done")
        with pytest.raises(ValueError, match="limit"):
            await runs.list(limit=0)
        with pytest.raises(TypeError, match="limit"):
            await runs.list(limit="1")

    asyncio.run(main())
    with pytest.raises(TypeError, match="store"):
        Runs(5)


# ``get`` and ``state``.


def test_get():
    """A run's facts: status, times, steps, result, variables."""
    store = MemoryStore()

    @durable(store=store, name="work", version=4)
    async def work() -> dict[str, int]:
        await step("first", Effects().do, 1)
        await current_run().set("seen", [1, 2])
        return {"done": 1}

    async def test(clock):
        started = clock.time()
        await work.run("a")
        info = await Runs(store).get("a")
        assert (info.run_id, info.name, info.status, info.version) == ("a", "work", "finished", 4)
        assert (info.attempts, info.recoveries, info.held, info.steps) == (1, 0, 0, 1)
        assert (info.created_at, info.updated_at) == (started, started)
        assert info.expires_at == started + 7 * 24 * 3600
        assert info.result == {"done": 1}
        assert info.variables == {"seen": [1, 2]}
        assert (await Runs(store).list())[0].name == "work"

    under_clock(test)


def test_a_running_run():
    """While it is executed a run is ``running`` and held."""
    store = MemoryStore()

    async def main():
        gates = Gates()

        @durable(store=store)
        async def work():
            await step("wait", gates.wait)

        task = asyncio.create_task(work.run("a"))
        await until(gates.reached, task)
        info = await Runs(store).get("a")
        assert info.status == "running"
        assert 0 < info.held <= 30
        gates.go.set()
        await task

    asyncio.run(main())


def test_an_unknown_run():
    """What isn't there is ``RunNotFoundError``, a ``LookupError``."""

    async def main():
        runs = Runs(MemoryStore())
        for call in (runs.get("a"), runs.state("a"), runs.get("a/b"), runs.forget_step("a", "b")):
            with pytest.raises(RunNotFoundError):
                await call
        assert await runs.delete("a") is False

    asyncio.run(main())


def test_child_runs():
    """A child is found as ``parent/key``, with its own steps and state, even if keys nest."""
    store, effects = MemoryStore(), Effects()

    @durable(store=store, name="inner")
    async def inner(depth: int) -> int:
        await step("deep", effects.do, depth)
        if depth:
            await step("in/ner", inner, depth - 1)
        return depth

    @durable(store=store, name="outer")
    async def outer():
        await step("a", inner, 0)
        await step("a/b", inner, 1)

    async def main():
        runs = Runs(store)
        await outer.run("run/1")
        info = await runs.get("run/1")
        assert [child.run_id for child in info.children] == ["run/1/a", "run/1/a/b"]
        child = await runs.get("run/1/a/b")
        assert (child.name, child.status, child.result, child.steps) == ("inner", "finished", 1, 2)
        assert (await runs.get("run/1/a/b/in/ner")).result == 0
        assert list((await runs.state("run/1/a/b")).steps) == ["deep", "in/ner"]
        assert list((await runs.state("run/1/a/b/in/ner")).steps) == ["deep"]
        with pytest.raises(RunNotFoundError):
            await runs.get("run/1/a/c")
        with pytest.raises(ValueError, match="child run"):
            await runs.forget_step("run/1/a", "deep")

    asyncio.run(main())


# ``delete`` and ``delete_finished``.


def test_delete():
    """A deleted run is gone with everything it had, and its id begins anew."""
    store, effects = MemoryStore(), Effects()

    async def main():
        work, runs = work_on(store, effects), Runs(store)
        await work.run("a")
        await work.run("ab")
        assert await runs.delete("a") is True
        assert await runs.delete("a") is False
        assert ids(await runs.list()) == ["ab"]
        await work.run("a")
        assert len(effects) == 6

    asyncio.run(main())


def test_a_held_run_is_not_deleted():
    """Deleting what somebody executes is refused."""
    store = MemoryStore()

    async def main():
        gates = Gates()

        @durable(store=store)
        async def work():
            return await step("wait", gates.wait)

        task = asyncio.create_task(work.run("a"))
        await until(gates.reached, task)
        with pytest.raises(RunBusyError):
            await Runs(store).delete("a")
        gates.go.set()
        assert await task == "gone on"

    asyncio.run(main())


def test_delete_finished():
    """Only ended runs that are old enough go; ``0`` takes all of them."""
    store, effects = MemoryStore(), Effects()

    async def test(clock):
        work, runs = work_on(store, effects), Runs(store)
        await work.run("old")
        await work.submit("cancelled")
        await mark(store, "cancelled", "cancelled", "work")
        await work.submit("pending")
        with pytest.raises(ValueError):
            await work.run("failed", "x", True)
        await clock.advance(100)
        await work.run("new")
        assert await runs.delete_finished(timedelta(seconds=200)) == 0
        assert await runs.delete_finished(50) == 2
        assert ids(await runs.list()) == ["failed", "new", "pending"]
        assert await runs.delete_finished(0) == 1
        assert ids(await runs.list()) == ["failed", "pending"]
        with pytest.raises(ValueError, match="older_than"):
            await runs.delete_finished(-1)

    under_clock(test)


def test_delete_finished_takes_more_than_a_page():
    """However many have ended, all are removed."""
    store, effects = MemoryStore(), Effects()

    async def main():
        work = work_on(store, effects)
        for number in range(230):
            await work.run(f"run {number}")
        assert await Runs(store).delete_finished(0) == 230

    asyncio.run(main())


def test_delete_finished_passes_over_a_run_that_began_anew():
    """A run that somebody took up meanwhile stays."""
    store, effects = flaky_memory(), Effects()

    async def main():
        gates = Gates()

        @durable(store=store, name="again")
        async def again():
            if gates.go.is_set():
                gates.go.clear()
            else:
                await step("wait", gates.wait)

        gates.go.set()
        await again()
        await work_on(store, effects).run("z")
        held = store.hold("delete_run")
        deleting = asyncio.create_task(Runs(store).delete_finished(0))
        await until(held.reached, deleting)
        task = asyncio.create_task(again())
        await until(gates.reached, task)
        held.set()
        assert await deleting == 1
        gates.go.set()
        await task

    asyncio.run(main())


# ``forget_step``.


def test_forget_step_of_a_failed_run():
    """The step runs again at the next pass, the others don't; the run stays failed till then."""
    store, effects = MemoryStore(), Effects()

    async def main():
        work, runs = work_on(store, effects), Runs(store)
        with pytest.raises(ValueError):
            await work.run("a", "x", True)
        await runs.forget_step("a", "second")
        info = await runs.get("a")
        assert (info.status, info.error, info.held) == ("failed", "ValueError: no x", 0)
        assert list((await runs.state("a")).steps) == ["first"]
        assert (await recover(work)).finished == ()
        with pytest.raises(ValueError):
            await work.resume("a")
        assert len(effects) == 3

    asyncio.run(main())


def test_forget_step_of_a_finished_run():
    """It is pending then and has no result; ``run`` executes what was forgotten."""
    store, effects = MemoryStore(), Effects()

    async def main():
        work, runs = work_on(store, effects), Runs(store)
        await work.run("a")
        await runs.forget_step("a", "first")
        info = await runs.get("a")
        assert (info.status, info.result, info.steps) == ("pending", None, 1)
        assert await work.run("a") == "x"
        assert (await runs.get("a")).status == "finished"
        assert len(effects) == 3
        assert await work.run("a") == "x"
        assert len(effects) == 3

    asyncio.run(main())


def test_forget_step_that_cannot_be():
    """An unknown step names the known ones; held and cancelled runs are refused."""
    store, effects = MemoryStore(), Effects()

    async def main():
        runs, gates = Runs(store), Gates()
        await work_on(store, effects).run("a")
        with pytest.raises(LookupError, match=r"'third'.*'first', 'second'"):
            await runs.forget_step("a", "third")

        @durable(store=store)
        async def work():
            await step("first", effects.do)
            await step("wait", gates.wait)

        task = asyncio.create_task(work.run("b"))
        await until(gates.reached, task)
        with pytest.raises(RunBusyError):
            await runs.forget_step("b", "first")
        gates.go.set()
        await task
        await runs.forget_step("b", "first")
        await mark(store, "b", "cancelled", work.name)
        with pytest.raises(RunCancelledError):
            await runs.forget_step("b", "wait")

    asyncio.run(main())


def test_a_step_is_forgotten_with_what_it_asked_for():
    """Nested steps and child runs of a forgotten step are done again, too."""
    store, effects = MemoryStore(), Effects()

    @durable(store=store, name="inner")
    async def inner():
        return await step("deep", effects.do, "deep")

    @durable(store=store)
    async def outer():
        await step("child", inner)

    async def main():
        await outer.run("a")
        await Runs(store).forget_step("a", "child")
        await outer.run("a")
        assert effects == ["deep", "deep"]

    asyncio.run(main())

"""Events and log lines: everything that happens is told, and nobody who listens can do harm."""

import asyncio
import logging
import subprocess
import sys
import warnings

import pytest
from flows import Effects, Gates, abandoned, flaky_memory, under_clock

from durable import (
    DurableWarning,
    Event,
    MemoryStore,
    Retry,
    Runs,
    current_run,
    durable,
    step,
)
from durable import _events as events_module


def names(events):
    return [type(event).__name__ for event in events]


def simple(store, **options):
    @durable(store=store, name="simple", **options)
    async def simple():
        return await step("one", Effects().do, 1)

    return simple


def subclasses(kind):
    return {kind, *(each for sub in kind.__subclasses__() for each in subclasses(sub))}


def test_the_events_of_a_run_in_order():
    """A run begins, its step begins, completes and is saved, and the run completes."""
    events, store = [], MemoryStore()
    work = simple(store, on_event=events.append)

    async def main():
        await work.run("a")
        first = names(events)
        events.clear()
        await work.run("a")
        return first, names(events)

    first, again = asyncio.run(main())
    assert first == [
        "RunBegun",
        "StepBegun",
        "StepCompleted",
        "StateSaved",
        "StateSaved",
        "RunCompleted",
    ]
    assert again == ["RunCompleted"]


def test_every_kind_of_event_is_told():
    """One long scenario in which each event of the library occurs."""
    store, events = flaky_memory(), []

    async def test(clock):
        for scenario in (steps_again, lost, cut_short, restarted):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DurableWarning)
                await scenario(store, events, clock)

    under_clock(test)
    kinds = {kind.__name__ for kind in subclasses(Event) if not kind.__subclasses__()}
    assert kinds - set(names(events)) == set()
    assert all(event.run_id for event in events)


async def steps_again(store, events, clock):
    """A failing run, then one that drifts, repeats, renames, retries and leaves a step out."""
    trouble, effects = [OSError(), OSError()], Effects()

    async def renamed(value):
        return value

    async def shaky():
        if trouble:
            raise trouble.pop()

    @durable(store=store, name="steps", on_event=events.append, drift="warn")
    async def steps(again: bool):
        await current_run().set("seen", again)
        await step("drifts", effects.do, again)
        await step("renamed", renamed if again else effects.do, 1)
        if not again:
            await step("left out", effects.do, 1)
            await step("fails", shaky)
        await step("repeated", effects.do, 1)
        await step("repeated", effects.do, 1)
        await step.options(retry=Retry(attempts=3, wait=1))("shaky", shaky)

    with pytest.raises(OSError):
        await steps.run("steps", False)
    trouble.append(OSError())
    await steps.run("steps", True)
    await steps.run("steps", True)


async def lost(store, events, clock):
    """A run that is taken over, first from a dead process, then from a stalled one."""
    gates = Gates()

    @durable(store=store, name="lost", on_event=events.append)
    async def wait():
        return await step("wait", gates.wait)

    await abandoned(wait, "lost", store, gates)
    await clock.advance(31)
    gates.reached.clear()
    task = asyncio.create_task(wait.run("lost"))
    await gates.reached.wait()
    await store.wrapped.delete_run("lost", held=True)
    gates.go.set()
    with pytest.raises(Exception, match="no longer ours"):
        await task


async def cut_short(store, events, clock):
    """A run whose task is cancelled."""
    gates = Gates()

    @durable(store=store, name="cut", on_event=events.append)
    async def wait():
        return await step("wait", gates.wait)

    task = asyncio.create_task(wait.run("cut"))
    await gates.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def restarted(store, events, clock):
    """A run that begins anew under another version."""
    work = simple(store, on_event=events.append)
    await work.submit("again")
    await work.options(version=2, on_version_mismatch="restart").run("again")


def test_every_event_is_public():
    """All kinds of events can be imported from the package."""
    import durable as package

    assert {kind.__name__ for kind in subclasses(Event)} - {"_"} <= set(package.__all__)


def test_run_begun_shows_what_was_recorded():
    """Its state has the steps of earlier passes, and the attempt is counted."""
    store, events = MemoryStore(), []

    @durable(store=store, on_event=events.append)
    async def work():
        await step("one", Effects().do, 1)
        raise ValueError

    async def main():
        for _ in range(2):
            with pytest.raises(ValueError):
                await work.run("a")

    asyncio.run(main())
    first, second = (event for event in events if type(event).__name__ == "RunBegun")
    assert (first.attempt, list(first.state.steps)) == (1, [])
    assert (second.attempt, list(second.state.steps)) == (2, ["one"])


def test_an_async_observer_is_awaited():
    """``on_event`` may be async; the run goes on when it has returned."""
    seen = []

    async def observe(event):
        await asyncio.sleep(0)
        seen.append(type(event).__name__)

    asyncio.run(simple(MemoryStore(), on_event=observe).run("a"))
    assert seen[0] == "RunBegun"
    assert seen[-1] == "RunCompleted"


async def raises_later(event):
    raise RuntimeError("observer")


def raises(event):
    raise RuntimeError("observer")


@pytest.mark.parametrize("observer", [raises, raises_later])
def test_an_observer_that_raises_is_harmless(observer, caplog):
    """What it raises is logged, and the run goes on as if nobody had listened."""
    store = MemoryStore()
    assert asyncio.run(simple(store, on_event=observer).run("a")) == 1
    assert asyncio.run(Runs(store).get("a")).status == "finished"
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "on_event raised for RunBegun"
    assert all(record.exc_info and record.run_id == "a" for record in caplog.records)


def test_what_the_failed_end_of_a_run_tells():
    """A run that couldn't be recorded as finished is told to have failed, not completed."""
    store, events = flaky_memory(), []

    async def test(clock):
        work = simple(store, on_event=events.append)
        store.fail("append", skip=1, times=None)
        with pytest.raises(Exception, match="the store failed"):
            await work.run("a")

    under_clock(test)
    assert names(events)[-1] == "RunFailed"
    assert "RunCompleted" not in names(events)


# Logging.


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("WARNING", []),
        ("INFO", ["RunBegun", "RunCompleted"]),
        (
            "DEBUG",
            ["RunBegun", "StepBegun", "StepCompleted", "StateSaved", "StateSaved", "RunCompleted"],
        ),
    ],
)
def test_log_lines_by_level(level, expected, caplog):
    """Runs are logged at INFO, steps at DEBUG, without any observer."""
    with caplog.at_level(level, logger="durable"):
        asyncio.run(simple(MemoryStore()).run("a"))
    assert [record.event for record in caplog.records] == expected


def test_extra_fields(caplog):
    """Log records carry the run, the step and the attempt as fields."""
    with caplog.at_level("DEBUG", logger="durable"):
        asyncio.run(simple(MemoryStore()).run("a"))
    begun = next(record for record in caplog.records if record.event == "StepBegun")
    assert (begun.run_id, begun.step, begun.path, begun.attempt) == ("a", "one", "", 1)
    assert begun.name == "durable"


def test_no_values_in_log_lines(caplog):
    """Arguments, results, variables, error texts: none of them gets into the log."""
    secret = "tok-5ecret"

    async def fails(value):
        raise ValueError(secret)

    @durable(store=MemoryStore(), name="work", drift="warn")
    async def work(token: str, again: bool):
        await current_run().set("token", token)
        await step("echo", Effects().do, token + str(again))
        if not again:
            await step.options(retry=Retry(attempts=2, wait=0))("fails", fails, token)
        return token

    async def main():
        with pytest.raises(ValueError):
            await work.run("a", secret, False)
        await work.run("a", secret, True)

    with caplog.at_level("DEBUG", logger="durable"), pytest.warns(DurableWarning) as warned:
        asyncio.run(main())
    formatter = logging.Formatter()
    lines = [formatter.format(record) + str(vars(record)) for record in caplog.records]
    assert len(lines) > 10
    assert not [line for line in lines if secret in line]
    assert not [each for each in warned if secret in str(each.message)]


def test_silent_unless_configured():
    """A program that doesn't configure logging sees nothing on its standard error."""
    program = """
import asyncio
from durable import MemoryStore, durable

@durable(store=MemoryStore())
async def fails():
    raise ValueError

try:
    asyncio.run(fails.run("a"))
except ValueError:
    pass
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stderr == b""
    assert done.stdout == b""


def test_the_logger_is_called_durable():
    """There is one logger, named after the package."""
    assert events_module.logger.name == "durable"

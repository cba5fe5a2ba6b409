"""Which failures are final, and what is never one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from step_helpers import (
    Boom,
    Failing,
    fail_then_run,
    go,
    recorded,
    step_flow,
)

from durable import (
    DurableWarning,
    MemoryStore,
    Retry,
    StepCompleted,
    StepError,
    durable,
    step,
)


class Declined(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code

    def __str__(self) -> str:
        return f"declined with code {self.code}"


class Stubborn(Exception):
    """Can't be made again from what it holds."""

    def __init__(self, client: object) -> None:
        super().__init__("stubborn")
        self.client = client

    def __reduce__(self) -> Any:
        raise TypeError("no copies")


async def two_failures(error: Exception, saved: Any) -> tuple[Exception, Exception, Failing]:
    """Return what a step raises on the first pass and on the second."""
    work, seen = Failing(1, error), []

    @durable(store=MemoryStore())
    async def flow() -> None:
        try:
            await step.options(save_errors=saved, retry=Retry(wait=0))("a", work)
        except Exception as caught:
            seen.append(caught)
        if len(seen) == 1:
            raise Boom

    await fail_then_run(flow)
    return seen[0], seen[1], work


@pytest.mark.parametrize("saved", [Declined, (KeyError, Declined), Exception])
def test_a_saved_failure_is_final_and_the_same_later(saved: Any) -> None:
    """It isn't retried, and a resume raises the same type with the same text and facts."""
    first, later, work = go(two_failures(Declined(51), saved))
    assert type(first) is type(later) is Declined
    assert str(first) == str(later) == "declined with code 51"
    assert later.code == 51
    assert work.calls == 1


def test_a_failure_that_cannot_be_rebuilt_is_a_step_error_from_the_first_pass_on() -> None:
    """It tells the original type, message and traceback; the original is the first one's cause."""
    original = Stubborn(object())
    first, later, work = go(two_failures(original, Stubborn))
    assert isinstance(first, StepError) and isinstance(later, StepError)
    assert first.__cause__ is original
    assert first.args == later.args
    assert (later.step, later.type_name, later.message) == ("a", "Stubborn", "stubborn")
    assert "Failing" in later.traceback or "raise self.error" in later.traceback
    assert work.calls == 1


def test_other_failures_are_not_saved() -> None:
    """A type outside of ``save_errors`` runs again on resume."""
    work = Failing(1, KeyError("x"))
    flow = step_flow(work, save_errors=Declined)
    with pytest.raises(KeyError):
        go(flow.run("r"))
    assert go(flow.run("r")) == 2


def test_a_saved_failure_completes_its_step() -> None:
    """It is a record and an event like any other result."""
    events: list[Any] = []
    store = MemoryStore()
    flow = step_flow(Failing(1, Declined(5)), store, save_errors=Declined)
    with pytest.raises(Declined):
        go(flow.options(on_event=events.append).run("r"))
    (completed,) = [event for event in events if isinstance(event, StepCompleted)]
    assert completed.record.error is not None
    assert completed.record.error.type_name == "Declined"


def test_asked_for_twice_a_saved_failure_is_raised_twice() -> None:
    """Within one pass too."""

    @durable(store=MemoryStore())
    async def flow() -> None:
        saving = step.options(save_errors=Declined)
        for _ in range(2):
            with pytest.raises(Declined):
                await saving("a", work)

    work = Failing(9, Declined(5))
    with pytest.warns(DurableWarning, match="more than once"):
        go(flow.run("r"))
    assert work.calls == 1


@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt])
def test_a_cancellation_is_never_a_failure_of_the_step(kind: type[BaseException]) -> None:
    """Nothing is recorded of it, retried or saved; what was done before stays."""
    store, calls = MemoryStore(), []

    async def before() -> int:
        calls.append("before")
        return 1

    async def work() -> str:
        calls.append("work")
        if len(calls) == 2:
            raise kind
        return "ok"

    @durable(store=store)
    async def flow() -> str:
        await step("before", before)
        return await step.options(retry=Retry(wait=0), save_errors=Exception)("a", work)

    with pytest.raises(kind):
        asyncio.run(flow.run("r"))
    found = go(recorded(store))
    assert list(found.root.steps) == ["before"]
    assert not found.root.attempts
    assert asyncio.run(flow.run("r")) == "ok"
    assert calls == ["before", "work", "work"]

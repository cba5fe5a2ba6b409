"""Attempts, their waits and limits, and which failures are final."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from step_helpers import (
    Boom,
    Failing,
    attempts,
    cancelled,
    go,
    recorded,
    step_flow,
    turns,
)

from durable import (
    MemoryStore,
    NotSerializableError,
    Retry,
    StepFailed,
    StepRetried,
    current_run,
    durable,
    step,
)
from durable.testing import ManualClock

seconds = st.floats(0, 1e6)


@st.composite
def retries(draw: st.DrawFn) -> Retry:
    wait, max_wait = sorted((draw(seconds), draw(seconds)))
    return Retry(
        attempts=draw(st.integers(1, 1000)),
        wait=wait,
        max_wait=max_wait,
        jitter=draw(st.floats(0, 10)),
    )


@given(retries(), st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_bounded(retry: Retry, attempt: int, random: float) -> None:
    """No wait is negative, infinite, or beyond the longest one and its jitter."""
    delay = retry.delay(attempt, random)
    assert 0 <= delay <= retry.max_wait * (1 + retry.jitter) * (1 + 1e-9)
    assert math.isfinite(delay)


@given(retries(), st.integers(1, 60))
def test_waits_double_up_to_the_longest(retry: Retry, attempt: int) -> None:
    """Without jitter each is twice the one before, until ``max_wait``."""
    now, then = retry.delay(attempt, 0), retry.delay(attempt + 1, 0)
    assert then == pytest.approx(min(2 * now, retry.max_wait)) or now == retry.max_wait


@given(retries(), st.integers(1, 100), st.floats(0, 1, exclude_max=True))
def test_jitter_only_makes_a_wait_longer(retry: Retry, attempt: int, random: float) -> None:
    """So what was said to be waited is waited at least."""
    assert retry.delay(attempt, random) >= retry.delay(attempt, 0)


@given(st.integers(-1000, 0))
def test_at_least_one_attempt_is_made(attempts: int) -> None:
    """Fewer than one is a mistake."""
    with pytest.raises(ValueError, match="at least 1"):
        Retry(attempts=attempts)


@given(st.sampled_from(["wait", "max_wait", "jitter"]), st.floats())
def test_times_are_finite_and_not_negative(name: str, value: float) -> None:
    """Negative, infinite and undefined numbers are refused."""
    assume(not 0 <= value < math.inf)
    with pytest.raises(ValueError, match=name):
        Retry(**{name: value})  # type: ignore[arg-type]


def test_a_wait_longer_than_the_longest_is_refused() -> None:
    """It would be cut down in silence."""
    with pytest.raises(ValueError, match=r"wait \(60\) is longer than max_wait \(30\)"):
        Retry(wait=60)


@pytest.mark.parametrize(
    "wrong",
    [{"attempts": "3"}, {"attempts": True}, {"wait": "1"}, {"on": "x"}, {"on": (KeyError, 5)}],
    ids=str,
)
def test_values_of_another_type_are_refused(wrong: dict[str, Any]) -> None:
    """At once, and naming the option."""
    with pytest.raises(TypeError, match=next(iter(wrong))):
        Retry(**wrong)


@pytest.mark.parametrize(
    ("on", "error", "wanted"),
    [
        (Exception, KeyError(), True),
        (KeyError, ValueError(), False),
        ((KeyError, OSError), ConnectionError(), True),
        (lambda error: "again" in str(error), ValueError("again"), True),
        (lambda error: "again" in str(error), ValueError("no"), False),
    ],
)
def test_on_says_which_failures_are_tried_again(on: Any, error: Exception, wanted: bool) -> None:
    """A type, a tuple of types, or a function of the exception."""
    assert Retry(on=on).wants(error) is wanted


def test_a_step_without_retry_is_tried_once() -> None:
    """Its failure is the caller's at once."""
    work = Failing(1)
    with pytest.raises(Boom):
        go(step_flow(work).run("r"))
    assert work.calls == 1


def test_each_attempt_waits_twice_as_long() -> None:
    """The waits are those of ``Retry``, by the clock."""
    times: list[float] = []

    async def fails() -> None:
        times.append(clock.time())
        raise Boom

    retry = Retry(attempts=5, wait=1, max_wait=4, jitter=0)
    with ManualClock(start=0, autojump=True) as clock, pytest.raises(Boom):
        go(step_flow(fails, retry=retry).run("r"))
    assert times == [0, 1, 3, 7, 11]


def test_the_record_counts_the_attempts() -> None:
    """A value that took three attempts says so, and replays as any other."""
    store, work = MemoryStore(), Failing(2)
    flow = step_flow(work, store, retry=Retry(wait=0))
    assert go(flow.run("r")) == 3
    assert go(recorded(store)).root.steps["a"].attempts == 3


def test_failed_attempts_are_on_record_before_the_wait() -> None:
    """With their error and the time of the next attempt; the last one has no next."""
    store, work = MemoryStore(), Failing(9)
    flow = step_flow(work, store, retry=Retry(attempts=2, wait=60, max_wait=60, jitter=0))

    async def main() -> None:
        task = asyncio.create_task(flow.run("r"))
        await turns()
        (first,) = await attempts(store)
        assert (first.attempt, first.error.message, first.next_at) == (1, "no luck", 1060)
        await clock.advance(60)
        with pytest.raises(Boom):
            await task
        assert [each.next_at for each in await attempts(store)] == [1060, None]

    with ManualClock(start=1000) as clock:
        go(main())


def test_a_crash_resets_neither_the_attempts_nor_the_wait() -> None:
    """The next pass waits the rest of the wait, and makes the attempts that are left."""
    work = Failing(9)
    flow = step_flow(work, retry=Retry(attempts=3, wait=60, max_wait=60, jitter=0))

    async def main() -> None:
        slept = asyncio.Event()
        crashing = asyncio.create_task(cancelled(flow.run("r"), slept))
        await clock.advance(50)
        slept.set()
        await crashing
        assert work.calls == 1
        task = asyncio.create_task(flow.run("r"))
        await clock.advance(9)
        assert work.calls == 1
        await clock.advance(1)
        assert work.calls == 2
        await clock.advance(120)
        with pytest.raises(Boom):
            await task
        assert work.calls == 3

    with ManualClock() as clock:
        go(main())


def test_an_attempt_cut_short_by_a_crash_does_not_count() -> None:
    """Only attempts that failed by themselves use up the set."""
    begun, calls = asyncio.Event(), []

    async def work() -> str:
        calls.append(1)
        if len(calls) == 1:
            begun.set()
            await asyncio.Event().wait()
        if len(calls) == 2:
            raise Boom
        return "ok"

    store = MemoryStore()
    flow = step_flow(work, store, retry=Retry(attempts=2, wait=0))

    async def main() -> Any:
        await cancelled(flow.run("r"), begun)
        assert not await attempts(store)
        return await flow.run("r")

    assert go(main()) == "ok"


def test_a_resume_begins_a_new_set_once_all_are_used_up() -> None:
    """The step failed; asking for it again is a new start."""
    work = Failing(5)
    flow = step_flow(work, retry=Retry(attempts=3, wait=0))
    with pytest.raises(Boom):
        go(flow.run("r"))
    assert work.calls == 3
    assert go(flow.run("r")) == 6


def test_a_failure_that_is_not_retried_leaves_a_whole_set_to_the_resume() -> None:
    """It used nothing up but its own pass."""
    errors = [KeyError("x"), OSError(), OSError()]
    calls: list[int] = []

    async def work() -> str:
        calls.append(1)
        if errors:
            raise errors.pop(0)
        return "ok"

    flow = step_flow(work, retry=Retry(attempts=3, wait=0, on=OSError))
    with pytest.raises(KeyError):
        go(flow.run("r"))
    assert go(flow.run("r")) == "ok"
    assert len(calls) == 4


def test_fewer_attempts_than_were_made_already_are_used_up() -> None:
    """The code now allows no more than have failed: the resume begins a new set."""
    work, allowed = Failing(9), 5

    @durable(store=MemoryStore())
    async def flow() -> Any:
        retry = Retry(attempts=allowed, wait=20, jitter=0)
        return await step.options(retry=retry)("a", work)

    async def main() -> None:
        nonlocal allowed
        slept = asyncio.Event()
        crashing = asyncio.create_task(cancelled(flow.run("r"), slept))
        await clock.advance(20)
        slept.set()
        await crashing
        assert work.calls == 2
        allowed = 2
        task = asyncio.create_task(flow.run("r"))
        await clock.advance(20)
        with pytest.raises(Boom):
            await task
        assert work.calls == 4

    with ManualClock() as clock:
        go(main())


def test_only_failures_that_retry_names_are_tried_again() -> None:
    """Another one is the step's failure at once."""
    work = Failing(1, KeyError("x"))
    with pytest.raises(KeyError):
        go(step_flow(work, retry=Retry(wait=0, on=OSError)).run("r"))
    assert work.calls == 1


def test_what_retrying_cannot_mend_is_not_retried() -> None:
    """A value that can't be stored is as bad the next time."""
    calls: list[int] = []

    async def work() -> Any:
        calls.append(1)
        return object()

    with pytest.raises(NotSerializableError):
        go(step_flow(work, retry=Retry(wait=0), save_errors=Exception).run("r"))
    assert len(calls) == 1


def test_misuse_is_never_saved_as_the_failure_of_a_step() -> None:
    """Once the code is mended the step goes well, whatever ``save_errors`` says."""
    value: Any = object()

    async def work() -> Any:
        return value

    flow = step_flow(work, save_errors=Exception)
    with pytest.raises(NotSerializableError):
        go(flow.run("r"))
    value = 1
    assert go(flow.run("r")) == 1


def test_a_timeout_is_for_each_attempt() -> None:
    """An attempt that takes too long fails with TimeoutError, and the next has its full time."""
    calls: list[int] = []

    async def work() -> str:
        calls.append(1)
        if len(calls) < 3:
            await asyncio.Event().wait()
        return "ok"

    store = MemoryStore()
    flow = step_flow(work, store, timeout=0.005, retry=Retry(attempts=3, wait=0))
    assert go(flow.run("r")) == "ok"
    assert [each.error.type_name for each in go(attempts(store))] == ["TimeoutError"] * 2


def test_a_timeout_without_retry_raises_timeout_error() -> None:
    """The builtin one; and the function was cancelled."""
    ended: list[BaseException] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            ended.append(error)
            raise

    with pytest.raises(TimeoutError):
        go(step_flow(work, timeout=0.001).run("r"))
    assert [type(each) for each in ended] == [asyncio.CancelledError]


def test_events_tell_of_failures() -> None:
    """Each retry with its delay, and the failure when no attempt is left."""
    events: list[Any] = []
    flow = step_flow(Failing(9), retry=Retry(attempts=2, wait=3, jitter=0))
    with ManualClock(autojump=True), pytest.raises(Boom):
        go(flow.options(on_event=events.append).run("r"))
    (retried,) = [event for event in events if isinstance(event, StepRetried)]
    (failed,) = [event for event in events if isinstance(event, StepFailed)]
    assert (retried.attempt, retried.delay, failed.attempts) == (1, 3, 2)


def test_the_idempotency_key_is_the_same_for_all_attempts() -> None:
    """Over retries and resumes."""
    seen: set[str] = set()
    work = Failing(3)

    async def charge() -> int:
        seen.add(current_run().idempotency_key())
        return await work()

    flow = step_flow(charge, retry=Retry(attempts=2, wait=0))
    with pytest.raises(Boom):
        go(flow.run("r"))
    go(flow.run("r"))
    assert work.calls == 4
    assert len(seen) == 1

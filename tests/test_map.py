"""``step.map``: one step per item, of which only the missing ones run."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from step_helpers import Boom, cancelled, go, recorded, turns

from durable import (
    DuplicateStepKeyError,
    MemoryStore,
    MissingDriverError,
    Retry,
    StepDriftError,
    durable,
    step,
)
from durable.testing import ManualClock


class Doubling:
    """Doubles numbers; fails for those in ``broken``, and counts how many run at once."""

    def __init__(self) -> None:
        self.broken: set[int] = set()
        self.calls: list[int] = []
        self.at_once = 0
        self.most_at_once = 0

    async def __call__(self, number: int) -> int:
        self.calls.append(number)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await turns(5 + number % 3)
        self.at_once -= 1
        if number in self.broken:
            raise Boom(number)
        return 2 * number


def flow_of(work: Any, items: Any, store: MemoryStore | None = None, **options: Any) -> Any:
    @durable(store=store or MemoryStore())
    async def flow() -> Any:
        return await step.map("double", work, items, **options)

    return flow


async def keys(store: MemoryStore) -> list[str]:
    return sorted((await recorded(store)).root.steps)


def test_results_come_in_the_order_of_the_items() -> None:
    """Whichever is done first; all of them at once."""
    work = Doubling()
    assert go(flow_of(work, range(10)).run("r")) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert work.most_at_once == 10


def test_each_item_is_a_step_with_a_numbered_key() -> None:
    """The prefix, a colon and the position."""
    store = MemoryStore()
    go(flow_of(Doubling(), (5, 6), store).run("r"))
    assert go(keys(store)) == ["double:0", "double:1"]


def test_keys_can_be_made_from_the_items() -> None:
    """So that items can be added in front without drift."""
    store = MemoryStore()
    go(flow_of(Doubling(), iter([5, 6]), store, key=lambda item: item * 11).run("r"))
    assert go(keys(store)) == ["double:55", "double:66"]


def test_no_items_give_no_results() -> None:
    """An empty map is no mistake."""
    assert go(flow_of(Doubling(), []).run("r")) == []


@pytest.mark.parametrize("limit", [1, 3])
def test_at_most_limit_run_at_once(limit: int) -> None:
    """The next item starts when one ends."""
    work = Doubling()
    assert go(flow_of(work, range(10), limit=limit).run("r")) == [2 * n for n in range(10)]
    assert work.most_at_once == limit


def test_sync_functions_and_options_work() -> None:
    """A sync function works in threads; ``step.options(…)`` holds for each item."""
    calls: list[int] = []

    def work(number: int) -> int:
        calls.append(number)
        if len(calls) == 1:
            raise Boom
        return number

    @durable(store=MemoryStore())
    async def flow() -> list[int]:
        return await step.options(retry=Retry(wait=0)).map("a", work, [1, 2], limit=1)

    assert go(flow.run("r")) == [1, 2]
    assert calls == [1, 1, 2]


def test_after_a_failure_only_the_missing_ones_run() -> None:
    """Nothing new starts after the first failure, what is under way is kept."""
    work = Doubling()
    work.broken = {4}
    store = MemoryStore()
    flow = flow_of(work, range(10), store, limit=3)
    with pytest.raises(Boom, match="4"):
        go(flow.run("r"))
    done = [n for n in work.calls if n != 4]
    assert len(done) < 9
    assert go(keys(store)) == [f"double:{n}" for n in done]
    work.broken.clear()
    work.calls.clear()
    assert go(flow.run("r")) == [2 * n for n in range(10)]
    assert sorted(work.calls) == sorted(set(range(10)) - set(done))


def test_after_a_crash_only_the_missing_ones_run() -> None:
    """A cancelled pass keeps what was completed."""
    begun, calls = asyncio.Event(), []

    async def work(number: int) -> int:
        calls.append(number)
        if number == 2 and not begun.is_set():
            begun.set()
            await asyncio.Event().wait()
        return number

    flow = flow_of(work, range(4), limit=1)

    async def main() -> list[int]:
        await cancelled(flow.run("r"), begun)
        return await flow.run("r")

    assert go(main()) == [0, 1, 2, 3]
    assert calls == [0, 1, 2, 2, 3]


def test_all_failures_under_way_are_awaited() -> None:
    """The first one is raised, and none is left behind unseen."""
    work = Doubling()
    work.broken = {0, 1, 2}
    with pytest.raises(Boom):
        go(flow_of(work, range(3)).run("r"))
    assert work.at_once == 0


def test_changed_items_are_drift() -> None:
    """Numbered keys are for items that stay where they are."""
    items = [1, 2]

    @durable(store=MemoryStore())
    async def flow() -> None:
        await step.map("a", Doubling(), items)
        raise Boom

    with pytest.raises(Boom):
        go(flow.run("r"))
    items.insert(0, 7)
    with pytest.raises(StepDriftError):
        go(flow.run("r"))


def test_two_items_under_one_key_are_refused() -> None:
    """A key function must tell different items apart."""
    with pytest.raises(DuplicateStepKeyError):
        go(flow_of(Doubling(), [1, 2], key=lambda item: "same").run("r"))


def test_expired_results_run_at_once_like_missing_ones() -> None:
    """What outlived its ttl isn't counted as done."""
    work = Doubling()
    fails = True

    @durable(store=MemoryStore())
    async def flow() -> None:
        await step.options(ttl=5).map("a", work, range(4))
        if fails:
            raise Boom

    async def main() -> None:
        nonlocal fails
        with pytest.raises(Boom):
            await flow.run("r")
        work.most_at_once = 0
        await clock.advance(6)
        fails = False
        await flow.run("r")

    with ManualClock() as clock:
        go(main())
    assert work.most_at_once == 4


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"limit": 0}, "limit must be at least 1"),
        ({"limit": True}, "limit must be an int"),
        ({"limit": 1.5}, "limit must be an int"),
    ],
    ids=str,
)
def test_a_wrong_limit_is_refused(options: dict[str, Any], error: str) -> None:
    """Before anything runs."""
    work = Doubling()
    with pytest.raises((TypeError, ValueError), match=error):
        go(flow_of(work, [1], **options).run("r"))
    assert not work.calls


@pytest.mark.parametrize("prefix", ["", 5])
def test_a_wrong_prefix_is_refused(prefix: Any) -> None:
    """It is the beginning of step keys."""

    @durable(store=MemoryStore())
    async def flow() -> None:
        await step.map(prefix, Doubling(), [1])

    with pytest.raises((TypeError, ValueError), match="prefix"):
        go(flow.run("r"))


def test_the_progress_bar_starts_where_the_last_run_stopped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On standard error, and as the bar it is to a person at a terminal."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    work = Doubling()
    work.broken = {3}
    flow = flow_of(work, range(4), limit=1, progress=True)
    with pytest.raises(Boom):
        go(flow.run("r"))
    first = capsys.readouterr()
    assert "double" in first.err
    assert "0/4" in first.err
    assert "3/4" in first.err
    assert not first.out
    work.broken.clear()
    go(flow.run("r"))
    later = capsys.readouterr().err
    assert "3/4" in later
    assert "4/4" in later
    assert "0/4" not in later


def test_a_progress_bar_shows_its_prefix_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """What looks like rich's markup is text."""

    @durable(store=MemoryStore())
    async def flow() -> None:
        await step.map("[bold]users", Doubling(), [1], progress=True)

    go(flow.run("r"))
    assert "[bold]users" in capsys.readouterr().err


def test_without_rich_the_progress_bar_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And nothing has run."""
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    work = Doubling()
    with pytest.raises(MissingDriverError, match=r"pip install 'durable-steps\[cli\]'"):
        go(flow_of(work, [1], progress=True).run("r"))
    assert not work.calls
    assert go(flow_of(work, [1]).run("r")) == [2]

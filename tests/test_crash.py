"""What is acknowledged survives SIGKILL, wherever and however often it strikes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from crash.job import Request
from crash.killer import End, Kill, Nursery, Story, live_through

from durable import Runs, open_store

pytestmark = pytest.mark.crash

#: Stories told at the same time; mostly they wait for leases to lapse.
AT_ONCE = 12

Place = Callable[[str, str], Request]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Where all processes of this module come from."""
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(params=["sqlite", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Makes requests for runs, each with a log of effects of its own, on stores that are named."""

    def make(run_id: str, store: str) -> Request:
        folder = quote(f"{tmp_path}/{store}")
        kinds = {"sqlite": f"sqlite:///{folder}/runs.db", "file": f"file://{folder}"}
        return Request(kinds[request.param], run_id, str(tmp_path / f"effects-{run_id}.log"))

    return make


@pytest.fixture
def undisturbed(nursery: Nursery, place: Place) -> End:
    """How the job ends when nobody kills it."""
    (end,) = live_through(nursery, place("undisturbed", "shared"), []).ends
    assert end.result is not None
    return end


def tell_all(
    nursery: Nursery, place: Place, plots: Sequence[Sequence[Kill]], *, store: str = ""
) -> list[Story]:
    """Live through all plots, many at the same time, each on a store of its own or on ``store``."""

    def tell(number: int, kills: Sequence[Kill]) -> Story:
        return live_through(nursery, place(f"run-{number}", store or f"store-{number}"), kills)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(tell, range(len(plots)), plots))


def check(stories: Sequence[Story], undisturbed: End, seed: str = "none") -> None:
    """Fail, and tell the story, unless each run came to the same end without doing things twice."""
    for story in stories:
        assert story.violations() == [], f"seed {seed}: {story.describe()}"
        assert story.result == undisturbed.result, f"seed {seed}: {story.describe()}"


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_each_write(nursery: Nursery, place: Place, undisturbed: End, when: str) -> None:
    """Killed before or after any one write to the store, the run goes on behind what is stored."""
    plots = [
        [Kill(f"write {number} {when}", observed=number % 2 == 0)]
        for number in range(1, undisturbed.writes + 1)
    ]

    stories = tell_all(nursery, place, plots)

    check(stories, undisturbed)
    assert all(story.deaths == 1 for story in stories[:20])


def test_killed_in_the_middle_of_each_write(
    nursery: Nursery, place: Place, undisturbed: End
) -> None:
    """Killed while a write is under way, the run has it or hasn't it, and goes on."""
    seed = "middle"
    chance = random.Random(seed)
    plots = [
        [Kill(f"write {number} during {chance.randint(0, 1500)}")]
        for number in range(1, undisturbed.writes + 1, 2)
    ]

    stories = tell_all(nursery, place, plots)

    check(stories, undisturbed, seed)
    assert sum(story.deaths for story in stories) > len(plots) // 2


@pytest.mark.parametrize("how", ["run", "recover"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_again_in_each_recovery(
    nursery: Nursery, place: Place, undisturbed: End, how: str, when: str
) -> None:
    """A run whose every recovery is killed, too, gets on by what each of them has stored."""
    plots = [
        [Kill(f"write {number} {when}", how=how, observed=bool(odd % 2)) for odd in range(8)]
        for number in (1, 2, 3, 5)
    ]

    stories = tell_all(nursery, place, plots)

    check(stories, undisturbed)
    assert all(story.deaths >= 4 for story in stories)


@pytest.mark.parametrize("seed", ["a", "b"])
def test_killed_at_random(nursery: Nursery, place: Place, undisturbed: End, seed: str) -> None:
    """Killed at any moments, in steps, in writes and between, in runs and recoveries."""
    chance = random.Random(seed)
    steps = [*(undisturbed.result or ()), "child/alpha", "child/left", "child/right"]

    def kill() -> Kill:
        how, observed = chance.choice(("run", "recover")), chance.random() < 0.5
        match chance.randrange(4):
            case 0:
                return Kill(after=chance.uniform(0.0, 0.1), how=how, observed=observed)
            case 1:
                return Kill(f"step {chance.choice(steps)}", how=how, observed=observed)
            case 2:
                point = f"write {chance.randint(1, 20)} {chance.choice(('before', 'after'))}"
                return Kill(point, how=how, observed=observed)
            case _:
                point = f"write {chance.randint(1, 20)} during {chance.randint(0, 2000)}"
                return Kill(point, how=how, observed=observed)

    plots = [[kill() for _ in range(chance.randint(2, 6))] for _ in range(10)]

    stories = tell_all(nursery, place, plots)

    check(stories, undisturbed, seed)
    assert sum(story.deaths for story in stories) > len(plots)


def test_a_write_cut_off_at_any_byte(
    nursery: Nursery, place: Place, undisturbed: End, tmp_path: Path
) -> None:
    """A process that dies with half a write on the disk leaves a run that goes on."""
    seed = "torn"
    chance = random.Random(seed)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    largest = max(file.stat().st_size for file in files)
    plots: list[list[Kill]] = []
    for _ in range(16):
        sizes = sorted(chance.randint(6_000, largest) for _ in range(2))
        plots.append([Kill(f"torn {size}") for size in sizes])

    stories = tell_all(nursery, place, plots)

    check(stories, undisturbed, seed)
    assert sum(story.deaths for story in stories) >= len(plots)


def test_only_one_of_several_processes_executes(
    nursery: Nursery, place: Place, undisturbed: End
) -> None:
    """While one process has the run, the others are told so, also when its first lease is over."""
    request = replace(place("run", "shared"), lease=1.0, patient=False)
    holder = nursery.start(replace(request, crash="step three"))
    holder.wait_for("at ")

    others = [nursery.start(request).end() for _ in range(3)]
    time.sleep(1.2)
    others += [nursery.start(request).end() for _ in range(3)]
    holder.kill()

    assert [end.said[0] for end in others] == ["busy"] * 6
    assert holder.end().died


@pytest.mark.parametrize("how", ["run", "recover"])
def test_the_heirs_of_a_dead_process_agree_on_one(
    nursery: Nursery, place: Place, undisturbed: End, how: str
) -> None:
    """Of several processes that wait for a dead one's run, one goes on, and all get its result."""
    request = replace(place("run", "shared"), lease=1.0, how=how)
    holder = nursery.start(replace(request, crash="step three"))
    holder.wait_for("at ")
    heirs = [nursery.start(request) for _ in range(4)]
    holder.kill()

    story = Story(request, ends=[holder.end(), *(heir.end() for heir in heirs)])

    check([story], undisturbed)
    assert [end.result for end in story.ends[1:]] == [undisturbed.result] * 4
    assert sum("in" in end.said for end in story.ends) == 2
    assert [story.starts(key) for key in ("one", "three", "last")] == [1, 2, 1]


def test_a_started_crowd_agrees_on_one(nursery: Nursery, place: Place, undisturbed: End) -> None:
    """Processes started at once on a fresh store and one id execute the run once."""
    request = replace(place("run", "shared"), lease=1.0)
    crowd = [nursery.start(replace(request, how=how)) for how in ("run", "recover") * 4]

    story = Story(request, ends=[each.end() for each in crowd])

    check([story], undisturbed)
    assert sum("in" in end.said for end in story.ends) == 1
    assert {story.starts(key) for key in ("one", "wide:3", "item:7", "last")} == {1}


def test_runs_on_one_store_leave_each_other_alone(
    nursery: Nursery, place: Place, undisturbed: End
) -> None:
    """Processes that die beside others on one store take nothing from them."""
    seed = "beside"
    chance = random.Random(seed)
    plots = [
        [Kill(after=chance.uniform(0.0, 0.1)) for _ in range(number % 4)] for number in range(8)
    ]

    stories = tell_all(nursery, place, plots, store="shared")

    async def finished() -> list[str]:
        async with open_store(stories[0].request.url) as store:  # type: ignore[attr-defined]
            return [run.run_id for run in await Runs(store).list(status="finished")]

    check(stories, undisturbed, seed)
    assert asyncio.run(finished()) == [*(f"run-{number}" for number in range(8)), "undisturbed"]


def test_the_check_would_notice(nursery: Nursery, place: Place, undisturbed: End) -> None:
    """Where steps are not durable when they return, the logs do show steps that start again."""
    request = replace(place("run", "shared"), durability="exit")

    story = live_through(nursery, request, [Kill("step six")])

    assert "one" in story.violations()
    assert story.result == undisturbed.result

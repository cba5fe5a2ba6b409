"""Damaged, foreign and later data: seen, named, never executed over, never overwritten."""

import asyncio
import zlib
from contextlib import suppress

import msgspec
import pytest
from flows import Effects

from durable import MemoryStore, Runs, StateFormatError, durable, recover, step
from durable._format import format_lines, line_seed
from durable._records import Begin


def job(store, effects, fail=False, **options):
    @durable(store=store, name="job", **options)
    async def job(number: int = 1) -> int:
        effects.append("began")
        for key in ("one", "two", "three"):
            await step(key, effects.do, key)
        if fail:
            raise ValueError
        return number

    return job


def prepared(effects, fail=True):
    """Return a store with run ``a`` in it, failed (or finished), and its lines."""
    store = MemoryStore()

    async def main():
        with suppress(ValueError):
            await job(store, effects, fail).run("a", 1)

    asyncio.run(main())
    effects.clear()
    return store, store._runs["a"].lines


def changed(text):
    return text[:-3] + "~" + text[-2:]


DAMAGES = {
    "changed": lambda lines: [lines[0], changed(lines[1]), *lines[2:]],
    "last changed": lambda lines: [*lines[:-1], changed(lines[-1])],
    "cut": lambda lines: [*lines[:-1], lines[-1][:-5]],
    "emptied": lambda lines: [*lines[:-1], ""],
    "swapped": lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    "missing": lambda lines: [lines[0], *lines[2:]],
    "doubled": lambda lines: [*lines, lines[-1]],
    "without its beginning": lambda lines: lines[1:],
    "nothing left": lambda lines: [],
    "checksum": lambda lines: ["00000000" + lines[0][8:], *lines[1:]],
    "upper case": lambda lines: [lines[0][:8].upper() + lines[0][8:].upper(), *lines[1:]],
    "not ours": lambda lines: ["hello", *lines[1:]],
    "a surrogate": lambda lines: [*lines[:-1], lines[-1] + "\ud800"],
}


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_log(damage, finished):
    """Nothing is executed, nothing overwritten, and the error names the place."""
    effects = Effects()
    store, lines = prepared(effects, fail=not finished)
    broken = lines[:] = damage(list(lines))
    work, runs = job(store, effects), Runs(store)

    async def main():
        status = (await runs.list())[0].status
        for call in (
            work.run("a"),
            work.resume("a"),
            work.options(version=2, on_version_mismatch="restart").run("a"),
            runs.get("a"),
            runs.state("a"),
            runs.forget_step("a", "one"),
        ):
            with pytest.raises(StateFormatError) as raised:
                await call
            assert "run 'a'" in raised.value.where
        (info,) = await runs.list()
        assert (info.status, info.held) == (status, 0)

    asyncio.run(main())
    assert effects == []
    assert lines == broken


@pytest.mark.parametrize("number", [1, 3])
def test_the_error_names_the_record(number):
    """The record that doesn't fit is named by its position."""
    effects = Effects()
    store, lines = prepared(effects)
    lines[number - 1] = changed(lines[number - 1])
    with pytest.raises(StateFormatError, match=f"record {number} of run 'a'.*checksum"):
        asyncio.run(job(store, effects).run("a"))


def test_lines_of_another_run_do_not_fit():
    """A log that was moved to another id is told apart."""
    effects = Effects()
    store, lines = prepared(effects)

    async def main():
        await job(store, effects).submit("b")
        store._runs["b"].lines[:] = lines
        with pytest.raises(StateFormatError, match="record 1 of run 'b'"):
            await job(store, effects).run("b")

    asyncio.run(main())
    assert effects == []


def test_a_damaged_run_does_not_hide_others():
    """Listing and recovery go on around it."""
    effects = Effects()
    store, lines = prepared(effects)
    lines[0] = "hello"

    async def main():
        await job(store, effects).submit("b")
        assert [run.run_id for run in await Runs(store).list()] == ["a", "b"]
        assert (await recover(job(store, effects))).finished == ("b",)
        assert await Runs(store).delete("a") is True

    asyncio.run(main())


def rewritten(line, position, run_id="a", **fields):
    """Return a line with other fields and a checksum that fits."""
    document = {**msgspec.json.decode(line[8:]), **fields}
    body = msgspec.json.encode(document)
    return f"{zlib.crc32(body, line_seed(run_id) ^ position):08x}{body.decode()}"


def test_a_later_format_is_refused():
    """A log whose format number is from the future is left to the library that wrote it."""
    effects = Effects()
    store, lines = prepared(effects)
    before = lines[:] = [rewritten(lines[0], 1, f=99), *lines[1:]]
    with pytest.raises(StateFormatError, match=r"format 99.*update the library"):
        asyncio.run(job(store, effects).run("a"))
    assert effects == []
    assert lines == before


def test_a_record_of_an_unknown_kind_is_refused():
    """A record that this version doesn't know isn't skipped."""
    effects = Effects()
    store, lines = prepared(effects)
    lines[2] = rewritten(lines[2], 3, t="zz")
    with pytest.raises(StateFormatError, match="record 3 of run 'a'"):
        asyncio.run(job(store, effects).run("a"))
    assert effects == []


def test_a_field_of_a_later_version_is_no_damage():
    """What a newer minor version adds to a record doesn't keep this one from reading it."""
    effects = Effects()
    store, lines = prepared(effects)
    lines[1] = rewritten(lines[1], 2, later="field")
    assert asyncio.run(job(store, effects).run("a", 1)) == 1
    assert effects == ["began"]


def test_a_value_that_no_longer_fits_its_type():
    """A stored value that the new code can't decode names the step, and isn't recomputed."""
    store, effects, codes = MemoryStore(), Effects(), []

    async def count() -> int:
        return 5

    async def name() -> str:
        effects.append("executed")
        return "five"

    name.__qualname__ = count.__qualname__

    @durable(store=store)
    async def work():
        await step("count", codes[-1])
        raise ValueError

    async def main():
        codes.append(count)
        with pytest.raises(ValueError):
            await work.run("a")
        codes.append(name)
        with pytest.raises(StateFormatError, match="step 'count' of run 'a'"):
            await work.run("a")

    asyncio.run(main())
    assert effects == []


def test_a_result_that_no_longer_fits_its_type():
    """The stored result of a finished run is never guessed at."""
    store = MemoryStore()

    async def number() -> int:
        return 5

    async def text() -> str:
        return "five"

    async def main():
        await durable(store=store, name="work")(number).run("a")
        with pytest.raises(StateFormatError, match="the result of run 'a'"):
            await durable(store=store, name="work")(text).run("a")

    asyncio.run(main())


def test_stored_arguments_that_no_longer_fit():
    """``resume`` of arguments that the new code doesn't take names them; ``run`` still works."""
    store = MemoryStore()

    async def one(number: int) -> str:
        raise ValueError

    async def other(name: str) -> str:
        return name

    async def main():
        with pytest.raises(ValueError):
            await durable(store=store, name="work")(one).run("a", 1)
        work = durable(store=store, name="work")(other)
        with pytest.raises(StateFormatError, match="the arguments of run 'a'"):
            await work.resume("a")
        with pytest.warns(UserWarning, match="other arguments"):
            assert await work.run("a", "me") == "me"

    asyncio.run(main())


def test_another_codec():
    """Values that were stored by another codec aren't tried."""

    class Rot:
        name = "rot"

        def encode(self, text):
            return text[::-1]

        decode = encode

    effects, store = Effects(), MemoryStore()

    async def main():
        coded, plain = job(store, effects, codec=Rot()), job(store, effects)
        with pytest.raises(ValueError):
            await job(store, effects, True, codec=Rot()).run("a", 1)
        for call in (plain.run("a"), plain.resume("a")):
            with pytest.raises(StateFormatError, match="codec 'rot'"):
                await call
        assert await coded.run("a", 1) == 1
        with pytest.raises(StateFormatError, match="codec 'rot'"):
            await plain.run("a")
        assert "one" not in "".join(line for line in store._runs["a"].lines if '"v":"one"' in line)

    asyncio.run(main())
    assert effects == ["began", "one", "two", "three", "began"]


def test_a_log_whose_beginning_is_not_a_beginning():
    """Lines with good checksums that don't begin a run are refused."""
    effects = Effects()
    store, lines = prepared(effects)
    lines[:] = [rewritten(lines[2], 1)]
    with pytest.raises(StateFormatError, match="record 1 of run 'a'"):
        asyncio.run(job(store, effects).run("a"))


def test_begin_is_what_format_lines_begins_with():
    """The helper of these tests makes lines that the library accepts."""
    line = format_lines("a", [Begin(name="job", at=0.0)])[0]
    assert rewritten(line, 1) == line

"""``ResumeState`` in the user's hands: its text, its changes, and going on from it."""

import asyncio
import hashlib
import re
from pathlib import Path

import msgspec
import pytest
from flows import Effects, Gates, until
from hypothesis import given, settings
from hypothesis import strategies as st

from durable import (
    DurableWarning,
    MemoryStore,
    NotSerializableError,
    ResumeState,
    ResumeStateCollector,
    Runs,
    StateFormatError,
    StepRecord,
    StoredError,
    current_run,
    durable,
    is_step_complete,
    parse_state,
    step,
    stringify_state,
)
from durable._format import fold_lines

DATA = Path(__file__).parent / "data"


def trip(store, effects, **options):
    @durable(store=store, name="trip", **options)
    async def trip(fail: bool = False) -> list[int]:
        first = await step("flight", effects.do, 1)
        second = await step("hotel", effects.do, 2)
        if fail:
            raise ValueError
        return [first, second]

    return trip


def recorded(run_id="a", **options):
    """Return the state of a run with two steps."""
    store = MemoryStore()

    async def main():
        await trip(store, Effects(), **options).run(run_id)
        return await Runs(store).state(run_id)

    return asyncio.run(main())


# What is in a state.


def test_what_is_recorded():
    """A state has the steps by key, with their values, functions and the function's version."""
    state = recorded(version=3)
    assert list(state.steps) == ["flight", "hotel"]
    assert state.steps["hotel"].value == 2
    assert state.steps["hotel"].function == "Effects.do"
    assert (state.function, state.function_version, state.version) == ("trip", 3, 0)
    assert is_step_complete(state, "flight")
    assert not is_step_complete(state, "car")


def test_without():
    """``without`` gives a state in which the step isn't done; the original is unchanged."""
    state = recorded()
    less = state.without("flight")
    assert list(less.steps) == ["hotel"]
    assert list(state.steps) == ["flight", "hotel"]
    with pytest.raises(KeyError):
        less.without("flight")


def test_without_takes_what_the_step_asked_for_and_its_child_run():
    """A step that runs again does all of its work again."""
    store, effects = MemoryStore(), Effects()

    @durable(store=store)
    async def inner():
        return await step("deep", effects.do, "deep")

    async def outer_step():
        return await step("nested", effects.do, "nested")

    @durable(store=store)
    async def outer():
        await step("outer", outer_step)
        await step("child", inner)

    async def main():
        await outer.run("a")
        state = await Runs(store).state("a")
        assert set(state.steps) == {"outer", "nested", "child"}
        assert set(state.without("outer").steps) == {"child"}
        assert set(state.without("child").steps) == {"outer", "nested"}
        assert state.without("child").children == {}
        effects.clear()
        await outer.options(resume_state=state.without("outer")).run("b")
        assert effects == ["nested"]

    asyncio.run(main())


def test_with_value():
    """``with_value`` puts a result in place, of a recorded step or of a new one."""
    state = recorded().with_value("flight", 10).with_value("car", {"name": "mini"})
    assert {key: record.value for key, record in state.steps.items()} == {
        "flight": 10,
        "hotel": 2,
        "car": {"name": "mini"},
    }


def test_with_value_refuses_what_cannot_be_stored():
    """A value that JSON can't carry back is refused at once, naming the step."""
    with pytest.raises(NotSerializableError, match="step 'flight'"):
        recorded().with_value("flight", object())


# Its text.

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
RAW = JSON.map(lambda value: msgspec.Raw(msgspec.json.encode(value)))
ERRORS = st.builds(StoredError, type=NAMES, message=NAMES, traceback=NAMES)
TIMES = st.floats(0, 1e10, allow_nan=False)


def states(path=(), depth=2):
    records = st.builds(
        StepRecord,
        key=NAMES,
        function=NAMES,
        fingerprint=NAMES,
        stored=RAW,
        error=st.none() | ERRORS,
        completed_at=TIMES,
        duration=TIMES,
        attempts=st.integers(1, 10),
        expires_at=st.none() | TIMES,
        version=st.integers(1, 10),
        run_attempt=st.integers(1, 10),
        within=NAMES,
        path=st.just(path),
    )
    steps = st.lists(records, min_size=1, max_size=3).map(
        lambda found: {each.key: each for each in found}
    )
    fields = {"steps": steps, "variables": st.dictionaries(NAMES, RAW, max_size=2)}
    if depth:
        # A child's records carry the path of keys that leads to it.
        fields["children"] = st.dictionaries(NAMES, st.none(), max_size=2).flatmap(
            lambda keys: st.fixed_dictionaries(
                {key: states((*path, key), depth - 1) for key in keys}
            )
        )
    if not path:
        fields |= {
            "metadata": st.dictionaries(NAMES, JSON, max_size=2),
            "version": st.integers(0, 100),
            "function": NAMES,
        }
    return st.builds(ResumeState, **fields)


@settings(max_examples=30, deadline=None)
@given(states())
def test_text_and_back(state):
    """Parsing the text of a state gives an equal state, and its text is the same again."""
    text = stringify_state(state)
    assert parse_state(text) == state
    assert stringify_state(parse_state(text)) == text


def test_equal_states_give_equal_text():
    """The order in which steps completed doesn't show."""
    state = recorded()
    turned = msgspec.structs.replace(state, steps=dict(reversed(state.steps.items())))
    assert turned == state
    assert stringify_state(turned) == stringify_state(state)


def test_metadata():
    """Metadata given to ``stringify_state`` joins the state's own and comes back."""
    state = msgspec.structs.replace(recorded(), metadata={"a": 1, "b": 1})
    assert parse_state(stringify_state(state, b=2, state="x")).metadata == {
        "a": 1,
        "b": 2,
        "state": "x",
    }


def test_metadata_that_cannot_be_stored():
    """It is refused when the text is made, not when it's read."""
    with pytest.raises(NotSerializableError, match="metadata"):
        stringify_state(recorded(), thing=object())
    with pytest.raises(NotSerializableError, match="metadata"):
        stringify_state(recorded(), pair=(1, 2))


def test_text_that_was_cut():
    """Cut after any character, the text is refused."""
    text = stringify_state(recorded(), note="ünï")
    for length in range(len(text)):
        with pytest.raises(StateFormatError, match="state text"):
            parse_state(text[:length])


def test_text_that_was_changed():
    """With any byte changed, the text is refused."""
    data = stringify_state(recorded(), note="ünï").encode()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(StateFormatError, match="state text"):
            parse_state(changed.decode(errors="surrogateescape"))


@pytest.mark.parametrize("text", ["", "{}", "null", "[]", "x" * 50, '{"checksum":"', "\ud800"])
def test_text_that_is_no_state(text):
    """Other text is refused, never taken for an empty state."""
    with pytest.raises(StateFormatError, match="state text"):
        parse_state(text)


def test_only_text_is_parsed():
    """Bytes and others are a ``TypeError``."""
    with pytest.raises(TypeError, match="bytes"):
        parse_state(b"{}")


def rewritten(state, **fields):
    """Return the text of ``state`` with other fields and a checksum that fits."""
    document = {**msgspec.json.decode(stringify_state(state)), **fields}
    del document["checksum"]
    body = msgspec.json.encode(document)
    checksum = hashlib.blake2b(body, digest_size=8).hexdigest()
    return f'{{"checksum":"{checksum}",{body[1:].decode()}'


@pytest.mark.parametrize("more", [{}, {"unheard": "of"}, {"steps": "elsewhere"}])
def test_a_later_format_is_refused(more):
    """A text with a later format number is refused for that, whatever else it has."""
    assert parse_state(rewritten(recorded())).function == "trip"
    with pytest.raises(StateFormatError, match=r"format 2.*update the library"):
        parse_state(rewritten(recorded(), format=2, **more))


@pytest.mark.parametrize("fields", [{"steps": 5}, {"format": "1"}, {"format": 0}, {"extra": 1}])
def test_a_text_of_another_shape_is_refused(fields):
    """A text whose checksum fits but whose content doesn't is refused."""
    with pytest.raises(StateFormatError, match="state text"):
        parse_state(rewritten(recorded(), **fields))


# Formats that are read for ever. Never change these files.

GOLDEN = ResumeState(
    steps={
        "charge": StepRecord(
            key="charge",
            function="charge_card",
            fingerprint="p1",
            stored=msgspec.Raw(b'{"amount":"9.99","note":"caf\xc3\xa9 \\u0000"}'),
            completed_at=1_700_000_000.25,
            duration=0.5,
            attempts=2,
            expires_at=1_800_000_000.0,
            version=2,
            run_attempt=3,
        ),
        "refund": StepRecord(
            key="refund",
            error=StoredError(
                type="builtins:ValueError",
                message="too late",
                traceback="Traceback: …",
                arguments=msgspec.Raw(b'["too late"]'),
            ),
            within="charge",
        ),
    },
    metadata={"note": "golden", "numbers": [1, 2.5, None]},
    version=7,
    function_version=2,
    function="checkout",
    variables={"seen": msgspec.Raw(b"[1,2]")},
    children={
        "child": ResumeState(
            steps={"deep": StepRecord(key="deep", stored=msgspec.Raw(b"null"), path=("child",))},
            function_version=2,
        )
    },
)


def test_a_state_of_format_1_is_read_for_ever():
    """The golden text gives the same state as on the day it was written."""
    text = (DATA / "state-v1.json").read_text(encoding="utf-8").rstrip("\n")
    assert parse_state(text) == GOLDEN


def test_a_log_of_format_1_is_read_for_ever():
    """The golden log gives the same records as on the day it was written."""
    lines = (DATA / "log-v1.txt").read_text(encoding="utf-8").splitlines()
    records = fold_lines("golden/run é", lines)
    assert records.sequence == 10
    begin, last = records.begin, records.passes[2]
    assert (begin.name, begin.version, begin.fingerprint, begin.keep) == ("checkout", 2, "f0", 60.0)
    assert (begin.ttl, begin.codec, begin.incarnation) == (30.0, "", "abc")
    assert msgspec.json.decode(begin.arguments) == {"order": "42"}
    assert (last.number, last.fence, last.process, last.takeover) == (2, 8, "host:1", True)
    assert set(records.root.steps) == {"charge"}
    assert records.root.steps["charge"] == GOLDEN.steps["charge"]
    attempt = records.root.attempts["email"]
    assert (attempt.attempt, attempt.error.message, attempt.next_at) == (1, "busy", 5.5)
    assert records.root.variables == GOLDEN.variables
    assert records.root.children["child"].steps == GOLDEN.children["child"].steps
    assert (records.ended.status, msgspec.json.decode(records.ended.stored)) == ("finished", [1])


# The collector.


def test_the_collector_has_what_the_store_has():
    """Its state equals the store's, also when only some of the steps ran in this pass."""
    store, effects, collector = MemoryStore(), Effects(), ResumeStateCollector()
    whole = trip(store, effects)

    @durable(store=store, name="trip")
    async def half(fail: bool = False):
        await step("flight", effects.do, 1)
        raise ValueError

    async def main():
        with pytest.raises(ValueError):
            await half.run("a")
        await whole.options(on_event=collector).run("a")
        assert collector.state() == await Runs(store).state("a")
        assert list(collector.state().steps) == ["flight", "hotel"]

    asyncio.run(main())


def test_the_collector_has_steps_of_child_runs():
    """What child runs recorded is in its children."""
    store, effects, collector = MemoryStore(), Effects(), ResumeStateCollector()

    @durable(store=store)
    async def outer():
        return await step("child", trip(store, effects))

    async def main():
        await outer.options(on_event=collector).run("a")
        assert collector.state() == await Runs(store).state("a")
        assert set(collector.state().children["child"].steps) == {"flight", "hotel"}

    asyncio.run(main())


def test_the_collector_keeps_the_last_run_apart_from_others():
    """Steps of a run that goes on beside the last one aren't mixed with its own."""
    store, collector = MemoryStore(), ResumeStateCollector()

    async def main():
        one, two = Gates(), Gates()

        @durable(store=store, on_event=collector)
        async def work(name: str):
            await step(name, (one if name == "one" else two).wait)

        first = asyncio.create_task(work.run("a", "one"))
        await until(one.reached, first)
        second = asyncio.create_task(work.run("b", "two"))
        await until(two.reached, second)
        one.go.set()
        await first
        two.go.set()
        await second
        assert list(collector.state().steps) == ["two"]

    asyncio.run(main())


def test_an_empty_collector():
    """Before any run its state is empty."""
    assert ResumeStateCollector().state() == ResumeState()


def test_from_a_crash_here_to_a_run_elsewhere():
    """The collector's state, as text, lets the run go on with another store."""
    effects, collector = Effects(), ResumeStateCollector()

    async def main():
        with pytest.raises(ValueError):
            await trip(MemoryStore(), effects, on_event=collector).run("a", True)
        text = stringify_state(collector.state())
        elsewhere = trip(MemoryStore(), effects, resume_state=parse_state(text))
        assert await elsewhere.run("a") == [1, 2]

    asyncio.run(main())
    assert effects == [1, 2]


# ``resume_state``.


def sources():
    """Return the ways to give a state, by name."""
    state = ResumeState().with_value("flight", 10)

    async def later():
        await asyncio.sleep(0)
        return state

    return {"value": state, "sync": lambda: state, "async": later}


@pytest.mark.parametrize("kind", ["value", "sync", "async"])
@pytest.mark.parametrize("call", ["run", "plain", "submit"])
def test_resume_state_seeds_a_run_without_records(kind, call):
    """The run begins with its steps, however the state is given and the run begun."""
    effects, store = Effects(), MemoryStore()
    work = trip(store, effects, resume_state=sources()[kind])

    async def main():
        if call == "plain":
            assert await work() == [10, 2]
        elif call == "run":
            assert await work.run("a") == [10, 2]
        else:
            await work.submit("a")
            assert await trip(store, effects).resume("a") == [10, 2]

    asyncio.run(main())
    assert effects == [2]


async def nothing_later():
    return None


@pytest.mark.parametrize("source", [None, lambda: None, nothing_later])
def test_a_loader_that_has_nothing(source):
    """It means a fresh start, on the very first run too."""
    effects = Effects()
    assert asyncio.run(trip(MemoryStore(), effects, resume_state=source).run("a")) == [1, 2]
    assert effects == [1, 2]


def test_resume_state_is_ignored_when_there_are_records():
    """What is recorded counts, and the loader isn't even called."""
    store, effects, loads = MemoryStore(), Effects(), []

    def load():
        loads.append("loaded")
        return ResumeState().with_value("flight", 10)

    async def main():
        with pytest.raises(ValueError):
            await trip(store, effects).run("a", True)
        with pytest.warns(DurableWarning, match="other arguments"):
            assert await trip(store, effects, resume_state=load).run("a") == [1, 2]
        assert await trip(store, effects, resume_state=load).run("a") == [1, 2]

    asyncio.run(main())
    assert loads == []


def test_the_loader_is_called_when_the_run_starts():
    """Neither decoration nor ``options`` loads anything."""
    loads = []
    work = trip(MemoryStore(), Effects(), resume_state=lambda: loads.append("loaded"))
    work.options(lease=5)
    assert loads == []
    asyncio.run(work.run("a"))
    assert loads == ["loaded"]


def test_a_loader_that_raises_or_gives_something_else():
    """The error reaches the caller, and nothing has been recorded."""
    store, effects = MemoryStore(), Effects()

    def fails():
        raise LookupError("no state")

    async def main():
        with pytest.raises(LookupError, match="no state"):
            await trip(store, effects, resume_state=fails).run("a")
        with pytest.raises(TypeError, match="ResumeState or None, got dict"):
            await trip(store, effects, resume_state=dict).run("a")
        assert await Runs(store).list() == []

    asyncio.run(main())
    assert effects == []


def test_variables_and_children_are_seeded_too():
    """A state carries durable variables and what child runs recorded."""
    store, effects = MemoryStore(), Effects()

    @durable(store=store)
    async def outer(fail: bool):
        await current_run().set("seen", current_run().get("seen", 0) + 1)

        @durable(name="inner")
        async def inner():
            await step("deep", effects.do, "deep")
            if fail:
                raise ValueError

        await step("child", inner)
        return current_run().get("seen")

    async def main():
        with pytest.raises(ValueError):
            await outer.run("a", True)
        state = parse_state(stringify_state(await Runs(store).state("a")))
        assert await outer.options(resume_state=state).run("b", False) == 2

    asyncio.run(main())
    assert effects == ["deep"]


def test_the_text_shows_its_format():
    """Whoever opens the text sees JSON with a format number."""
    text = stringify_state(recorded())
    assert msgspec.json.decode(text)["format"] == 1
    assert re.fullmatch(r'\{"checksum":"[0-9a-f]{16}",.*\}', text)


def test_the_collector_has_variables():
    """Durable variables that this pass set are in its state, those of child runs too."""
    store, collector = MemoryStore(), ResumeStateCollector()

    @durable(name="inner")
    async def inner():
        await current_run().set("seen", "inside")

    @durable(store=store, on_event=collector)
    async def outer():
        await current_run().set("seen", 1)
        await current_run().set("seen", 2)
        await step("child", inner)

    async def main():
        await outer.run("a")
        assert collector.state() == await Runs(store).state("a")
        assert msgspec.json.decode(collector.state().variables["seen"]) == 2

    asyncio.run(main())

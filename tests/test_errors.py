"""The exceptions: their tree, what they say, and that they survive copying and pickling."""

import copy
import inspect
import pickle

import pytest

import durable
from durable import _errors
from durable._errors import DurableError

STATE = durable.ResumeState().with_value("a", [1])

#: One of each, with the builtin that it also is.
EXAMPLES = [
    (durable.DurableError("text"), Exception),
    (durable.Paused("run", []), Exception),
    (durable.RunBusyError("run", 1.5), Exception),
    (durable.RunBusyError("run"), Exception),
    (durable.RunCancelledError("run"), Exception),
    (durable.RunEndedError("run", "step"), Exception),
    (durable.NoActiveRunError("current_run()"), RuntimeError),
    (durable.RunNotFoundError("run"), LookupError),
    (durable.RunMismatchError("run", "mine", "yours"), ValueError),
    (durable.LeaseLostError("run", 7), Exception),
    (durable.VersionMismatchError("run", 1, 2), Exception),
    (durable.StaleVersionError("run", 1, 2, STATE), Exception),
    (durable.StepDriftError("run", "step", ["amount"], "old", "new"), Exception),
    (durable.DuplicateStepKeyError("run", "step", "twice"), ValueError),
    (durable.StepError("step", "ValueError", "no", "Traceback"), Exception),
    (durable.NotSerializableError("step 'a'", "$.b", "object", "no"), TypeError),
    (durable.StateFormatError("record 1 of run 'a'", "cut"), ValueError),
    (durable.StoreError("append", "run", "gone"), Exception),
    (durable.MissingDriverError("it", "redis", "pip install 'x[redis]'"), ImportError),
    (durable.UnknownSchemeError("ftp", ["file", "memory"]), ValueError),
    (durable.InvalidAnswerError("ask", "no", "'a', 'b'"), ValueError),
    (durable.UnknownTokenError(), LookupError),
    (durable.TokenExpiredError("run", "ask"), Exception),
    (durable.AlreadyAnsweredError("run", "ask"), Exception),
    (durable.InterruptExpiredError("run", "ask"), Exception),
]


NAMES = [type(error).__name__ for error, _ in EXAMPLES]


@pytest.mark.parametrize(("error", "builtin"), EXAMPLES, ids=NAMES)
def test_copies_and_pickles(error, builtin):
    """A copy, shallow, deep or pickled, has the same type, facts and sentence."""
    assert isinstance(error, builtin)
    for other in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert type(other) is type(error)
        assert other.args == error.args
        assert vars(other) == vars(error)
        assert str(other) == str(error)


@pytest.mark.parametrize("error", [error for error, _ in EXAMPLES], ids=NAMES)
def test_every_fact_is_an_attribute(error):
    """What the constructor takes can be read by its name, and is ``args``."""
    if "__init__" in vars(type(error)):
        names = inspect.signature(type(error)).parameters
        assert error.args == tuple(getattr(error, name) for name in names)
    assert str(error)


def own_errors():
    found = vars(_errors).values()
    return [each for each in found if isinstance(each, type) and issubclass(each, DurableError)]


def test_every_error_has_an_example_and_is_public():
    """Nothing in the tree is left out of these tests or of the package."""
    assert {type(error) for error, _ in EXAMPLES} == set(own_errors())
    assert {each.__name__ for each in own_errors()} <= set(durable.__all__)


def test_the_tree_is_the_one_that_is_drawn():
    """The drawing at the top of the module names every error, and its builtin base."""
    drawn = {}
    for line in _errors.__doc__.splitlines():
        if line.startswith(("├── ", "└── ")):
            name, _, note = line[4:].partition(" ")
            note = note.strip()
            drawn[name] = note[1:].partition(")")[0] if note.startswith("(") else ""
    expected = {}
    for each in own_errors():
        if each is not DurableError:
            first, *others = each.__bases__
            assert first is DurableError
            expected[each.__name__] = ", ".join(other.__name__ for other in others)
    assert drawn == expected


def test_sentences_say_what_where_and_what_to_do():
    """A few sentences, word for word."""
    assert str(durable.RunBusyError("a", 1.25)).startswith(
        "run 'a' is being executed by somebody else for at least 1.2 s more; "
    )
    assert str(durable.NotSerializableError("step 'a'", "$.b", "object", "no")) == (
        "step 'a': $.b (object) can't be stored: no"
    )
    error = durable.StoreError("append", "a")
    error.__cause__ = ConnectionError("password=secret")
    assert str(error) == "the store failed at append 'a': ConnectionError"


def test_paused_is_no_failure_but_an_exception():
    """``Paused`` names the questions that are open."""

    class Question:
        id = "approve"

    assert str(durable.Paused("a", [Question()])) == "run 'a' is paused, waiting for: 'approve'"

"""Stores by URL: schemes plug in, drivers that are missing are named, the environment decides."""

import asyncio
import os
import sys

import pytest

from durable import (
    DurableError,
    KeyValueStore,
    MemoryStore,
    MissingDriverError,
    Runs,
    UnknownSchemeError,
    durable,
    open_store,
    store_from_env,
)
from durable.store import store_url_from_env, ttl_from_env

VARIABLES = ("DURABLE_STORE_URL", "DURABLE_REDIS_URL", "REDIS_URL", "DURABLE_TTL_MS")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Return a function that installs a distribution with a store, for this test only."""
    monkeypatch.syspath_prepend(tmp_path)
    added = []

    def install(scheme, module, code, target="Store", extras=""):
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"acme_{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: acme-{module}\nVersion: 1.0\n"
        )
        line = f"{scheme} = {module}:{target} {extras}".rstrip()
        (info / "entry_points.txt").write_text(f"[durable.stores]\n{line}\n")
        added.append(module)

    yield install
    for module in added:
        sys.modules.pop(module, None)


STORE = """
from durable import MemoryStore

class Store(MemoryStore):
    def __init__(self, url, **options):
        super().__init__()
        self.url, self.options = url, options
"""


# ``open_store``.


def test_memory():
    """``memory://`` gives a new, empty store each time."""
    first, second = open_store("memory://"), open_store("memory://")
    assert isinstance(first, MemoryStore)
    assert first is not second


@pytest.mark.parametrize("url", ["ftp://host", "runs.db", "", "://x", "sqlite:runs.db"])
def test_an_unknown_scheme_names_the_known_ones(url):
    """A URL that nobody serves is refused with the list of schemes."""
    with pytest.raises(UnknownSchemeError) as raised:
        open_store(url)
    assert {"memory", "sqlite", "file"} <= set(raised.value.known)
    assert "memory" in str(raised.value)


def test_a_refused_url_does_not_show_its_password():
    """Neither an unknown scheme nor a missing driver repeats the URL."""
    with pytest.raises(UnknownSchemeError) as raised:
        open_store("ftp://user:s3cret@host/x")
    assert "s3cret" not in str(raised.value) + repr(raised.value)


@pytest.mark.parametrize("url", [None, 5, b"memory://", MemoryStore()])
def test_only_text_is_a_url(url):
    """Anything else is a ``TypeError``."""
    with pytest.raises(TypeError, match="URL must be a str"):
        open_store(url)


def test_options_that_a_store_does_not_take():
    """An unknown option is refused, not ignored."""
    with pytest.raises(TypeError, match="colour"):
        open_store("memory://", colour="red")


def test_a_store_of_a_third_party(plugin):
    """A scheme of another distribution works like ours: for functions and for ``Runs``."""
    plugin("acme", "acme_store", STORE)
    store = open_store("acme://there", size=3)
    assert (store.url, store.options) == ("acme://there", {"size": 3})

    @durable(store="acme://there")
    async def work():
        return 5

    async def main():
        await work.run("a")
        assert (await Runs("acme://there").get("a")).result == 5

    asyncio.run(main())


def test_a_missing_driver_of_ours(plugin):
    """The error has the exact line that installs it, with the distribution's extra."""
    plugin("acme", "acme_needy", "import acme_driver.aio", extras="[fast]")
    with pytest.raises(MissingDriverError) as raised:
        open_store("acme://user:s3cret@host")
    error = raised.value
    assert isinstance(error, ImportError)
    assert error.package == "acme_driver"
    assert error.install == "pip install 'acme-acme_needy[fast]'"
    assert error.install in str(error)
    assert "s3cret" not in str(error)
    assert isinstance(error.__cause__, ModuleNotFoundError)


def test_a_missing_driver_without_an_extra(plugin):
    """Without an extra it's the package itself that is to be installed."""
    plugin("acme", "acme_bare", "import acme_driver")
    with pytest.raises(MissingDriverError, match="pip install 'acme_driver'"):
        open_store("acme://")


def test_an_error_within_a_store_is_not_a_missing_driver(plugin):
    """What else goes wrong when a store is imported is shown as it is."""
    plugin("acme", "acme_broken", "from durable import nonsense")
    with pytest.raises(ImportError, match="nonsense") as raised:
        open_store("acme://")
    assert not isinstance(raised.value, DurableError)


# The environment.


def test_precedence():
    """The store's own variable first, then the two for Redis, then the embedded default."""
    environ = {"REDIS_URL": "redis://three"}
    assert store_url_from_env({}) == "sqlite:///.durable/runs.db"
    assert store_url_from_env(environ) == "redis://three"
    environ["DURABLE_REDIS_URL"] = "redis://two"
    assert store_url_from_env(environ) == "redis://two"
    environ["DURABLE_STORE_URL"] = "memory://"
    assert store_url_from_env(environ) == "memory://"
    assert isinstance(store_from_env(environ), MemoryStore)
    environ["DURABLE_STORE_URL"] = ""
    assert store_url_from_env(environ) == "redis://two"


def test_the_default_store_is_embedded(tmp_path, monkeypatch):
    """Without any setting, runs are kept in a folder beside the program, from the first run."""
    monkeypatch.chdir(tmp_path)

    @durable
    async def work():
        return 5

    async def main():
        assert isinstance(store_from_env(), KeyValueStore)
        assert await work.run("a") == 5
        assert (await Runs().get("a")).result == 5
        store = work.definition.session().store
        await store.aclose()

    asyncio.run(main())
    assert (tmp_path / ".durable" / "runs.db").exists()


def test_the_environment_is_read_when_a_function_runs(monkeypatch):
    """A variable that is set after the import counts."""

    @durable
    async def work():
        return 5

    monkeypatch.setenv("DURABLE_STORE_URL", "memory://")
    assert asyncio.run(work.run("a")) == 5
    assert isinstance(work.definition.session().store, MemoryStore)


def test_ttl_from_the_environment(monkeypatch):
    """``DURABLE_TTL_MS`` is the default ttl; the option replaces it, None included."""

    @durable(store=MemoryStore())
    async def work(): ...

    assert work.definition.ttl is None
    monkeypatch.setenv("DURABLE_TTL_MS", "1500")
    assert work.definition.ttl == 1.5
    assert work.options(ttl=7).definition.ttl == 7
    assert work.options(ttl=None).definition.ttl is None
    assert work.options(ttl=None).options(lease=5).definition.ttl is None
    monkeypatch.setenv("DURABLE_TTL_MS", "")
    assert work.definition.ttl is None


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf", "1 s"])
def test_a_bad_ttl_in_the_environment(text, monkeypatch):
    """It is refused at the run, naming the variable, and nothing is recorded."""
    store = MemoryStore()

    @durable(store=store)
    async def work(): ...

    monkeypatch.setenv("DURABLE_TTL_MS", text)

    async def main():
        with pytest.raises(ValueError, match="DURABLE_TTL_MS"):
            await work.run("a")
        assert await Runs(store).list() == []

    asyncio.run(main())
    with pytest.raises(ValueError, match="DURABLE_TTL_MS"):
        ttl_from_env(os.environ)

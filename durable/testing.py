"""Tools for testing stores, and code that uses durable functions. No test framework is needed.

``check_store`` and ``check_journal`` judge anyone's store by the contract in ``durable.store``;
``store_checks`` and ``journal_checks`` are the same, one promise at a time, for parametrised
tests::

    @pytest.mark.parametrize("check", store_checks(), ids=str)
    def test_my_store(check):
        asyncio.run(check(MyStore))

``ManualClock`` stands still until it's told to advance. ``FlakyStore`` fails, delays and loses
replies on demand, and counts calls and bytes.
"""

from __future__ import annotations

from durable._testing_claims import CLAIM_CHECKS
from durable._testing_clock import ManualClock
from durable._testing_faults import FlakyStore
from durable._testing_log import LOG_CHECKS
from durable._testing_runs import RUN_CHECKS
from durable._testing_site import Again, Age, Check, Make, run_checks
from durable._testing_store import STORE_CHECKS
from durable.store import Journal, KeyValueStore

__all__ = [
    "Check",
    "FlakyStore",
    "ManualClock",
    "check_journal",
    "check_store",
    "journal_checks",
    "store_checks",
]


def store_checks() -> tuple[Check[KeyValueStore], ...]:
    """Return the checks of ``check_store``, one for each promise of ``KeyValueStore``."""
    return STORE_CHECKS


def journal_checks() -> tuple[Check[Journal], ...]:
    """Return the checks of ``check_journal``, one for each promise of ``Journal``."""
    return CLAIM_CHECKS + RUN_CHECKS + LOG_CHECKS


async def check_store(
    make: Make[KeyValueStore],
    *,
    again: Again[KeyValueStore] | None = None,
    age: Age[KeyValueStore] | None = None,
) -> None:
    """Check that a store keeps every promise of ``KeyValueStore``.

    ``make()`` returns a fresh, empty store each time; each promise is checked on its own.
    ``again(store)`` returns a second client of the same data; without it, those checks use the
    one client. ``age(store, seconds)`` makes everything stored that many seconds older; without
    it, the checks of expiry wait for real, a fraction of a second each. All three may be plain or
    async. A store with ``aclose`` is closed after its check.

    Raises an ``ExceptionGroup`` with one ``AssertionError`` for each broken promise.
    """
    await run_checks(store_checks(), make, again, age)


async def check_journal(
    make: Make[Journal],
    *,
    again: Again[Journal] | None = None,
    age: Age[Journal] | None = None,
) -> None:
    """Check that a store keeps every promise of ``Journal``; parameters as in ``check_store``.

    A store whose leases reach no further than one process needs no ``again``.
    """
    await run_checks(journal_checks(), make, again, age)

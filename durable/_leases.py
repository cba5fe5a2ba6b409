"""The rules of claims, leases and expiry, as pure functions on a run's stored head.

Every store that can compute between reading a head and writing it uses these, so that the rules
are written once. Fences: Martin Kleppmann, "How to do distributed locking" (2016).
"""

from __future__ import annotations

import msgspec

from durable._errors import LeaseLostError
from durable._owners import is_dead
from durable._records import ENDED, Status
from durable.store import Append, Claim, Head, HeadChange, ListQuery


class HeadRow(msgspec.Struct):
    """A head as it is stored. ``lease_until`` is 0 when nobody holds the run.

    ``first`` is the sequence number of the first line that counts: that of the last epoch.
    """

    run_id: str
    name: str
    status: Status
    version: int
    fence: int
    owner: str
    created_at: float
    updated_at: float
    lease_until: float = 0.0
    ttl: float | None = None
    attempts: int = 0
    recoveries: int = 0
    inbox: int = 0
    first: int = 1
    wake_at: float | None = None
    expires_at: float | None = None
    error: str = ""

    def head(self, now: float, sequence: int) -> Head:
        """Return what callers see of it at the time ``now``."""
        return Head(
            run_id=self.run_id,
            name=self.name,
            status=self.status,
            version=self.version,
            fence=self.fence,
            attempts=self.attempts,
            recoveries=self.recoveries,
            created_at=self.created_at,
            updated_at=self.updated_at,
            held=max(0.0, self.lease_until - now),
            inbox=self.inbox,
            owner=self.owner,
            sequence=sequence,
            wake_at=self.wake_at,
            expires_at=self.expires_at,
            error=self.error,
        )


class Decision(msgspec.Struct):
    """What a claim comes to.

    ``row`` is the head afterwards (None: no run, and none is made). ``changed`` says whether it
    must be written. ``epoch`` says that the claim's ``begin`` lines must be written as the log's
    only lines, from the sequence number ``row.first`` on.
    """

    row: HeadRow | None
    granted: bool = False
    changed: bool = False
    epoch: bool = False
    before: Status | None = None
    took_over: bool = False


def is_expired(row: HeadRow, now: float) -> bool:
    """Return whether the run counts as gone at the time ``now``."""
    return row.expires_at is not None and row.expires_at <= now and row.lease_until <= now


def owns(row: HeadRow, owner: str, fence: int) -> bool:
    """Return whether ``owner`` is the one that last claimed the run."""
    return row.fence == fence and row.owner == owner


def decide_claim(row: HeadRow | None, claim: Claim, now: float, sequence: int) -> Decision:
    """Return what ``claim`` comes to for the run ``row`` whose log has ``sequence`` lines.

    An expired row must be given as None.
    """
    if row is None:
        return _create(claim, now)
    if row.owner == claim.owner:
        return Decision(row, granted=True, before=row.status)
    held = row.lease_until > now and not is_dead(row.owner)
    if claim.unheld or row.name != claim.name or held:
        return Decision(row, before=row.status)
    if row.status in claim.restart and claim.begin:
        return _take(row, claim, now, restart_at=sequence + 1)
    if row.status in claim.statuses:
        return _take(row, claim, now)
    return Decision(row, before=row.status)


def _create(claim: Claim, now: float) -> Decision:
    if not claim.begin:
        return Decision(None)
    row = HeadRow(
        run_id=claim.run_id,
        name=claim.name,
        status="pending" if claim.unheld else "running",
        version=claim.version,
        fence=int(now * 1000),
        owner=claim.owner,
        created_at=now,
        updated_at=now,
        ttl=claim.ttl,
        attempts=0 if claim.unheld else 1,
    )
    extend_lease(row, 0.0 if claim.unheld else claim.lease, now)
    return Decision(row, granted=True, changed=True, epoch=True)


def _take(row: HeadRow, claim: Claim, now: float, *, restart_at: int = 0) -> Decision:
    before, took_over = row.status, row.lease_until > 0
    if restart_at:
        row.attempts = row.recoveries = 0
        row.first, row.version, row.created_at = restart_at, claim.version, now
    row.attempts += 1
    row.recoveries = 0 if claim.reset or restart_at else row.recoveries + took_over
    row.fence += 1
    row.owner, row.status, row.ttl = claim.owner, "running", claim.ttl
    row.updated_at, row.wake_at, row.error = now, None, ""
    extend_lease(row, claim.lease, now)
    return Decision(row, True, True, bool(restart_at), before, took_over)


def extend_lease(row: HeadRow, lease: float, now: float) -> None:
    """Let the lease run for ``lease`` seconds from ``now``, and the expiry follow it."""
    row.lease_until = now + lease if lease else 0.0
    row.expires_at = None if row.ttl is None else now + lease + row.ttl


def check_holder(row: HeadRow | None, run_id: str, owner: str, fence: int) -> HeadRow:
    """Return ``row`` if ``owner`` claimed it last and hasn't released it.

    Else raise ``LeaseLostError``: a renewal that arrives after the release would revive the run.
    """
    if row is None or not owns(row, owner, fence) or not row.lease_until:
        raise LeaseLostError(run_id, fence)
    return row


def change_head(row: HeadRow, change: HeadChange, now: float) -> bool:
    """Apply ``change``; return False when the run is to be removed at once."""
    if change.expires_in is not None and change.expires_in <= 0:
        return False
    row.status = change.status or row.status
    row.version = row.version if change.version is None else change.version
    row.error = row.error if change.error is None else change.error
    row.wake_at, row.updated_at = change.wake_at, now
    row.expires_at = None if change.expires_in is None else now + change.expires_in
    if change.release:
        row.lease_until = 0.0
    return True


def removes(member: Append) -> bool:
    """Return whether the append ends in the run's removal; repeated, it finds no run."""
    return (
        member.head is not None
        and member.head.expires_in is not None
        and (member.head.expires_in <= 0)
    )


def takes_deposits(row: HeadRow) -> bool:
    """Return whether the run's inbox is open."""
    return row.status not in ENDED


def matches(row: HeadRow, query: ListQuery, now: float) -> bool:
    """Return whether an unexpired run is one that ``query`` describes; ``limit`` apart."""
    return (
        (query.status is None or row.status in query.status)
        and (query.names is None or row.name in query.names)
        and row.run_id.startswith(query.prefix)
        and (query.after is None or row.run_id > query.after)
        and not (query.claimable and row.lease_until > now)
        and (query.before is None or row.updated_at <= now - query.before)
    )

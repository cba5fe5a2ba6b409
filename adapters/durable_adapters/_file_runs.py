"""The journal's operations on one run, each under the lock of the run's file."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from durable._errors import DurableError, LeaseLostError, RunBusyError, StoreError
from durable._leases import (
    HeadRow,
    change_head,
    check_holder,
    decide_claim,
    extend_lease,
    is_expired,
    owns,
    removes,
    takes_deposits,
)
from durable.store import Append, Claim, Claimed, Deposit, Refusal, RunLog
from durable_adapters._file_disk import Disk, gate
from durable_adapters._file_kept import RunFiles
from durable_adapters._file_run import RunFile


class Runs:
    """What a journal does with single runs."""

    def __init__(self, disk: Disk, files: RunFiles) -> None:
        self._disk = disk
        self._files = files

    def claim(self, claim: Claim) -> Claimed | None:
        """Claim a run, creating it if need be."""
        while True:
            with self._files.locked(claim.run_id, keep=True) as run:
                if run is not None:
                    return self._claim_recorded(run, claim)
            if decide_claim(None, claim, 0.0, 0).row is None:
                return None
            claimed = self._create(claim)
            if claimed is not None:
                return claimed

    def _create(self, claim: Claim) -> Claimed | None:
        """Return what came of the claim, or None if another process has just made the run."""
        self._disk.prepare()
        now = self._disk.now()
        row = decide_claim(None, claim, now, 0).row
        assert row is not None
        run = RunFile(self._disk, claim.run_id)
        try:
            if not run.create(row, claim.begin):
                return None
            run.unlock()
        except BaseException:
            run.close()
            raise
        if run.is_held:
            self._files.keep(run)
        else:
            run.close()
        return Claimed(True, RunLog(row.head(now, len(claim.begin)), list(claim.begin)), now)

    def _claim_recorded(self, run: RunFile, claim: Claim) -> Claimed | None:
        lines = run.read_log()
        old, now = copy.copy(run.load_renewal()), self._disk.now()
        expired = is_expired(old, now)
        row, sequence = None if expired else run.row, run.tape.sequence
        decision = decide_claim(row, claim, now, sequence)
        if (row := decision.row) is None:
            return None
        if expired:
            row.fence = max(row.fence, old.fence + 1)
        if decision.epoch:
            run.replace(row, claim.begin, {} if expired else run.tape.inbox, old.status)
            lines = list(claim.begin)
        elif decision.changed:
            run.put_head(row, old.status)
            run.flush()
        elif decision.granted:
            run.confirm()
        log = _log(run, row, now, lines)
        return Claimed(decision.granted, log, now, decision.before, decision.took_over)

    def append(self, run_id: str, members: Sequence[Append]) -> list[int | Refusal]:
        """Add lines to the log: several appends, in order, that reach the disk together."""
        outcomes: list[int | Refusal] = []
        safe = 0
        try:
            with gate("append", run_id), self._files.locked(run_id, keep=True) as run:
                if run is not None:
                    run.refresh()
                for member in members:
                    outcomes.append(self.append_to(run, member))
                    if run is None or run.is_flushed:
                        safe = len(outcomes)
                if run is not None:
                    run.flush()
        except DurableError as error:
            outcomes[safe:] = [copy_error(error) for _ in members[safe:]]
        return outcomes

    def append_to(self, run: RunFile | None, member: Append) -> int | Refusal:
        """Add lines to a locked file; they are safe when the file has been flushed."""
        if run is None or run.gone or self._has_expired(run):
            gone = LeaseLostError(member.run_id, member.fence)
            return 0 if removes(member) else gone
        row = run.row
        if not owns(row, member.owner, member.fence):
            return LeaseLostError(member.run_id, member.fence)
        if member.first != run.tape.sequence + 1:
            if not run.has(member.first, member.lines):
                return StoreError("append", member.run_id, "the log has other lines there")
            run.confirm()
        elif member.epoch:
            return self._begin_epoch(run, member)
        elif member.lines:
            run.put_records(member.lines, final=member.head is None)
        if member.head is None:
            return row.inbox
        row = run.load_renewal()
        before = row.status
        if change_head(row, member.head, self._disk.now()):
            run.put_head(row, before)
        else:
            run.remove(row.fence)
        return row.inbox

    def _has_expired(self, run: RunFile) -> bool:
        # A renewal never gives an expiry to a run that had none, so most appends look no further.
        if run.row.expires_at is None or not is_expired(run.row, now := self._disk.now()):
            return False
        return is_expired(run.load_renewal(), now)

    def _begin_epoch(self, run: RunFile, member: Append) -> int:
        row = run.load_renewal()
        before, row.first = row.status, member.first
        if member.head is None or change_head(row, member.head, self._disk.now()):
            run.replace(row, member.lines, run.tape.inbox, before)
        else:
            run.remove(row.fence)
        return row.inbox

    def renew(self, run_id: str, owner: str, fence: int, lease: float) -> int:
        """Let the lease run on."""
        with self._files.locked(run_id, keep=True) as run:
            row = None if run is None else self._live_row(run)
            row = check_holder(row, run_id, owner, fence)
            assert run is not None
            extend_lease(row, lease, self._disk.now())
            run.renew(row)
            return row.inbox

    def read(self, run_id: str, after: int) -> RunLog | None:
        """Return the run, or None."""
        with self._files.locked(run_id) as run:
            if run is None:
                return None
            lines = run.read_log(after)
            row, now = run.load_renewal(), self._disk.now()
            return None if is_expired(row, now) else _log(run, row, now, lines, after)

    def deposit(self, run_id: str, key: str, value: str) -> Deposit | None:
        """Put ``value`` into the run's inbox; the first one wins."""
        with self._files.locked(run_id) as run:
            row = None if run is None else self._live_row(run)
            if run is None or row is None:
                return None
            if not takes_deposits(row):
                return Deposit(False, None, row.status)
            stands = run.tape.inbox.get(key)
            if stands is None:
                stands = value
                run.put_deposit(key, value)
                row.inbox = len(run.tape.inbox)
                run.put_head(row, row.status)
                run.flush()
            else:
                run.confirm()
            return Deposit(stands == value, stands, row.status)

    def delete(self, run_id: str, held: bool) -> bool:
        """Remove a run; return whether it was there."""
        with self._files.locked(run_id) as run:
            if run is None:
                return False
            run.refresh()
            row, now = run.load_renewal(), self._disk.now()
            if row.lease_until > now and not held:
                raise RunBusyError(run_id, row.lease_until - now)
            run.remove(row.fence)
            return not is_expired(row, now)

    def remove_expired(self, run_id: str) -> bool:
        """Remove the run if it has expired; return whether it has."""
        with self._files.locked(run_id) as run:
            if run is None:
                return False
            run.refresh()
            row = run.load_renewal()
            expired = is_expired(row, self._disk.now())
            if expired:
                run.remove(row.fence)
            return expired

    def _live_row(self, run: RunFile) -> HeadRow | None:
        run.refresh()
        row = run.load_renewal()
        return None if is_expired(row, self._disk.now()) else row


def _log(run: RunFile, row: HeadRow, now: float, lines: list[str], after: int = 0) -> RunLog:
    first, sequence = max(row.first, after + 1), run.tape.sequence
    return RunLog(
        head=row.head(now, sequence),
        lines=lines,
        first=first,
        more=first + len(lines) <= sequence,
        inbox=dict(run.tape.inbox),
    )


def copy_error(error: DurableError) -> DurableError:
    """Return one error per member: a shared one would collect every waiter's traceback."""
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own

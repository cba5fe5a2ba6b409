"""Stores that break one promise each, and the check that must say so."""

from fnmatch import fnmatchcase

from durable._clock import clock
from durable._leases import change_head, extend_lease
from durable._memory import MemoryStore
from durable.store import Deposit


class GlobStore(MemoryStore):
    async def keys(self, pattern):
        return sorted(key for key in self._values if fnmatchcase(key, pattern))


class IgnoringCase(MemoryStore):
    async def keys(self, pattern):
        lower = MemoryStore()
        lower._values = {key.lower(): entry for key, entry in self._values.items()}
        found = set(await lower.keys(pattern.lower()))
        return sorted(key for key in self._values if key.lower() in found)


class Unsorted(MemoryStore):
    async def keys(self, pattern):
        return (await super().keys(pattern))[::-1]


class KeepsTtl(MemoryStore):
    async def set(self, key, value, *, ttl=None):
        _, expires = self._values.get(key, (None, None))
        await super().set(key, value, ttl=ttl)
        if ttl is None:
            self._values[key] = (value, expires)


class ServesExpired(MemoryStore):
    def _live(self, key):
        return self._values.get(key, (None, None))[0]


class TakesZeroTtl(MemoryStore):
    async def set(self, key, value, *, ttl=None):
        await super().set(key, value, ttl=ttl or None)


class TrimsValues(MemoryStore):
    async def set(self, key, value, *, ttl=None):
        await super().set(key, value.strip(), ttl=ttl)


class CollidingKeys(MemoryStore):
    async def set(self, key, value, *, ttl=None):
        await super().set(key.replace(":", "_"), value, ttl=ttl)

    async def get(self, key):
        return await super().get(key.replace(":", "_"))


class DeletesAlways(MemoryStore):
    async def delete(self, key):
        await super().delete(key)
        return True


class TakesSurrogates(MemoryStore):
    async def set(self, key, value, *, ttl=None):
        self._values[key] = (value, None)


class SwapsBlindly(MemoryStore):
    async def swap(self, key, expected, value, *, ttl=None):
        await self.set(key, value, ttl=ttl)
        return True


class NotFenced(MemoryStore):
    def _append(self, member, now):
        run = self._runs.get(member.run_id)
        if run is not None:
            run.row.owner, run.row.fence = member.owner, member.fence
        return super()._append(member, now)


class GrantsHeld(MemoryStore):
    async def claim(self, claim):
        if claim.run_id in self._runs:
            self._runs[claim.run_id].row.lease_until = 0.0
        return await super().claim(claim)


class FenceStands(MemoryStore):
    async def claim(self, claim):
        before = self._runs.get(claim.run_id)
        fence = before and before.row.fence
        claimed = await super().claim(claim)
        if before:
            before.row.fence = fence
        return claimed


class RestartLeaks(MemoryStore):
    async def claim(self, claim):
        run = self._runs.get(claim.run_id)
        old = list(run.lines) if run and run.row.status in claim.restart else []
        first = run.row.first if run else 1
        claimed = await super().claim(claim)
        if old and claimed.granted:
            run.lines[:0] = old
            run.row.first = first
        return claimed


class EpochLeaks(MemoryStore):
    def _append(self, member, now):
        if member.epoch:
            member = type(member)(
                member.run_id, member.owner, member.fence, member.first, member.lines, member.head
            )
        return super()._append(member, now)


class RepeatsTwice(MemoryStore):
    def _append(self, member, now):
        run = self._runs.get(member.run_id)
        if run and member.first <= run.sequence and not removes_all(member):
            member = type(member)(
                member.run_id, member.owner, member.fence, run.sequence + 1, member.lines
            )
        return super()._append(member, now)


def removes_all(member):
    return member.head is not None and member.head.expires_in == 0


class BatchFailsWhole(MemoryStore):
    async def append(self, batch):
        results = list(await super().append(batch))
        failed = [each for each in results if not isinstance(each, int)]
        return failed * len(results) if len(failed) == 1 else results


class IgnoresRelease(MemoryStore):
    def _append(self, member, now):
        run = self._runs.get(member.run_id)
        until = run.row.lease_until if run else 0.0
        result = super()._append(member, now)
        if run:
            run.row.lease_until = until
        return result


class LastDepositWins(MemoryStore):
    async def deposit(self, run_id, key, value):
        if run_id in self._runs:
            self._runs[run_id].inbox.pop(key, None)
        return await super().deposit(run_id, key, value)


class TakesLateDeposits(MemoryStore):
    async def deposit(self, run_id, key, value):
        run = self._runs.get(run_id)
        if run is None:
            return None
        run.inbox.setdefault(key, value)
        return Deposit(True, run.inbox[key], run.row.status)


class HeldRunsExpire(MemoryStore):
    def _run(self, run_id, now):
        run = self._runs.get(run_id)
        if run and run.row.expires_at is not None and run.row.expires_at <= now:
            del self._runs[run_id]
        return self._runs.get(run_id)


class NeverExpires(MemoryStore):
    def _run(self, run_id, now):
        return self._runs.get(run_id)


class RenewalForgetsExpiry(MemoryStore):
    async def renew(self, run_id, owner, fence, lease):
        run = self._runs.get(run_id)
        expires = run and run.row.expires_at
        count = await super().renew(run_id, owner, fence, lease)
        run.row.expires_at = expires
        return count


class RenewsAnyone(MemoryStore):
    async def renew(self, run_id, owner, fence, lease):
        extend_lease(self._runs[run_id].row, lease, clock().time())
        return 0


class ListsByGlob(MemoryStore):
    def _matching(self, query, now):
        for run in self._runs.values():
            if fnmatchcase(run.row.run_id, query.prefix + "*"):
                yield run


class ListsUnordered(MemoryStore):
    async def list_runs(self, query):
        return (await super().list_runs(query))[::-1]


class DeletesHeld(MemoryStore):
    async def delete_run(self, run_id, *, held=False):
        return await super().delete_run(run_id, held=True)


class InboxSurvives(MemoryStore):
    async def claim(self, claim):
        kept = self.__dict__.setdefault("kept", {})
        claimed = await super().claim(claim)
        if claim.run_id in self._runs:
            self._runs[claim.run_id].inbox.update(kept.get(claim.run_id, {}))
            kept[claim.run_id] = self._runs[claim.run_id].inbox
        return claimed and type(claimed)(
            claimed.granted,
            self._runs[claim.run_id].log(claimed.now),
            claimed.now,
            claimed.before,
            claimed.took_over,
        )


class PurgesAll(MemoryStore):
    async def purge(self, limit=100):
        now = clock().time()
        return len([self._runs.pop(key) for key in list(self._runs) if not self._run(key, now)])


class PagesLoseLines(MemoryStore):
    async def read(self, run_id, *, after=0):
        log = await super().read(run_id, after=after)
        if log is None or len(log.lines) < 1000:
            return log
        return type(log)(log.head, log.lines[:999], log.first, False, log.inbox)


class SplitsLines(MemoryStore):
    async def read(self, run_id, *, after=0):
        log = await super().read(run_id, after=after)
        lines = tuple("\n".join(log.lines).splitlines()) if log else ()
        return log and type(log)(log.head, lines, log.first, log.more, log.inbox)


class HeadChangesLate(MemoryStore):
    """Applies head changes of refused appends too."""

    def _append(self, member, now):
        result = super()._append(member, now)
        run = self._runs.get(member.run_id)
        if not isinstance(result, int) and run and member.head:
            change_head(run.row, member.head, now)
        return result


class IdsIgnoreCase(MemoryStore):
    async def claim(self, claim):
        for run_id in self._runs:
            if run_id.lower() == claim.run_id.lower() and run_id != claim.run_id:
                self._runs[claim.run_id] = self._runs[run_id]
                break
        return await super().claim(claim)


BROKEN_STORES = {
    GlobStore: "star_alone_is_special",
    IgnoringCase: "star_alone_is_special",
    Unsorted: "many_keys_are_sorted",
    KeepsTtl: "writes_replace_ttl",
    ServesExpired: "ttl_ends_values",
    TakesZeroTtl: "ttl_is_positive",
    TrimsValues: "values_come_back",
    CollidingKeys: "keys_are_apart",
    DeletesAlways: "delete_tells",
    TakesSurrogates: "surrogates_are_refused",
    SwapsBlindly: "swap_compares",
}
BROKEN_JOURNALS = {
    NotFenced: "losers_are_fenced_off",
    GrantsHeld: "held_runs_are_refused",
    FenceStands: "fences_grow",
    RestartLeaks: "restarts_begin_anew",
    EpochLeaks: "epochs_begin_anew",
    RepeatsTwice: "repeats_are_recognised",
    BatchFailsWhole: "losers_are_fenced_off",
    IgnoresRelease: "heads_change_with_lines",
    LastDepositWins: "the_first_deposit_wins",
    TakesLateDeposits: "ended_runs_take_nothing",
    HeldRunsExpire: "held_runs_do_not_expire",
    NeverExpires: "unfinished_runs_expire",
    RenewalForgetsExpiry: "renewals_put_off_expiry",
    RenewsAnyone: "losers_can_not_renew",
    ListsByGlob: "lists_are_ordered",
    ListsUnordered: "lists_are_ordered",
    DeletesHeld: "deletions_are_whole",
    InboxSurvives: "fences_outlive_runs",
    PurgesAll: "purging_is_bounded",
    PagesLoseLines: "long_logs_come_by_pages",
    SplitsLines: "lines_are_any_text",
    HeadChangesLate: "wrong_numbers_are_refused",
    IdsIgnoreCase: "odd_ids_are_apart",
}

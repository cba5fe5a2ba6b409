"""``KeyValueJournal``: the journal on the bare five methods, for the tasks of one process.

How a run lies on keys is told in ``_kv_segments``. Whatever must become true together is one
``set``: lines that come with a head change travel inside the head's value, so that a crash
between any two writes leaves the old state or the new one.

Leases are kept by this object: they end with it, and whoever opens the store next takes a run
over that was held. Tasks of several event loops and threads may share one object (if the store
can be shared so); two objects on one store do not see each other's leases. A run's lines carry
the fence of who wrote them, so even then a late writer can't mix its lines into its successor's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import msgspec

from durable._clock import clock
from durable._errors import LeaseLostError, RunBusyError, StateFormatError, StoreError
from durable._kv_gate import Gate, Turns, gathered
from durable._kv_run import KvRun, log
from durable._kv_segments import Keys, StoredHead, read_head
from durable._leases import (
    Decision,
    HeadRow,
    change_head,
    check_holder,
    decide_claim,
    extend_lease,
    is_expired,
    matches,
    owns,
    removes,
    takes_deposits,
)
from durable._owners import owner_id, random_part
from durable.store import (
    Append,
    Claim,
    Claimed,
    Deposit,
    Guarantees,
    Head,
    KeyValueStore,
    ListQuery,
    Refusal,
    RunLog,
)

_GUARANTEES = Guarantees(
    leases="process",
    note="as durable as the store's own writes; its leases are known to this process alone",
)
#: Runs of one batch that are written at once.
_RUNS_AT_ONCE = 50
_HEADS_AT_ONCE = 64
#: When the leases of other journals ended, which end with the object: long ago, but there was one.
_LAPSED = 1.0


class KeyValueJournal:
    """Gives any store of five methods a journal.

    ``prefix`` (any text but the empty one) begins all keys; two prefixes never see each other.
    Raises ``ValueError`` for an empty prefix.
    """

    def __init__(self, store: KeyValueStore, *, prefix: str = "durable") -> None:
        if not prefix:
            raise ValueError("prefix must not be empty: it keeps the journal's keys apart")
        self._gate = Gate(store)
        self._keys = Keys(prefix)
        self._token = owner_id()
        self._live: dict[str, KvRun] = {}
        self._turns = Turns()
        self._orphans_left = True

    def __repr__(self) -> str:
        return f"KeyValueJournal({self._gate.store!r})"

    @property
    def guarantees(self) -> Guarantees:
        """One process; as durable as the store."""
        return _GUARANTEES

    async def settle(self) -> None:
        """Wait until the work in the background (merging, deleting old keys) is done."""
        await self._turns.settle()

    # The journal.

    async def claim(self, claim: Claim) -> Claimed | None:
        """Claim a run, creating it if need be."""
        return await self._turns.alone(claim.run_id, lambda: self._claim(claim))

    async def _claim(self, claim: Claim) -> Claimed | None:
        now = clock().time()
        run = await self._find(claim.run_id, now)
        if run is None:
            decision = decide_claim(None, claim, now, 0)
        else:
            decision = decide_claim(run.copied_row(), claim, now, run.sequence)
        if decision.row is None:
            return None
        # The log is read first: if it's damaged, nothing is changed.
        page = None if run is None or decision.epoch else await run.page(now)
        if decision.changed:
            run = await self._change(run, decision.row, claim, decision)
        assert run is not None
        if page is None:
            page = await run.page(now)
        page = msgspec.structs.replace(page, head=run.row.head(now, run.sequence))
        return Claimed(decision.granted, page, now, decision.before, decision.took_over)

    async def _change(
        self, run: KvRun | None, row: HeadRow, claim: Claim, decision: Decision
    ) -> KvRun:
        """Write what a granted claim comes to."""
        if run is None:
            head = StoredHead(row, random_part(owner_id()), self._token, 0, 0)
            run = KvRun(self._gate, self._keys, head, None)
        elif run.leftovers:
            # Late lines of earlier owners are told by the fence of this claim; remove them first.
            await run.sweep()
        lines = claim.begin if decision.epoch else ()
        await run.put_head(row, self._token, lines, epoch=decision.epoch, claimed=True)
        self._keep(claim.run_id, run)
        self._tidy(run)
        return run

    async def append(self, batch: Sequence[Append]) -> Sequence[int | Refusal]:
        """Add lines to the logs of several runs.

        If the store fails for one run, what the batch has for other runs is written all the same
        before the ``StoreError`` is raised.
        """
        places: dict[str, list[int]] = {}
        for place, member in enumerate(batch):
            places.setdefault(member.run_id, []).append(place)

        async def one(run_id: str) -> list[int | Refusal]:
            members = [batch[place] for place in places[run_id]]
            try:
                return await self._turns.alone(run_id, lambda: self._append(run_id, members))
            except StateFormatError as error:
                return [error] * len(members)

        if len(places) == 1:
            return await one(batch[0].run_id)
        answers: list[int | Refusal] = [0] * len(batch)
        found = await gathered(one, places, _RUNS_AT_ONCE)
        for run_places, results in zip(places.values(), found, strict=True):
            for place, result in zip(run_places, results, strict=True):
                answers[place] = result
        return answers

    async def _append(self, run_id: str, members: Sequence[Append]) -> list[int | Refusal]:
        now = clock().time()
        run = await self._find(run_id, now)
        answers: list[int | Refusal] = []
        waiting: list[str] = []  # accepted lines that go out together, under one key
        for member in members:
            if run is None and removes(member):
                answers.append(0)
                continue
            if run is None or not owns(run.row, member.owner, member.fence):
                answers.append(LeaseLostError(run_id, member.fence))
                continue
            follows = member.first == run.sequence + len(waiting) + 1
            if follows and member.head is None and not member.epoch:
                waiting += member.lines
            else:
                await run.put_lines(waiting)
                waiting.clear()
                if not follows and not await _is_recorded(run, member):
                    reason = "the log has other lines there"
                    answers.append(StoreError("append", run_id, reason))
                    continue
                run = await self._advance(run, member, follows, now)
            answers.append(0 if run is None else run.row.inbox)
        if run is not None:
            await run.put_lines(waiting)
            self._tidy(run)
        return answers

    async def _advance(self, run: KvRun, member: Append, follows: bool, now: float) -> KvRun | None:
        """Write an accepted append that has a head change, is an epoch, or was repeated."""
        row = run.copied_row()
        if member.head is not None and not change_head(row, member.head, now):
            await self._remove(run)
            return None
        epoch = follows and member.epoch
        if epoch:
            row.first = member.first
        if epoch or member.head is not None:
            lines = member.lines if follows else ()
            await run.put_head(row, self._token, lines, epoch=epoch)
            self._keep(row.run_id, run)
        return run

    async def renew(self, run_id: str, owner: str, fence: int, lease: float) -> int:
        """Let the lease run on. Written down only if the run's expiry moves with it."""
        return await self._turns.alone(run_id, lambda: self._renew(run_id, owner, fence, lease))

    async def _renew(self, run_id: str, owner: str, fence: int, lease: float) -> int:
        now = clock().time()
        run = await self._find(run_id, now)
        current = check_holder(None if run is None else run.row, run_id, owner, fence)
        assert run is not None
        row = run.copied_row()
        extend_lease(row, lease, now)
        if row.expires_at == current.expires_at and run_id in self._live:
            run.row.lease_until = row.lease_until
        else:
            await run.put_head(row, self._token)
            self._keep(run_id, run)
        return run.row.inbox

    async def read(self, run_id: str, *, after: int = 0) -> RunLog | None:
        """Return the run, or None."""
        return await self._turns.alone(run_id, lambda: self._read(run_id, after))

    async def _read(self, run_id: str, after: int) -> RunLog | None:
        now = clock().time()
        run = await self._find(run_id, now)
        return None if run is None else await run.page(now, after)

    async def deposit(self, run_id: str, key: str, value: str) -> Deposit | None:
        """Put ``value`` into the run's inbox; the first one wins."""
        return await self._turns.alone(run_id, lambda: self._deposit(run_id, key, value))

    async def _deposit(self, run_id: str, key: str, value: str) -> Deposit | None:
        run = await self._find(run_id, clock().time())
        if run is None:
            return None
        if not takes_deposits(run.row):
            return Deposit(False, None, run.row.status)
        if key not in run.inbox:
            await run.deposit(key, value)
        stands = run.inbox[key]
        return Deposit(stands == value, stands, run.row.status)

    async def list_runs(self, query: ListQuery) -> list[Head]:
        """Return the heads that ``query`` describes, ordered by run id.

        Reads heads until there are enough, so it costs more the more runs there are. The
        ``sequence`` of a run whose process died may lag behind until the run is read.
        """
        now = clock().time()
        beginning = self._keys.head(query.prefix)
        run_ids = sorted(map(self._keys.run_of, await self._gate.keys(beginning)))
        if query.after is not None:
            run_ids = [run_id for run_id in run_ids if run_id > query.after]
        found: list[StoredHead] = []
        for start in range(0, len(run_ids), _HEADS_AT_ONCE):
            heads = await gathered(self._peek, run_ids[start : start + _HEADS_AT_ONCE])
            for head in heads:
                if head is not None and not is_expired(head.row, now):
                    found += [head] * matches(head.row, query, now)
            if len(found) >= query.limit:
                break
        return await self._with_inboxes(found[: query.limit], query.prefix, now)

    async def _with_inboxes(
        self, found: Sequence[StoredHead], prefix: str, now: float
    ) -> list[Head]:
        """Return what callers see of the heads; deposits don't touch them, so count those."""
        if not found:
            return []
        names = await self._gate.keys(self._keys.all("i", prefix))
        counts = Counter(name.rpartition(":")[0] + ":" for name in names)
        for head in found:
            head.row.inbox = counts[self._keys.inbox(head.row.run_id, head.incarnation)]
        return [head.row.head(now, head.sequence) for head in found]

    async def _peek(self, run_id: str) -> StoredHead | None:
        """Return a run's head as it is now; one that can't be read is logged, and None."""
        run = self._live.get(run_id)
        if run is not None and not run.stale:
            row, sequence = run.copied_row(), run.sequence
            return msgspec.structs.replace(run.head, row=row, sequence=sequence)
        try:
            found = await self._stored_head(run_id)
        except StateFormatError as error:
            log.error("run %r is left out: %s", run_id, error)
            return None
        return None if found is None else found[0]

    async def delete_run(self, run_id: str, *, held: bool = False) -> bool:
        """Remove a run; return whether it was there."""
        return await self._turns.alone(run_id, lambda: self._delete(run_id, held))

    async def _delete(self, run_id: str, held: bool) -> bool:
        now = clock().time()
        run = await self._find(run_id, now)
        if run is None:
            return False
        if run.row.lease_until > now and not held:
            raise RunBusyError(run_id, run.row.lease_until - now)
        await self._remove(run)
        return True

    async def purge(self, limit: int = 100) -> int:
        """Remove up to ``limit`` expired runs; reads the heads of all.

        The first calls also remove what interrupted deletions have left.
        """
        removed = 0
        run_ids = [self._keys.run_of(key) for key in await self._gate.keys(self._keys.head(""))]
        for start in range(0, len(run_ids), _HEADS_AT_ONCE):
            for head in await gathered(self._peek, run_ids[start : start + _HEADS_AT_ONCE]):
                now = clock().time()
                if removed < limit and head is not None and is_expired(head.row, now):
                    run_id = head.row.run_id
                    await self._turns.alone(run_id, partial(self._find, run_id, now))
                    removed += 1
        return removed + await self._purge_orphans(limit - removed)

    async def _purge_orphans(self, limit: int) -> int:
        """Remove up to ``limit`` keys that belong to no run. Keys are listed before heads, for a
        run's head is the first of its keys to be written."""
        if not self._orphans_left or limit <= 0:
            return 0
        names = await self._gate.keys(self._keys.all("l"))
        names += await self._gate.keys(self._keys.all("i"))
        heads = set(map(self._keys.run_of, await self._gate.keys(self._keys.head(""))))
        orphans = [name for name in names if self._keys.run_of(name) not in heads]
        await self._gate.delete_all(orphans[:limit])
        self._orphans_left = len(orphans) > limit
        return len(orphans[:limit])

    # Finding a run.

    async def _find(self, run_id: str, now: float) -> KvRun | None:
        """Return the run as it stands; None if there is none, or it has expired."""
        run = self._live.get(run_id)
        if run is None or run.stale:
            run = await self._load(run_id, now, run)
        if run is not None and is_expired(run.row, now):
            await self._remove(run)
            return None
        return run

    async def _load(self, run_id: str, now: float, known: KvRun | None) -> KvRun | None:
        """Read the run; ``known`` is how it was known until a write failed."""
        if known is not None:
            await known.settled()
        while True:
            found = await self._stored_head(run_id)
            if found is None:
                self._live.pop(run_id, None)
                return None
            head, text = found
            run = KvRun(self._gate, self._keys, head, text)
            try:
                await run.load()
                break
            except StateFormatError:
                # Another process may have begun a new epoch between the two looks.
                if await self._gate.get(self._keys.head(run_id)) == text:
                    raise
        same = known is not None and owns(run.row, known.row.owner, known.row.fence)
        if known is not None and same and run.row.lease_until > 0:
            run.row.lease_until = max(run.row.lease_until, known.row.lease_until)
        self._keep(run_id, run)
        return run

    async def _stored_head(self, run_id: str) -> tuple[StoredHead, str] | None:
        """Return a run's head, and the text that it was read from."""
        key = self._keys.head(run_id)
        text = await self._gate.get(key)
        if text is None:
            return None
        head = read_head(key, text)
        if head.writer != self._token:
            head.row.lease_until = min(head.row.lease_until, _LAPSED)
        return head, text

    def _keep(self, run_id: str, run: KvRun) -> None:
        """Remember a run while this journal's lease of it isn't given back."""
        if run.row.lease_until > 0 and run.head.writer == self._token:
            self._live[run_id] = run
        else:
            self._live.pop(run_id, None)

    async def _remove(self, run: KvRun) -> None:
        try:
            await run.remove()
        finally:
            self._live.pop(run.row.run_id, None)

    def _tidy(self, run: KvRun) -> None:
        """Start whatever can be done after the answer: merging, and deleting old keys."""
        if run.leftovers:
            self._turns.begin(run.sweep())
        if self._live.get(run.row.run_id) is run and run.wants_merge():
            self._turns.begin(run.merge(), run.merging.release)


async def _is_recorded(run: KvRun, member: Append) -> bool:
    """Return whether the log has these very lines under these numbers."""
    if not member.lines:
        return True
    return await run.recorded(member.first, len(member.lines)) == member.lines

"""What must hold after every step, and at the end.

A process *holds* a token while its lease is valid by its own clock and the token is owned there, or
a claim on it is valid, or a reader of changes was told of it and has not let go. The tables name
one owner for a token. So nobody holds what another holds as long as everybody holds only what the
tables say is his: that is what is looked at, after every step of a process and every commit.

After a failover of the server that is not so for a while: what was held under the server before may
go on until its lease ends, whatever the tables say by now. Then two who hold one token are looked
for. And whatever happens, no two starts of a worker ever hold a token under one epoch.

Whatever changes who is in the cluster, or who leads, is told by the history: by one row, of a
fitting kind, of the same transaction.

With failover by session a worker that lives may be taken for dead, and hold what is another's until
it notices: then only the epochs and the fences are looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from uuid import UUID

from jobsync_async.core.server_history import AdoptedHistory
from jobsync_async.host.interruption import Interruption
from jobsync_async.work.holding import Holding
from tests.simulation.process import shown
from tests.simulation.statements import DEPARTURES, TABLE_OID
from tests.simulation.tables import Event, Transaction, View

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.server import Server


# An eviction is told of a row that stays, under another name; how it ends, is told too.
_ENDS = tuple(kind for kind in DEPARTURES if kind != "evicted")


def untold(tx: Transaction, before: View, after: View) -> Iterable[str]:
    """What changed in a transaction, and the history does not tell, or tells otherwise."""
    told = [event for event in tx.written.get("history", {}).values() if event is not None]
    was, now = ({n.incarnation for n in view.node.values()} for view in (before, after))
    for incarnation in was - now:
        rows = [event.kind for event in told if _tells_of_end(event, incarnation)]
        if len(rows) != 1:
            yield f"a start of a worker went with the rows {rows} in the history, not with one"
    joined = [event.incarnation for event in told if event.kind == "joined"]
    if set(joined) != now - was or len(joined) != len(now - was):
        yield f"{len(now - was)} joined, and the history has {len(joined)} rows of that"
    if any(e.kind in _ENDS and e.incarnation not in was - now for e in told):
        yield "the history tells of the end of a worker that is still there, or was not"
    terms = [event.term for event in told if event.term is not None]
    if terms != ([after.cluster.term] if after.cluster.term != before.cluster.term else []):
        yield f"the history tells of the terms {terms}, and {after.cluster.term} has begun"


def _tells_of_end(event: Event, incarnation: UUID) -> bool:
    return (
        (event.kind in DEPARTURES and event.incarnation == incarnation)
        or (event.details or {}).get("replaced") == str(incarnation)
        or event.kind == "generation"
    )


class Violation(Exception):
    """A promise was broken."""


@contextmanager
def nothing_starts_while_paused() -> Iterator[None]:
    """Nobody begins to work on a task once the worker was told of a pause. Only what is revoked
    may be written back."""
    works = Holding.works

    def checked(self: Holding, interruption: Interruption) -> None:
        worker, token = self._worker, self.claim.token_id
        if worker.paused is not None and worker.owns(token):
            loop: Any = asyncio.get_running_loop()
            loop.process.failures.append(
                Violation(f"work on token {token} begins while the cluster is {worker.paused}")
            )
        works(self, interruption)

    with patch.object(Holding, "works", checked):
        yield


class Invariants:
    """Looks on.

    Attributes:
        violation: the first that was seen.
        commits: how many transactions were committed under a fence.
    fences: for each token the highest epoch under which a fence committed, and whose it was. Never
        changed in place.
    """

    def __init__(
        self, processes: list[Process], server: Server, *, only_fenced: bool = False
    ) -> None:
        self._only_fenced = only_fenced
        self._processes = processes
        self._server = server
        self._seen: dict[Process, object] = {}
        self._holders: dict[tuple[int, int], UUID] = {}
        self._failed_over = False
        self.fences: dict[int, tuple[int, UUID]] = {}
        self.commits = 0
        self.violation: Violation | None = None

    # -- after a step of a process -----------------------------------------------------------------

    def look_at(self, process: Process) -> None:
        """Nothing may be held there that the tables do not give it."""
        worker = process.worker
        if worker is None or process.loop.dead:
            return
        ownership = worker.ownership
        state = (ownership.owned, worker.lease.deadline, process.uses)
        seen = self._seen.get(process)
        if seen is not None and seen[0] is state[0] and seen[1:] == state[1:]:  # type: ignore[index]
            return
        self._seen[process] = state
        for token, incarnation, epoch, how in self.held(process):
            if self._holders.setdefault((token, epoch), incarnation) != incarnation:
                self._report(
                    f"{process.name} holds token {token} ({how}), which another start held under "
                    f"one epoch, {shown(epoch)}"
                )
        if self._only_fenced:
            return
        if not self._failed_over:
            self._check(process, None)
            return
        self._alone(process)
        generation = self._view().cluster.generation
        if worker.history == AdoptedHistory(f"{self._server.identity}/{TABLE_OID}", generation):
            self._check(process, None)

    def _alone(self, process: Process) -> None:
        """Nobody else holds what it holds."""
        mine = {token for token, *_ in self.held(process)}
        for other in self._processes:
            if other is not process:
                for token, *_ in self.held(other):
                    if token in mine:
                        self._report(
                            f"{process.name} holds token {token}, and so does {other.name}"
                        )

    def failed_over(self, fences: dict[int, tuple[int, UUID]]) -> None:
        """Another server is there, on which these were the last commits through fences."""
        self._failed_over = True
        self.fences = fences

    def _view(self) -> View:
        return self._server.tables.committed

    def forget(self, process: Process) -> None:
        """It is not there any more."""
        self._seen.pop(process, None)

    def _check(self, process: Process, only: Iterable[int] | None) -> None:
        rows = self._view().token
        for token, incarnation, epoch, how in self.held(process):
            if only is not None and token not in only:
                continue
            row = rows.get(token)
            if row is None or row.incarnation != incarnation or row.epoch != epoch:
                owner = (
                    "without an owner"
                    if row is None or row.node is None
                    else f"{row.node}'s since epoch {shown(row.epoch)}"
                )
                self._report(
                    f"{process.name} holds token {token} ({how}, epoch {shown(epoch)}), which is "
                    f"{owner}"
                )

    @staticmethod
    def held(process: Process) -> Iterable[tuple[int, UUID, int, str]]:
        """What a process holds now: token, incarnation, epoch, and how."""
        worker = process.worker
        if worker is None or process.loop.dead or not worker.lease.valid(process.loop.time()):
            return
        ownership = worker.ownership
        for token in ownership.owned:
            yield token, ownership.incarnation, ownership.epoch(token) or 0, "owned"
        for claim in process.claims.values():
            if claim._open and claim._why_lost is None:
                yield claim.token_id, claim._incarnation, claim.epoch, "claimed"
        for held in process.streams.values():
            for token in held:
                yield token, ownership.incarnation, ownership.epoch(token) or 0, "told to a reader"

    # -- after a commit ----------------------------------------------------------------------------

    def committed(self, tx: Transaction, before: View, after: View) -> None:
        """Called before the locks go."""
        for token, incarnation, epoch in tx.fenced:
            self._fence(token, incarnation, epoch, after)
        changed = [
            token
            for token in tx.written.get("token", ())
            if (old := before.token.get(token)) is not None
            and (old.incarnation, old.epoch)
            != (after.token[token].incarnation, after.token[token].epoch)
        ]
        if not tx.untold:
            for what in untold(tx, before, after):
                self._report(what)
        if changed and not self._only_fenced:
            for process in self._processes:
                self._check(process, changed)
        for name in after.evicted.keys() & after.node.keys():
            self._report(f"{name} was evicted and has a row")
        for token in changed:
            if after.token[token].epoch < before.token[token].epoch:
                self._report(f"the epoch of token {token} went back")
        if (
            after.cluster.version < before.cluster.version
            or after.cluster.term < before.cluster.term
        ):
            self._report("the cluster's version or term went back")
        if (
            self._server.kind == "shared-storage"
            and after.cluster.generation != before.cluster.generation
        ):
            self._report("the cluster begins anew though no commit can be lost")

    def _fence(self, token: int, incarnation: UUID, epoch: int, after: View) -> None:
        self.commits += 1
        row = after.token.get(token)
        if row is None or (row.incarnation, row.epoch) != (incarnation, epoch):
            self._report(
                f"a commit through the fence of token {token}, epoch {shown(epoch)}, by somebody "
                "else than its owner"
            )
        last_epoch, last = self.fences.get(token, (epoch, incarnation))
        if epoch < last_epoch:
            self._report(
                f"a commit through the fence of token {token} under epoch {shown(epoch)} after a "
                "later one"
            )
        if epoch == last_epoch and incarnation != last:
            self._report(
                f"two owners committed through the fence of token {token} under one epoch, "
                f"{shown(epoch)}"
            )
        self.fences = {**self.fences, token: (epoch, incarnation)}

    def _report(self, what: str) -> None:
        if self.violation is None:
            self.violation = Violation(what)

    # -- at the end --------------------------------------------------------------------------------

    def unsettled(self, total_tokens: int) -> str | None:
        """What is not as it is when all is well: every token owned by one live worker, who knows
        it. None for nothing."""
        view = self._view()
        live = {}
        for process in self._processes:
            if process.loop.dead or process.over:
                continue
            what = self._unwell(process, view)
            if what is not None:
                return f"{process.name} {what}"
            worker = process.worker
            assert worker is not None
            live[worker.identity.incarnation] = process
        return self._unowned(view, live, total_tokens) or self._unknown(view, live)

    @staticmethod
    def _unwell(process: Process, view: View) -> str | None:
        worker, row = process.worker, view.node.get(process.name)
        if worker is None or not process.started:
            return "has not started"
        if not worker.lease.valid(process.loop.time()):
            return "has no lease"
        if row is None or row.incarnation != worker.identity.incarnation:
            return "has no row"
        if worker.paused is not None:
            return "takes the cluster for paused"
        return None if row.state == "active" else "is draining"

    @staticmethod
    def _unowned(view: View, live: dict[UUID, Process], total_tokens: int) -> str | None:
        if len(view.node) != len(live):
            return (
                "there are rows of workers that are gone: "
                f"{sorted(set(view.node) - {p.name for p in live.values()})}"
            )
        if len(view.token) != total_tokens:
            return f"only {len(view.token)} tokens have a row"
        for token in view.token.values():
            if token.incarnation not in live:
                return f"token {token.token_id} has no owner"
            if token.next_node is not None:
                return (
                    f"token {token.token_id} is on its way from {token.node} to {token.next_node}"
                )
        return None

    def _unknown(self, view: View, live: dict[UUID, Process]) -> str | None:
        for incarnation, process in live.items():
            worker = process.worker
            assert worker is not None
            mine = {
                token.token_id: token.epoch
                for token in view.token.values()
                if token.incarnation == incarnation
            }
            if worker.ownership.owned != mine.keys():
                return (
                    f"{process.name} owns {sorted(worker.ownership.owned)} and should own "
                    f"{sorted(mine)}"
                )
            if any(worker.ownership.epoch(token) != epoch for token, epoch in mine.items()):
                return f"{process.name} knows other epochs than the tables"
            if worker.leader != view.cluster.leader_incarnation or worker.term != view.cluster.term:
                return f"{process.name} takes another for the leader"
            if worker.version > view.cluster.version:
                return f"{process.name} knows a version that does not exist"
        counts = [
            sum(t.incarnation == incarnation for t in view.token.values()) for incarnation in live
        ]
        if max(counts) - min(counts) > 1:
            return f"the tokens are not shared out evenly: {counts}"
        return None

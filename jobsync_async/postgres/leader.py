"""The leader's statements: reading the cluster, taking over, expiring, distributing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg import errors

from jobsync_async.core.distribution import CAUSES, Distribution, flows_told
from jobsync_async.core.leader_state import PinRow, Reading
from jobsync_async.core.lease import Beat, Times
from jobsync_async.core.rows import ClusterRow, Event, Identity, Member, TokenGroup
from jobsync_async.errors import StoreUnavailable
from jobsync_async.postgres.arrays import int_array
from jobsync_async.postgres.cluster_version import concerned, take_version
from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.link import Link
from jobsync_async.postgres.sql import Queries
from jobsync_async.postgres.statement_context import StatementContext
from jobsync_async.postgres.token_rows import token_rows

_READ = ("read_members", "read_token_groups")
_MOST_FLOWS = 100
"""Of a distribution, as many are told in its row."""
_KINDS = {"kinds": list(CAUSES)}


class RebalanceOutcome(NamedTuple):
    """What a rebalance did.

    Attributes:
        reading: what was read under the lock.
        expired: workers that were deleted.
        distribution: what was wanted, None when nothing was.
        kept: tokens of its own that a fence held: revoked, in place of being given away.
        skipped: other tokens that a fence held, to come back for.
        duration_ms: from the lock to the commit's request.
    """

    reading: Reading
    expired: Sequence[str]
    distribution: Distribution | None
    kept: int
    skipped: int
    duration_ms: float

    @property
    def version(self) -> int:
        """Under which it wrote."""
        return self.reading.cluster.version + 1

    @property
    def wrote(self) -> bool:
        """Whether anything changed that others must hear of, or somebody waits for."""
        planned = self.distribution
        if planned is None:
            return bool(self.expired)
        counted_in = planned.planned_joined > self.reading.cluster.planned_joined
        moved = planned.moved > self.skipped
        return bool(self.expired) or moved or counted_in or planned.awaited


class Leading:
    """The statements that only a leader, or one that is about to be, sends."""

    def __init__(self, link: Link, queries: Queries, context: StatementContext) -> None:
        self._link = link
        self._queries = queries
        self._context = context

    async def read(self, since: int, pin_version: int) -> Reading:
        """What has changed since; without a lock, to find out whether anything is to be done."""

        async def work(connection: Connection) -> Reading:
            values = {"since": since, **self._context.values(connection.server)}
            found, *changed = await self._send(connection, ("read_cluster", *_READ), values)
            if not found:
                raise self._context.changed()
            return await self._reading(connection, pin_version, found, *changed)

        # One snapshot for all statements: members and tokens must fit together.
        return await self._link.run(work, one_snapshot=True)

    async def take_over(self, me: Identity, term: int, expire: Sequence[Beat]) -> int | None:
        """Become leader in place of one that is gone, or whose beat (in `expire`) still stands
        still; the new term, or None when it is not so any more."""

        async def work(connection: Connection) -> int | None:
            async with connection.transaction() as transaction:
                await take_version(connection, self._queries, self._context)
                here = self._context.values(connection.server)
                if expire:
                    values = {**_beats(expire), **here, "taken": True}
                    await connection.execute(self._queries["expire_nodes"], values)
                cursor = await connection.execute(
                    self._queries["take_over"], {**me._asdict(), **here, "term": term}
                )
                taken_over = cursor.rowcount == 1
                if not taken_over:
                    raise psycopg.Rollback(transaction)
            return term + 1 if taken_over else None

        return await self._link.run(work)

    async def rebalance(
        self,
        me: Identity,
        term: int,
        expire: Sequence[Beat],
        since: int,
        pin_version: int,
        decide: Callable[[Reading], Distribution | None],
    ) -> RebalanceOutcome | None:
        """One transaction: lock, expire, read, decide, write, announce. None: this worker does not
        lead any more.

        Raises StoreUnavailable; it may have been committed all the same: forget the state and read
        anew.
        """

        async def work(connection: Connection) -> RebalanceOutcome | None:
            outcome = None
            async with connection.transaction() as transaction:
                started = time.perf_counter()
                values = {
                    **me._asdict(),
                    "term": term,
                    "since": since,
                    "taken": False,
                    **_KINDS,
                    **self._context.values(connection.server),
                }
                first = ("lock_as_leader", "expire_nodes") if expire else ("lock_as_leader",)
                locked, *deleted, members, groups, events = await self._send(
                    connection, (*first, *_READ, "read_events"), {**values, **_beats(expire)}
                )
                if not locked:  # what came after it was carried out all the same
                    raise psycopg.Rollback(transaction)
                reading = await self._reading(
                    connection, pin_version, locked, members, groups, events
                )
                expired = [row.name for rows in deleted for row in rows]
                distribution = decide(reading)
                kept = skipped = 0
                if distribution is not None:
                    kept, skipped = await self._write(connection, me, reading, distribution)
                duration_ms = (time.perf_counter() - started) * 1000
                outcome = RebalanceOutcome(
                    reading, expired, distribution, kept, skipped, duration_ms
                )
                if not outcome.wrote:
                    raise psycopg.Rollback(transaction)
                await self._finish(connection, me, outcome)
            return outcome

        # What was decided has changed what `decide` knows.
        return await self._link.run(work, again=False)

    async def _send(
        self, connection: Connection, names: Sequence[str], values: dict[str, Any]
    ) -> list[list[Any]]:
        """The rows of each statement; all of them are sent in one message."""
        return await connection.together([self._queries[name] for name in names], values)

    async def _reading(
        self,
        connection: Connection,
        pin_version: int,
        found: Sequence[Any],
        members: Sequence[Any],
        groups: Sequence[Any],
        events: Sequence[Any] = (),
    ) -> Reading:
        """What the rows say, and the pins if they have changed."""
        cluster = ClusterRow(*found[0])
        pins = await self._read_pins(connection) if cluster.pin_version != pin_version else None
        return Reading(
            cluster=cluster,
            members=[_member(row) for row in members],
            groups=[TokenGroup(*group) for group in groups],
            pins=pins,
            youngest=max((m.joined for m in members), default=0),
            events=[Event(*row) for row in events],
        )

    async def _read_pins(self, connection: Connection) -> list[PinRow]:
        rows = await (await connection.execute(self._queries["read_pins"])).fetchall()
        return [PinRow(row.task_id, tuple(row.node_patterns), row.expires_in) for row in rows]

    async def _write(
        self, connection: Connection, me: Identity, reading: Reading, distribution: Distribution
    ) -> tuple[int, int]:
        """Write what was decided: how many of the own tokens were not given away but revoked, and
        how many others were passed over."""
        cluster = reading.cluster
        common = {
            "names": distribution.names,
            "version": cluster.version + 1,
            "planned_version": cluster.version,
            "generation": cluster.generation,
        }

        async def move(
            name: str, moves: tuple[Sequence[int], Sequence[int]], owner: UUID | None = None
        ) -> int:
            token_ids, receivers = map(int_array, moves)
            arrays = {"token_ids": token_ids, "receivers": receivers, "incarnation": owner}
            return (await connection.execute(self._queries[name], {**common, **arrays})).rowcount

        kept = written = 0
        if distribution.create:
            written = await self._create(connection, reading, distribution)
        for part in distribution.assign.parts():
            written += await move("assign_tokens", part)
        for part in distribution.given.parts():
            given = await move("assign_tokens", part, me.incarnation)
            # Revoked, which a fence does not keep off, no more fences are asked for. What was given
            # away bears the plan's version, and is passed over.
            left = await move("revoke_tokens", part) if given < len(part[0]) else 0
            kept, written = kept + left, written + given + left
        for part in distribution.revoke.parts():
            written += await move("revoke_tokens", part)
        return kept, distribution.moved - written

    async def _create(
        self, connection: Connection, reading: Reading, distribution: Distribution
    ) -> int:
        cluster = reading.cluster
        live = {m.name: Identity(m.name, m.incarnation) for m in reading.members if m.active}
        rows = token_rows(
            distribution.create,
            [live.get(name) for name in distribution.names],
            epoch=(cluster.generation << 32) + 1,
            version=0 if distribution.first else cluster.version + 1,
        )
        try:
            return await connection.copy_in(self._queries["copy_tokens"], rows)
        except errors.UniqueViolation as error:
            raise StoreUnavailable(
                "rows of tokens were made by somebody else than the leader: all is read anew"
            ) from error

    async def _finish(
        self, connection: Connection, me: Identity, outcome: RebalanceOutcome
    ) -> None:
        cluster, planned = outcome.reading.cluster, outcome.distribution
        values = {
            "version": cluster.version + 1,
            **self._context.values(connection.server),
            "concerned": _concerned(outcome),
            "first": planned is not None and planned.first,
            "planned_joined": planned.planned_joined if planned else cluster.planned_joined,
        }
        if planned is not None:
            values |= {
                "reason": planned.reason,
                "leader": me.name,
                "term": cluster.term,
                "nodes_before": planned.nodes_before,
                "nodes_after": planned.nodes_after,
                "tokens_moved": planned.moved - outcome.skipped,
                "duration_ms": outcome.duration_ms,
                "causes": list(planned.causes),
                "moves": json.dumps(flows_told(planned.flows, _MOST_FLOWS)),
            }
        names = ("finish_plan", *(("record_plan",) if planned else ()), "announce_plan")
        await self._send(connection, names, values)


def _member(row: Any) -> Member:
    times = Times.said(row.timeout_sec, row.interval_sec)
    return Member(row.name, row.incarnation, row.beat, row.weight, row.active, row.joined, times)


def _beats(beats: Sequence[Beat]) -> dict[str, list[Any]]:
    """Beats that were watched, as `expire_nodes` takes them."""
    names, incarnations, counts = zip(*beats, strict=True) if beats else ((), (), ())
    return {"names": list(names), "incarnations": list(incarnations), "beats": list(counts)}


def _concerned(outcome: RebalanceOutcome) -> str:
    """Whom the announcement names: who was expired is everybody's concern, for its neighbours watch
    it no more."""
    planned, reading = outcome.distribution, outcome.reading
    if planned is None or outcome.expired or planned.create:
        return concerned(None)
    counted_in = reading.cluster.planned_joined
    return concerned(
        m.age for m in reading.members if m.name in planned.concerned or m.age > counted_in
    )

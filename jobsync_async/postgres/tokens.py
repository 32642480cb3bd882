"""A worker's own tokens: hearing of changes, reading them, acknowledging revocations. One
connection, one thing at a time."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import asdict
from typing import Any, TypeVar
from uuid import UUID

from jobsync_async.core.neighbours import MOST_TOLD
from jobsync_async.core.rows import Identity, Neighbour, Process, Snapshot, Stuck, TokenRows
from jobsync_async.core.serving import Idler
from jobsync_async.host.waiting import signalled
from jobsync_async.postgres.arrays import int_array
from jobsync_async.postgres.cluster_version import MOST_NAMED
from jobsync_async.postgres.connection import Connection, Connector
from jobsync_async.postgres.link import Link
from jobsync_async.postgres.listener import Hearing, Listener
from jobsync_async.postgres.sql import Queries
from jobsync_async.postgres.statement_context import StatementContext
from jobsync_async.types import Pause, Runner

T = TypeVar("T")


class TokenFeed(Hearing, ABC):
    """The statements that follow from what is heard, on one connection.

    Attributes:
        age: the number by which announcements name it, once it was read.
        notifications: how many came, junk included.
        pushed: whether changes are announced here; if not, what a heartbeat tells is news enough to
            read.
        written: the version of the last acknowledgement.
        poll_interval_sec: seconds between two looks for a change, where none is announced.
    """

    age: int | None
    notifications: int
    pushed: bool
    written: int = -1
    poll_interval_sec: float = 1.0
    _queries: Queries
    _context: StatementContext
    _looked_at: float = float("-inf")
    _neighbours_seen: tuple[UUID | None, int, int] = (None, -1, -1)

    @abstractmethod
    async def wait(self, wake: asyncio.Event, timeout_sec: float | None) -> None:
        """Return when something was heard, `wake` is set, or the time is over. Raises
        StoreUnavailable."""

    @abstractmethod
    async def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Runner `work` with the connection, not cancelled and bounded in time. Raises
        StoreUnavailable or SchemaError."""

    @abstractmethod
    def abandon(self) -> None:
        """End the connection at once."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connection."""

    async def read_changes(self, me: Identity, since: int) -> Snapshot:
        """What changed after version `since`, in one atomic read; -1 reads everything. Raises
        StoreUnavailable."""

        async def work(connection: Connection) -> Snapshot:
            # Binary: thousands of numbers are parsed several times faster than from text.
            cursor = connection.cursor(binary=True)
            if self._neighbours_seen[0] != me.incarnation:
                self._neighbours_seen = (me.incarnation, -1, -1)
            _, members, youngest = self._neighbours_seen
            values = {
                **me._asdict(),
                "since": since,
                "members": members,
                "youngest": youngest,
                "most_told": MOST_TOLD,
            }
            values |= self._context.values(connection.server)
            row = await (await cursor.execute(self._queries["read_changes"], values)).fetchone()
            if row is None:
                raise self._context.changed()
            self.age = row.joined
            return Snapshot(
                incarnation=me.incarnation,
                since=since,
                version=row.version,
                term=row.term,
                leader=row.leader_incarnation,
                state=row.state,
                settled=bool(row.settled),
                coming=row.coming,
                mine=TokenRows(row.mine or ()),
                others=row.others or (),
                crowd=row.crowd,
                neighbours=self._neighbours(me, row),
                pause=_pause_of(row),
            )

        return await self.run(work)

    def _neighbours(self, me: Identity, row: Any) -> list[Neighbour] | None:
        """The workers of this host, if there are others than this incarnation read last over this
        connection."""
        seen = (me.incarnation, row.members, row.youngest)
        if seen == self._neighbours_seen:
            return None
        self._neighbours_seen = seen
        # Each as neighbour_from takes it; JSON has no UUIDs.
        return [
            neighbour_from(name, UUID(incarnation), *where)
            for name, incarnation, *where in row.neighbours or ()
        ]

    async def acknowledge(self, me: Identity, revocations: Sequence[tuple[int, int]]) -> list[int]:
        """Let go of tokens, each named with the version of the revocation that is answered; those
        that were handed on.

        A token is not among them when a fence still locks its row, or when the revocation was
        changed meanwhile, which the next reading tells. Raises StoreUnavailable; they may have been
        handed on all the same, which it tells too.
        """
        in_order = sorted(revocations)
        answer = {
            "most_named": MOST_NAMED,
            "incarnation": me.incarnation,
            "token_ids": int_array([token for token, _ in in_order]),
            "versions": int_array([version for _, version in in_order]),
        }

        async def work(connection: Connection) -> list[int]:
            values = {**answer, **self._context.values(connection.server)}
            locked, done = await connection.together(
                (self._queries["lock_cluster"], self._queries["acknowledge"]), values
            )
            if not locked:
                raise self._context.changed()
            if not done:
                return []
            self.written = done[0].version
            return list(done[0].token_ids)

        return await self.run(work)

    def _until_next_poll(self, timeout_sec: float | None) -> float:
        due = self._looked_at + self.poll_interval_sec - asyncio.get_running_loop().time()
        return due if timeout_sec is None else min(due, timeout_sec)

    async def _poll_if_due(self) -> None:
        """Has anything changed? And is there room for announcements again, where there was none?"""

        async def work(connection: Connection) -> Any:
            values = self._context.values(connection.server)
            return await (
                await connection.execute(self._queries["read_version"], values)
            ).fetchone()

        if self._until_next_poll(None) <= 0:
            self._looked_at = asyncio.get_running_loop().time()
            row = await self.run(work)
            if row is not None:
                self.hear_of(row.version, named=True)
                self._context.learn_queue_usage(row.queue_usage)

    async def show_stuck(self, me: Identity, stuck: Sequence[Stuck]) -> None:
        """Write into the own row which revoked tokens are still in use, for people to see. Raises
        StoreUnavailable."""
        shown = json.dumps([one._asdict() for one in stuck]) if stuck else None
        await self.run(
            lambda connection: connection.execute(
                self._queries["show_stuck"], {**me._asdict(), "stuck": shown}
            ),
        )

    async def announce_runs(self, me: Identity, runs: Collection[Runner]) -> bool:
        """Write into the own row what is run here; False when the row is not there. Raises
        StoreUnavailable."""

        async def work(connection: Connection) -> bool:
            values = {**me._asdict(), "runs": _as_json(runs)}
            return (await connection.execute(self._queries["announce_runs"], values)).rowcount == 1

        return await self.run(work)

    async def read_idlers(self, me: Identity, runs: Collection[Runner]) -> list[Idler]:
        """Workers that say what they run, and do not run all of these. Raises StoreUnavailable."""
        rows = await self._fetch("read_idlers", {**me._asdict(), "runs": _as_json(runs)})
        return [Idler(row.name, row.incarnation, frozenset(runs_of(row.runs))) for row in rows]

    async def tokens_of(self, incarnations: Sequence[UUID]) -> dict[UUID, Sequence[int]]:
        """Which tokens some workers have. Raises StoreUnavailable."""
        rows = await self._fetch("tokens_of", {"incarnations": incarnations})
        return {row.incarnation: row.token_ids for row in rows}

    async def _fetch(self, name: str, values: dict[str, Any]) -> list[Any]:
        async def work(connection: Connection) -> list[Any]:
            cursor = connection.cursor(binary=True)
            return await (await cursor.execute(self._queries[name], values)).fetchall()

        return await self.run(work)


class PushedFeed(Listener, TokenFeed):
    """The LISTEN connection with its statements. After an error it is closed, and a new one must be
    opened."""

    pushed = True

    def __init__(self, connection: Connection, connector: Connector) -> None:
        super().__init__(connection, connector)
        assert connector.queries is not None, "the schema is opened first"
        self._queries = connector.queries
        self._context = connector.context

    async def wait(self, wake: asyncio.Event, timeout_sec: float | None) -> None:
        if self._context.announces:
            await super().wait(wake, timeout_sec)
        else:  # others may not announce what they change either
            await super().wait(wake, self._until_next_poll(timeout_sec))
            await self._poll_if_due()


class PolledFeed(TokenFeed):
    """The same where nothing can be listened to: looks at the cluster's version every
    `poll_interval_sec`."""

    pushed = False

    def __init__(self, connector: Connector) -> None:
        assert connector.queries is not None, "the schema is opened first"
        self.age = None
        self.notifications = 0
        self._queries = connector.queries
        self._context = connector.context
        self._link = Link(connector, "poll")

    async def wait(self, wake: asyncio.Event, timeout_sec: float | None) -> None:
        await signalled(wake, self._until_next_poll(timeout_sec))
        await self._poll_if_due()

    async def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        return await self._link.run(work)

    def abandon(self) -> None:
        self._link.renew()

    async def close(self) -> None:
        await self._link.close()


def _pause_of(row: Any) -> Pause | None:
    return row.paused_at and Pause(row.pause_reason, row.paused_by, row.paused_at)


def _as_json(runs: Collection[Runner]) -> str:
    return json.dumps(sorted(map(asdict, runs), key=str))


def runs_of(rows: Sequence[dict[str, Any]]) -> tuple[Runner, ...]:
    """What a worker's row says of what it runs; a later version may say more of each."""
    return tuple(Runner(row["kind"], row.get("name"), row.get("date")) for row in rows)


def neighbour_from(
    name: str,
    incarnation: UUID,
    boot_id: str,
    namespace: str | None,
    host: str | None,
    pid: int | None,
    started: int | None,
    session_tag: str | None,
) -> Neighbour:
    """A worker of this host from its row's columns."""
    process = None if pid is None or started is None else Process(pid, started)
    return Neighbour(name, incarnation, boot_id, namespace, host, process, session_tag)

"""A worker's own tokens: hearing of changes, reading them, acknowledging revocations. One connection, one thing at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg

from jobsync_async.core.rows import Identity, Neighbour, Process, Snapshot, Stuck, TokenRows
from jobsync_async.postgres.connection import Connection, Connector
from jobsync_async.postgres.listener import Listener
from jobsync_async.postgres.sql import Queries


class TokenFeed(Listener):
    """The LISTEN connection, and the statements that follow from what it hears."""

    def __init__(self, connection: Connection, connector: Connector, channel: str) -> None:
        super().__init__(connection, connector, channel)
        assert connector.queries is not None, "the schema is opened first"
        self._queries: Queries = connector.queries
        self._neighbours_seen = (-1, -1)

    async def read_changes(self, me: Identity, since: int) -> Snapshot:
        """What changed after version `since`, in one atomic read; -1 reads everything. Raises StoreUnavailable."""

        async def work(connection: Connection) -> Snapshot:
            # Binary: thousands of numbers are parsed several times faster than from text.
            cursor = connection.cursor(binary=True)
            members, youngest = self._neighbours_seen
            values = {**me._asdict(), "since": since, "members": members, "youngest": youngest}
            row = await (await cursor.execute(self._queries["read_changes"], values)).fetchone()
            assert row is not None, "the cluster row is missing"
            return Snapshot(
                incarnation=me.incarnation,
                since=since,
                version=row.version,
                term=row.term,
                leader=row.leader_incarnation,
                state=row.state,
                settled=bool(row.settled),
                mine=TokenRows(row.mine or ()),
                others=row.others or (),
                neighbours=self._neighbours(row),
            )

        return await self.run(work)

    def _neighbours(self, row: Any) -> list[Neighbour] | None:
        """The workers of this host, if there are others than were read last over this connection."""
        seen = (row.members, row.youngest)
        if seen == self._neighbours_seen:
            return None
        self._neighbours_seen = seen
        columns = (
            row.near_names or (),
            row.near_incarnations or (),
            row.near_namespaces or (),
            row.near_hosts or (),
            row.near_pids or (),
            row.near_started or (),
            row.near_tags or (),
        )
        return [
            neighbour_from(name, incarnation, row.near_boot_id, namespace, host, pid, started, tag)
            for name, incarnation, namespace, host, pid, started, tag in zip(*columns, strict=True)
        ]

    async def acknowledge(self, me: Identity, revocations: Sequence[tuple[int, int]]) -> list[int]:
        """Let go of tokens, each named with the version of the revocation that is answered; those that were handed on.

        A token is not among them when a fence still locks its row, or when the revocation was changed meanwhile, which the
        next reading tells. Raises StoreUnavailable; they may have been handed on all the same, which it tells too.
        """
        answer = {
            "incarnation": me.incarnation,
            "token_ids": int_array([token for token, _ in revocations]),
            "versions": int_array([version for _, version in revocations]),
        }

        async def work(connection: Connection) -> list[int]:
            handed_on: list[int] = []
            async with connection.transaction() as transaction:
                taken = await connection.execute(self._queries["take_version"], {"channel": self.channel})
                row = await taken.fetchone()
                assert row is not None, "the cluster row is missing"
                cursor = await connection.execute(self._queries["acknowledge"], {**answer, "version": row.version})
                handed_on = [token for (token,) in await cursor.fetchall()]
                if not handed_on:
                    raise psycopg.Rollback(transaction)
            return handed_on

        return await self.run(work)

    async def show_stuck(self, me: Identity, stuck: Sequence[Stuck]) -> None:
        """Write into the own row which revoked tokens are still in use, for people to see. Raises StoreUnavailable."""
        shown = json.dumps([one._asdict() for one in stuck]) if stuck else None
        await self.run(
            lambda connection: connection.execute(self._queries["show_stuck"], {**me._asdict(), "stuck": shown}),
        )


def int_array(values: Sequence[int]) -> str:
    """A PostgreSQL array literal; much faster than the driver's adapter for thousands of numbers."""
    return "{" + ",".join(map(str, values)) + "}"


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

"""A worker's own tokens: hearing of changes, reading them, acknowledging revocations. One connection, one thing at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence

import psycopg

from jobsync_async.core.rows import Identity, Snapshot, Stuck, TokenRows
from jobsync_async.postgres.connection import Connection, Connector
from jobsync_async.postgres.listener import Listener
from jobsync_async.postgres.sql import Queries


class TokenFeed(Listener):
    """The LISTEN connection, and the statements that follow from what it hears."""

    def __init__(self, connection: Connection, connector: Connector, channel: str) -> None:
        super().__init__(connection, connector, channel)
        assert connector.queries is not None, "the schema is opened first"
        self._queries: Queries = connector.queries

    async def read_changes(self, me: Identity, since: int) -> Snapshot:
        """What changed after version `since`, in one atomic read; -1 reads everything. Raises StoreUnavailable."""

        async def work(connection: Connection) -> Snapshot:
            # Binary: thousands of numbers are parsed several times faster than from text.
            cursor = connection.cursor(binary=True)
            row = await (await cursor.execute(self._queries["read_changes"], {**me._asdict(), "since": since})).fetchone()
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
            )

        return await self.run(work)

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

"""A worker's own row: joining, heartbeats, draining, leaving."""

from __future__ import annotations

from dataclasses import asdict
from uuid import UUID

import psycopg

from jobsync_async.core.lease import Beat
from jobsync_async.core.rows import Announcement, HeartbeatAnswer, Identity, NameInUse
from jobsync_async.postgres.connection import Connection, Link
from jobsync_async.postgres.sql import Queries


class Membership:
    """The statements about a worker's own row.

    Args:
        heartbeats: the link that carries heartbeats and nothing else, so that nothing can hold them up.
        changes: the link for joining and leaving, which wait for the cluster's row lock.
    """

    def __init__(self, heartbeats: Link, changes: Link, queries: Queries, channel: str) -> None:
        self._heartbeats = heartbeats
        self._changes = changes
        self._queries = queries
        self._channel = channel

    async def heartbeat(self, me: Identity, *, watch_all: bool) -> HeartbeatAnswer | None:
        """Count one beat. None: the row is gone or another incarnation's, so this worker owns nothing any more.

        Raises StoreUnavailable; the beat may have been counted all the same.
        """
        params = {**me._asdict(), "watch_all": watch_all}

        async def work(connection: Connection) -> HeartbeatAnswer | None:
            row = await (await connection.execute(self._queries["heartbeat"], params)).fetchone()
            if row is None:
                return None
            beats = [Beat(*seen) for seen in zip(row.names or (), row.incarnations or (), row.beats or (), strict=True)]
            return HeartbeatAnswer(row.version, row.term, row.leader_incarnation, row.rank, beats)

        return await self._heartbeats.run(work)

    async def join(self, me: Identity, announcement: Announcement, *, replace: Beat | None = None) -> NameInUse | None:
        """Make the row; None when it is there.

        Args:
            replace: take the name over, with its tokens, from an incarnation whose beat was seen to stand still; refused
                when it has moved since.

        Raises StoreUnavailable; the row may have been made, which trying again with the same identity finds out.
        """

        async def work(connection: Connection) -> NameInUse | None:
            in_use: NameInUse | None = None
            async with connection.transaction() as transaction:
                version = await self._take_version(connection)
                row = await (await connection.execute(self._queries["read_node"], {"name": me.name})).fetchone()
                if row is not None and row.incarnation == me.incarnation:
                    return None  # an earlier try was committed and its answer lost
                if row is not None:
                    in_use = NameInUse(Beat(me.name, row.incarnation, row.beat), row.holder)
                    if in_use.beat != replace:
                        raise psycopg.Rollback(transaction)
                await self._make_row(connection, me, announcement, version, replace if in_use else None)
                return None
            return in_use

        return await self._changes.run(work)

    async def _make_row(
        self, connection: Connection, me: Identity, announcement: Announcement, version: int, replace: Beat | None
    ) -> None:
        joined = await (await connection.execute(self._queries["next_joined"])).fetchone()
        assert joined is not None
        values = {**me._asdict(), **asdict(announcement), "joined": joined[0], "version": version}
        if replace is None:
            await connection.execute(self._queries["insert_node"], values)
        else:
            old = {"old_incarnation": replace.incarnation, "old_beat": replace.beat}
            await connection.execute(self._queries["replace_node"], {**values, **old})
            await connection.execute(self._queries["inherit_tokens"], {**values, **old})
        await connection.execute(self._queries["lead_if_nobody_does"])

    async def set_state(self, name: str, state: str, incarnation: UUID | None = None) -> bool:
        """Mark a worker ``"active"`` or ``"draining"``; with `incarnation`, only that start of it, not one that has its name by
        now. False when there is none or it is so already."""

        async def work(connection: Connection) -> bool:
            await self._take_version(connection)
            values = {"name": name, "state": state, "incarnation": incarnation}
            cursor = await connection.execute(self._queries["set_state"], values)
            return cursor.rowcount == 1

        return await self._changes.transaction(work)

    async def leave(self, me: Identity) -> None:
        """Delete the row; what it still owns becomes nobody's, and the next in age leads if it led. Safe to repeat."""

        async def work(connection: Connection) -> None:
            version = await self._take_version(connection)
            values = {**me._asdict(), "version": version}
            await connection.execute(self._queries["free_tokens_of"], values)
            await connection.execute(self._queries["delete_node"], values)
            await connection.execute(self._queries["lead_if_nobody_does"])

        await self._changes.transaction(work)

    async def _take_version(self, connection: Connection) -> int:
        row = await (await connection.execute(self._queries["take_version"], {"channel": self._channel})).fetchone()
        assert row is not None, "the cluster row is missing"
        return int(row.version)

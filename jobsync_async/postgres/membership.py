"""A worker's own row: joining, heartbeats, draining, leaving."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import psycopg

from jobsync_async import __version__
from jobsync_async.core.lease import Beat, Times
from jobsync_async.core.rows import Announcement, HeartbeatAnswer, Identity, NameInUse
from jobsync_async.core.server_history import UNSAID_TIMEOUT_SEC
from jobsync_async.errors import ConfigError, CoordinationError
from jobsync_async.postgres.cluster_version import take_version
from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.link import Link
from jobsync_async.postgres.sql import LAYOUT, Queries
from jobsync_async.postgres.statement_context import ServerChanged, StatementContext
from jobsync_async.postgres.tokens import neighbour_from


class Membership:
    """The statements about a worker's own row.

    Args:
        heartbeats: the link that carries heartbeats and the leader's look at those of others, and
            nothing else, so that nothing can hold them up.
        changes: the link for joining and leaving, which wait for the cluster's row lock.
        times: this worker's, which its row says.
        session_key: hold a lock, named by this and the incarnation, for as long as the session of
            the heartbeats lasts.
    """

    def __init__(
        self,
        heartbeats: Link,
        changes: Link,
        queries: Queries,
        context: StatementContext,
        times: Times,
        *,
        session_key: str | None = None,
    ) -> None:
        self._heartbeats = heartbeats
        self._changes = changes
        self._queries = queries
        self._context = context
        self._times = times
        self._session_key = session_key
        self._held: tuple[Connection, UUID] | None = None

    async def heartbeat(
        self, me: Identity, *, watch_all: bool, version: int = -1
    ) -> HeartbeatAnswer | None:
        """Count one beat. None: the row is gone or another incarnation's, or the server is another
        one, or the cluster is older than the `version` that was seen of it; in each case this
        worker owns nothing any more.

        Raises StoreUnavailable; the beat may have been counted all the same.
        """
        values = {**me._asdict(), "watch_all": watch_all, "version": version}

        async def work(connection: Connection) -> HeartbeatAnswer | None:
            await self._hold_session(connection, me)
            params = {**values, **self._context.values(connection.server)}
            row = await (await connection.execute(self._queries["heartbeat"], params)).fetchone()
            if row is None:
                return None
            columns = (row.names, row.incarnations, row.beats, row.timeouts, row.intervals)
            beats = _with_times(zip(*(column or () for column in columns), strict=True))
            leads = (row.version, row.term, row.leader_incarnation)
            allowed = Times.said(row.timeout_sec, None).timeout_sec
            return HeartbeatAnswer(
                *leads, row.rank, beats, row.leader_age, row.announced, allowed, row.longest_wait
            )

        try:
            return await self._heartbeats.run(work)
        except ServerChanged:
            return None

    async def read_beats(self) -> dict[Beat, Times] | None:
        """Everybody's beats as they are now, this worker's too, oldest first, with their times;
        None when the server is another one, which the next heartbeat finds out. Raises
        StoreUnavailable."""

        async def work(connection: Connection) -> dict[Beat, Times]:
            cursor = await connection.execute(
                self._queries["read_beats"], self._context.values(connection.server)
            )
            return _with_times(await cursor.fetchall())

        try:
            return await self._heartbeats.run(work) or None
        except ServerChanged:
            return None

    async def _hold_session(self, connection: Connection, me: Identity) -> None:
        if self._session_key is None or self._held == (connection, me.incarnation):
            return
        values = {"key": self._session_key, "incarnation": me.incarnation}
        row = await (await connection.execute(self._queries["hold_session"], values)).fetchone()
        if row is not None and row[0]:
            self._held = (connection, me.incarnation)

    async def join(
        self, me: Identity, announcement: Announcement, *, replace: Beat | None = None
    ) -> NameInUse | None:
        """Make the row; None when it is there.

        Args:
            replace: take the name over, with its tokens, from an incarnation whose beat was seen to
                stand still, or that is known to be dead; refused when its beat has moved since.

        Raises StoreUnavailable; the row may have been made, which trying again with the same
        identity finds out. Raises ConfigError when this worker's timeout is above the cluster's
        bound, and CoordinationError when the name was evicted.
        """

        async def work(connection: Connection) -> NameInUse | None:
            while True:
                values = {"name": me.name, **self._context.values(connection.server)}
                row = await (
                    await connection.execute(self._queries["read_node"], values)
                ).fetchone()
                self._check_bound(None if row is None else row.longest_allowed)
                _check_allowed(me.name, row)
                if row is None or row.incarnation is None:
                    if await self._insert(connection, me, announcement):
                        return None
                    continue  # somebody was faster, lowered the bound, or evicted the name
                if row.incarnation == me.incarnation:
                    return None  # an earlier try was committed and its answer lost
                in_use = self._in_use(me.name, row)
                if in_use.beat != replace:
                    return in_use
                if await self._replace(connection, me, announcement, replace):
                    return None

        return await self._changes.run(work)

    def _check_bound(self, longest_allowed: float | None) -> None:
        ours = self._times.timeout_sec
        if longest_allowed is not None and ours > longest_allowed:
            raise ConfigError(
                f"heartbeat_timeout_sec is {ours:g} here, and the running cluster allows "
                f"{longest_allowed:g} at most: so long do its workers wait when PostgreSQL was "
                f"failed over. Raise that first, by `jobsync-async bound {ours:g}`, or lower this "
                "setting"
            )

    @staticmethod
    def _in_use(name: str, row: Any) -> NameInUse:
        where = (
            row.boot_id,
            row.pid_namespace,
            row.host,
            row.pid,
            row.process_started,
            row.session_tag,
        )
        neighbour = None if row.boot_id is None else neighbour_from(name, row.incarnation, *where)
        times = Times.said(row.timeout_sec, row.interval_sec)
        return NameInUse(Beat(name, row.incarnation, row.beat), times, row.holder, neighbour)

    def _joining(
        self, connection: Connection, me: Identity, announcement: Announcement
    ) -> dict[str, Any]:
        """What every statement of a join takes."""
        ours = {"library": __version__, "layout": LAYOUT, **self._times._asdict()}
        about = {
            **{name: getattr(announcement, name) for name in ("host", "pid", "weight", "state")},
            "library": __version__,
        }
        unsaid = {"unsaid_bound": max(self._times.timeout_sec, UNSAID_TIMEOUT_SEC)}
        return {
            **me._asdict(),
            **announcement._asdict(),
            **ours,
            **unsaid,
            "about": json.dumps(about),
            **self._context.values(connection.server),
        }

    async def _insert(
        self, connection: Connection, me: Identity, announcement: Announcement
    ) -> bool:
        """Make the row under a free name; whether it was free."""
        queries = [
            self._queries[name]
            for name in ("take_version_to_join", "insert_node", "lead_if_nobody_does")
        ]
        taken, made, _ = await connection.together(
            queries, self._joining(connection, me, announcement)
        )
        if not taken:
            raise self._context.changed()
        return bool(made)

    async def _replace(
        self, connection: Connection, me: Identity, announcement: Announcement, old: Beat
    ) -> bool:
        """Take over the row of an incarnation that shows no life, with its tokens; False when it
        does."""
        values = self._joining(connection, me, announcement)
        values |= {"old_incarnation": old.incarnation, "old_beat": old.beat}
        replaced = False
        async with connection.transaction() as transaction:
            taken = await (
                await connection.execute(self._queries["take_version_to_join"], values)
            ).fetchone()
            if taken is None:
                raise self._context.changed()
            values |= {"joined": taken.last_joined, "version": taken.version}
            replaced = (
                await connection.execute(self._queries["replace_node"], values)
            ).rowcount == 1
            if not replaced:
                raise psycopg.Rollback(transaction)
            await connection.execute(self._queries["inherit_tokens"], values)
            await connection.execute(self._queries["lead_if_nobody_does"], values)
        return replaced

    async def set_state(
        self,
        name: str,
        state: str,
        incarnation: UUID | None = None,
        reason: str | None = None,
        *,
        by: str | None = None,
    ) -> bool:
        """Mark a worker ``"active"`` or ``"draining"``; with `incarnation`, only that start of it,
        not one that has its name by now. False when there is none or it is so already.

        Args:
            reason, by: for the history; `by` is None for whose statements these are.
        """
        told = {"by": self._context.by if by is None else by, "reason": reason}

        async def work(connection: Connection) -> bool:
            await self._take_version(connection)
            values = {"name": name, "state": state, "incarnation": incarnation, **told}
            cursor = await connection.execute(self._queries["set_state"], values)
            return cursor.rowcount == 1

        return await self._changes.transaction(work)

    async def leave(self, me: Identity, error: BaseException | None = None) -> None:
        """Delete the row; what it still owns has no owner then, and the next in age leads if it
        led. Safe to repeat.

        Args:
            error: what ended the job, None for its stop.
        """
        # Whatever the database's encoding is, it has these characters.
        reason = error and ascii(f"its job ended with {type(error).__name__}")[1:-1]

        async def work(connection: Connection) -> None:
            version = await self._take_version(connection)
            values = {
                **me._asdict(),
                "version": version,
                "reason": reason,
                "taken": True,
                **self._context.values(connection.server),
            }
            await connection.execute(self._queries["free_tokens_of"], values)
            await connection.execute(self._queries["delete_node"], values)
            await connection.execute(self._queries["lead_if_nobody_does"], values)

        await self._changes.transaction(work)

    async def _take_version(self, connection: Connection) -> int:
        return await take_version(connection, self._queries, self._context)


def _check_allowed(name: str, row: Any) -> None:
    if row is not None and row.evicted_at is not None:
        why = "" if row.evicted_reason is None else f" ({row.evicted_reason})"
        raise CoordinationError(
            f"{name!r} was evicted by {row.evicted_by} at {row.evicted_at:%Y-%m-%d %H:%M:%S%z}"
            f"{why}: no worker joins under this name until somebody allows it, by "
            f"`jobsync-async evict {shlex.quote(name)} --allow`"
        )


def _with_times(rows: Iterable[tuple[Any, ...]]) -> dict[Beat, Times]:
    """Beats and times, from rows of name, incarnation, beat, timeout and interval."""
    return {Beat(*beat): Times.said(timeout, interval) for *beat, timeout, interval in rows}

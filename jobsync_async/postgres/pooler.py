"""Finding out that a pooler in transaction mode stands between, before anything is set up in
sessions that are others' too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from jobsync_async.errors import ConfigError, StoreUnavailable
from jobsync_async.postgres.connection import Connection, Connector
from jobsync_async.postgres.driver_errors import translated

if TYPE_CHECKING:
    from jobsync_async.postgres.tokens import TokenFeed

REFUSAL = (
    "PostgreSQL is reached through a pooler in transaction mode, where LISTEN cannot work; connect "
    "directly, or through a pooler in session mode, or set notify=False in the configuration, "
    "which finds changes by polling"
)
UNNAMED = (
    "other workers cannot end what a dead worker left connected, and nobody can tell whether a "
    "silent one is; let the pooler in between pass application_name on, or connect directly"
)
_TRIES = 5
# "jobsync_async", a space, and a tag of twelve characters.
_KNOWN_BY = 26
# Changes nothing, and so leaves no trace in a session that is others' too.
_KEEP = b"""
SELECT pg_catalog.set_config(
    'exit_on_error', pg_catalog.current_setting('exit_on_error'), false)
"""


def keeps_name(asked: str, found: str) -> bool:
    """Whether a session has the name that was asked for. A pooler may add to it; the server cuts it
    off, and replaces what is not ASCII, after the tag by which other workers know it."""
    return asked[:_KNOWN_BY] in found


async def shares_sessions(connector: Connector, connection: Connection) -> bool:
    """Whether the server's sessions pass from client to client: then two who are both connected are
    seen to have one.

    A proxy may let a client keep its session from when it sets something there, as RDS Proxy does.
    Workers do that on each connection. So both do it here before they are compared.

    False may be wrong, when all sessions are in use by others: that no notification arrives is
    noticed later. Leaves no trace in any session. Raises StoreUnavailable.
    """
    with translated(), connection.limited(connector.patience_sec):
        if await _session(connection) == connection.info.backend_pid:
            return False  # a pooler makes up a number of its own, for the cancelling of queries
    other = await connector.open("start")
    try:
        with (
            translated(),
            connection.limited(connector.patience_sec),
            other.limited(connector.patience_sec),
        ):
            for one in (connection, other):
                await one.execute(_KEEP)
            for _ in range(_TRIES):
                if await _session(connection) == await _session(other):
                    return True
    finally:
        await other.close()
    return False


async def _session(connection: Connection) -> int:
    row = await (await connection.execute(b"SELECT pg_catalog.pg_backend_pid()")).fetchone()
    assert row is not None
    return int(row[0])


async def require_push(
    feed: TokenFeed, listen: Callable[[], Awaitable[TokenFeed]], limit_sec: float
) -> TokenFeed:
    """Wait for a first notification, for so long at most; the feed, or a fresh one where it was cut
    off while it was idle: to wait for a name can take long.

    Raises ConfigError when none comes: then LISTEN does not work here. Raises StoreUnavailable.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_sec
    try:
        while not feed.notifications and loop.time() < deadline:
            await feed.wait(asyncio.Event(), deadline - loop.time())
    except StoreUnavailable:
        await feed.close()
        return await listen()  # what came in between, the first reading shows
    if not feed.notifications:
        raise ConfigError(
            f"no notification arrives on the LISTEN connection: it seems that {REFUSAL}"
        )
    return feed

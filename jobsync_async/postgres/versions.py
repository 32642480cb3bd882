"""The first step of every transaction that changes membership, tokens or pins."""

from __future__ import annotations

from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.footing import Footing
from jobsync_async.postgres.sql import Queries


async def take_version(connection: Connection, queries: Queries, footing: Footing, channel: str) -> int:
    """Take the cluster row's lock and the next version, which is announced with the commit.

    Raises ServerChanged when the row is not the one that this worker stands on: then nothing may be written.
    """
    values = {"channel": channel, **footing.values(connection.server)}
    row = await (await connection.execute(queries["take_version"], values)).fetchone()
    if row is None:
        raise footing.changed()
    return int(row.version)

"""The first step of every transaction that changes membership, tokens or pins, and how changes are
announced.

An announcement is a version and, where the change concerns few, the age numbers of those workers:
``"17"``, ``"17 3 5"``, and ``"17 0"`` for nobody. The others have time until their next heartbeat.
"""

from __future__ import annotations

from collections.abc import Iterable

from jobsync_async.postgres.connection import Connection
from jobsync_async.postgres.sql import Queries
from jobsync_async.postgres.statement_context import StatementContext

# More than these are not named: then it concerns all. A payload may have 8,000 bytes, and each
# listener is sent it.
MOST_NAMED = 500


def concerned(ages: Iterable[int] | None) -> str:
    """What follows the version in an announcement; None, and too many, stand for everybody."""
    named = None if ages is None else sorted(set(ages))
    if named is None or len(named) > MOST_NAMED:
        return ""
    return "".join(f" {age}" for age in named or [0])


async def take_version(connection: Connection, queries: Queries, context: StatementContext) -> int:
    """Take the cluster row's lock and the next version, which is announced with the commit.

    Raises ServerChanged when the row is not the one that this worker stands on: then nothing may be
    written.
    """
    row = await (
        await connection.execute(queries["take_version"], context.values(connection.server))
    ).fetchone()
    if row is None:
        raise context.changed()
    return int(row.version)

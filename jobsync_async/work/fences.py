"""The fence: its query, which locks a token's row in the user's transaction and refuses where the
lock would not last, and on which connections it can be sent.

A lock that is taken after a savepoint is gone when that savepoint is rolled back to, and nobody
would say so. So the query answers only where the transaction itself has the lock. It asks two
questions. Is the row's last locker the transaction? Or is no savepoint under way in which the
session has written or locked something? (Each such savepoint has a transaction id of its own, which
is locked for as long as it is open.) The second question costs more. It is asked only when the
first says no, which is so when several transactions fence one token at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg import errors, pq

from jobsync_async.errors import UsageError

ParamStyle = Literal["format", "numeric", "named"]

# How drivers write a parameter, and with what they escape that sign elsewhere.
_STYLES: dict[str, tuple[str, str, str]] = {
    "format": ("%s", "%", "%%"),
    "numeric": ("${number}", "", ""),
    "named": (":{name}", ":", "\\:"),
}


def fence_query(
    table: str, paramstyle: str, *, token_id: int, incarnation: UUID, epoch: int
) -> tuple[str, Any]:
    """The query for a token, incarnation and epoch, with its parameters. No row: the token is not
    owned so. After a savepoint it is an error, whose text is the reason: SQL has no other way to
    raise one than to convert what is no number.

    Args:
        table: quoted name of the table of tokens.
    """
    values = {"token_id": token_id, "incarnation": incarnation, "epoch": epoch}
    return _styled(
        "SELECT CASE"
        " WHEN (SELECT xmax FROM {table} AS held WHERE held.token_id = fenced.token_id)"
        " = pg_catalog.xid(pg_catalog.pg_current_xact_id()) THEN epoch"
        " WHEN (SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks"
        " WHERE locktype = 'transactionid' AND pid = pg_catalog.pg_backend_pid()) = 1 THEN epoch"
        " ELSE pg_catalog.int8(pg_catalog.concat('the fence of token ', token_id,"
        " ' comes after a savepoint, which would undo it: fence first, in the outermost "
        "transaction')) END AS epoch "
        "FROM (SELECT token_id, epoch FROM {table} "
        "WHERE token_id = {token_id} AND incarnation = {incarnation} AND epoch = {epoch} "
        "FOR KEY SHARE) AS fenced",
        paramstyle,
        values,
        table,
    )


def standing_query(paramstyle: str, *, epoch: int) -> tuple[str, Any]:
    """What stands for the query where there is no table: always a row, with the epoch."""
    return _styled("SELECT CAST({epoch} AS bigint) AS epoch", paramstyle, {"epoch": epoch})


def _styled(
    query: str, paramstyle: str, values: dict[str, Any], table: str = ""
) -> tuple[str, Any]:
    """The query, with its parameters written as a driver wants them, and these."""
    if paramstyle not in _STYLES:
        raise UsageError(
            f"paramstyle must be one of {', '.join(_STYLES)}, by how your driver writes "
            f"parameters: %s, $1 or :name; got {paramstyle!r:.100}"
        )
    form, sign, escaped = _STYLES[paramstyle]
    names = {name: form.format(name=name, number=n) for n, name in enumerate(values, start=1)}
    params = values if paramstyle == "named" else tuple(values.values())
    return query.format(table=table.replace(sign, escaped), **names), params


@contextmanager
def savepoints_refused() -> Iterator[None]:
    """Turn the error of the query into this library's."""
    try:
        yield
    except errors.InvalidTextRepresentation as error:
        raise UsageError(
            "fence() comes after a savepoint (a nested conn.transaction()), and rolling back to "
            "that would undo the fence without a word: fence first, in the outermost transaction, "
            "then nest what may fail"
        ) from error


def check_connection(connection: Any) -> None:
    """Raise UsageError unless a fence that is set on this connection now lasts until the user's
    commit."""
    if not isinstance(connection, psycopg.AsyncConnection):
        kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
        raise UsageError(
            f"fence() works on a psycopg.AsyncConnection; this is a {kind}. With another driver "
            "run the query of Claim.fence_sql() yourself, in your transaction, and give the row "
            "that it returns to Claim.check_fence()"
        )
    if connection.closed:
        raise UsageError(
            "fence() was given a closed connection: give it the one in whose transaction you write"
        )
    # Known once two tasks have waited for each other.
    bound_to = getattr(getattr(connection, "lock", None), "_loop", None)
    if bound_to not in (None, asyncio.get_running_loop()):
        raise UsageError(
            f"fence() was given a connection of another event loop ({bound_to!r}): open the "
            "connection on the job's own"
        )
    status = connection.info.transaction_status
    if status == pq.TransactionStatus.INERROR:
        raise UsageError(
            "fence() was given a connection whose transaction has failed: nothing of it will be "
            "committed; roll it back, and set the fence first in a new one"
        )
    if connection.autocommit and status == pq.TransactionStatus.IDLE:
        raise UsageError(
            "fence() must be inside a transaction, or its lock is gone at once: use `async with "
            "conn.transaction():`"
        )

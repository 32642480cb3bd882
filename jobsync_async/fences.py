"""The fence's query: it locks a token's row in the user's transaction, and refuses where the lock would not last.

A lock that is taken after a savepoint is gone when that savepoint is rolled back to, and nobody would say so. So the query
answers only where the transaction itself has the lock: the row's last locker is the transaction, or no savepoint is under way
in which the session has written or locked something (each such one has a transaction id of its own, which is locked for as
long as it is open). The second question costs more, and is asked only when the first says no: when several transactions fence
one token at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from psycopg import errors

from jobsync_async.errors import UsageError

ParamStyle = Literal["format", "numeric"]


def fence_query(table: str, paramstyle: ParamStyle = "format") -> str:
    """The query for a token, incarnation and epoch. No row: the token is not owned so. After a savepoint it is an error, whose
    text is the reason: SQL has no other way to raise one than to convert what is no number.

    Args:
        table: quoted name of the table of tokens.
    """
    token, incarnation, epoch = ("%s",) * 3 if paramstyle == "format" else ("$1", "$2", "$3")
    table = table.replace("%", "%%") if paramstyle == "format" else table
    return (
        "SELECT CASE"  # noqa: S608 - a quoted identifier and placeholders
        f" WHEN (SELECT xmax FROM {table} AS held WHERE held.token_id = fenced.token_id)"
        " = pg_catalog.xid(pg_catalog.pg_current_xact_id()) THEN epoch"
        " WHEN (SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks"
        " WHERE locktype = 'transactionid' AND pid = pg_catalog.pg_backend_pid()) = 1 THEN epoch"
        " ELSE pg_catalog.int8(pg_catalog.concat('the fence of token ', token_id,"
        " ' comes after a savepoint, which would undo it: fence first, in the outermost transaction')) END AS epoch "
        f"FROM (SELECT token_id, epoch FROM {table} "
        f"WHERE token_id = {token} AND incarnation = {incarnation} AND epoch = {epoch} FOR KEY SHARE) AS fenced"
    )


@contextmanager
def savepoints_refused() -> Iterator[None]:
    """Turn the error of the query into this library's."""
    try:
        yield
    except errors.InvalidTextRepresentation as error:
        raise UsageError(
            "fence() comes after a savepoint (a nested conn.transaction()), and rolling back to that would undo the fence "
            "without a word: fence first, in the outermost transaction, then nest what may fail"
        ) from error

"""Changing tables that workers use: expanding them for this version, and contracting them when no
older worker is left.

What changes a table needs it for itself alone for a moment, and everybody who comes later waits
behind whoever waits for that: behind a backup or an analyst, all leases would run out. So

* a statement that changes a table comes in one message with its bounds, and is a transaction of its
  own. It locks one table, so nothing can be in a circle with it, and it holds the lock for no round
  trip;
* it waits for its lock for a small part of a lease, gives up, and comes again after a pause that
  grows. Workers have many times as long for themselves as they have to wait;
* after `_PATIENCE_SEC` it is an error that names who is in the way.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any

from psycopg import errors

from jobsync_async.config import CoordinationConfig
from jobsync_async.core.lease import Backoff
from jobsync_async.errors import SchemaError, StoreUnavailable
from jobsync_async.postgres.connection import PLAN_EACH_TIME, Connection, Connector
from jobsync_async.postgres.driver_errors import translated
from jobsync_async.postgres.sql import Queries

_PATIENCE_SEC = 30.0
_MOST_WAIT_SEC = 0.2
_PART_OF_LEASE = 1 / 16
_BACKOFF = Backoff(first_sec=0.2, most_sec=3.0)
_NOT_TO_BE_HAD = (errors.LockNotAvailable, errors.DeadlockDetected, errors.QueryCanceled)


def bounds(connector: Connector, config: CoordinationConfig) -> dict[str, str]:
    """The parameters of ``bound_transaction`` for one that locks tables which others may use."""
    most_ms = str(round(connector.limit_sec * 1000))
    lock_ms = str(round(min(_MOST_WAIT_SEC, config.lease_sec * _PART_OF_LEASE) * 1000))
    return {
        "statement_ms": most_ms,
        "lock_ms": lock_ms,
        "idle_ms": most_ms,
        "plans": PLAN_EACH_TIME,
    }


class Changing:
    """Statements that change tables in use, over one connection."""

    def __init__(
        self,
        connection: Connection,
        connector: Connector,
        queries: Queries,
        config: CoordinationConfig,
    ) -> None:
        self._connection = connection
        self._queries = queries
        self._limit_sec = connector.patience_sec
        self._values: dict[str, Any] = {
            "key": f"{queries.schema}.{queries.appname}",
            **bounds(connector, config),
        }

    async def expand(self, newest: int) -> None:
        """Bring the tables up to a layout, if they are of an older one. New tables and indexes are
        there already.

        Raises StoreUnavailable when somebody holds a lock for too long; what was done by then
        stays, and does no harm.
        """
        if (layout := await self._layout()) >= newest:
            return
        for table, statement in self._queries.expansions(layout):
            if not await self._change(table, [statement], unless=newest):
                return

    async def contract(self, newest: int) -> bool:
        """Refuse workers that know no layout as new as this from now on; False when it is so
        already.

        The version is raised and the rows are judged under the locks of the cluster's row and of
        the table of workers. From then on the table itself refuses the row of an older worker,
        whatever that has looked at before.

        Raises SchemaError while there is such a worker, StoreUnavailable.
        """
        settings = await self._settings()
        if settings is None:
            raise SchemaError("no worker has ever started here: there is nothing to contract")
        if settings.schema_version >= newest:
            return False
        statements = [self._queries[name] for name in ("raise_schema_version", "refuse_older")]
        try:
            await self._change(self._queries.table("node"), statements, layout=newest)
        except errors.CheckViolation:
            raise SchemaError(await self._who_is_too_old(newest)) from None
        return True

    async def _change(
        self,
        table: str,
        statements: Sequence[bytes],
        *,
        unless: int | None = None,
        layout: int | None = None,
    ) -> bool:
        """Run statements that lock a table, in one transaction. False: somebody else has brought
        the tables `unless` far."""
        first = [
            self._queries[name] for name in ("read_committed", "bound_transaction", "hold_schema")
        ]
        deadline = time.monotonic() + _PATIENCE_SEC
        failures = 0
        while True:
            try:
                with self._connection.limited(self._limit_sec):
                    await self._connection.together(
                        [*first, *statements], {**self._values, "layout": layout}
                    )
                return True
            except _NOT_TO_BE_HAD as error:
                failures += 1
                if time.monotonic() >= deadline:
                    raise StoreUnavailable(await self._in_the_way(table)) from error
            # a jitter
            await asyncio.sleep(_BACKOFF.wait_sec(failures, random.random()))  # noqa: S311
            if unless is not None and await self._layout() >= unless:
                return False

    async def _in_the_way(self, table: str) -> str:
        row = await self._fetch("who_locks", table=table)
        who = "somebody had a lock on it each time"
        advice = "try again"
        if row is not None and row.pid is None:
            who, advice = (
                "a prepared transaction has a lock on it",
                "look into pg_prepared_xacts, and end what was forgotten there",
            )
        elif row is not None:
            since = (
                ""
                if row.seconds is None
                else f", in a transaction that began {row.seconds:.0f} s ago"
            )
            who = (
                f"process {row.pid} of the server has a lock on it "
                f"({row.application or 'application not known'}{since})"
            )
            advice = f"wait until it is done, or end it by SELECT pg_terminate_backend({row.pid})"
        return (
            f"table {table} could not be changed within {_PATIENCE_SEC:g} s, for {who}; nothing is "
            f"harmed, and the workers go on: {advice}, and start again"
        )

    async def _who_is_too_old(self, newest: int) -> str:
        row = await self._fetch("list_older", layout=newest)
        names = (
            "no more by now: run it again"
            if row is None or row.names is None
            else ", ".join(row.names)
        )
        return (
            f"workers of an older version are in the cluster: {names}; nothing was changed: "
            "replace them (`jobsync-async status` shows each worker's version), and run it again"
        )

    async def _layout(self) -> int:
        settings = await self._settings()
        return 1 if settings is None else int(settings.layout)

    async def _settings(self) -> Any:
        return await self._fetch("read_settings")

    async def _fetch(self, name: str, **values: Any) -> Any:
        """The first row; behind a pooler, too, no name in the statement is a stranger's."""
        statements = [self._queries[one] for one in ("read_committed", "bound_transaction", name)]
        with self._connection.limited(self._limit_sec):
            *_, rows = await self._connection.together(statements, {**self._values, **values})
        return rows[0] if rows else None


async def contract(connector: Connector, config: CoordinationConfig, newest: int) -> bool:
    """`Changing.contract` on a connection of its own; the tables are open. Raises SchemaError when
    this role may not."""
    assert connector.queries is not None, "the schema is opened first"
    connection = await connector.open("contract")
    try:
        with translated():
            return await Changing(connection, connector, connector.queries, config).contract(newest)
    except SchemaError as error:
        if not isinstance(error.__cause__, errors.InsufficientPrivilege):
            raise
        raise SchemaError(
            "this role may not change the tables; run `jobsync-async contract` as their owner"
        ) from error.__cause__
    finally:
        await connection.close()

"""A connection that breaks in the very moment in which a transaction is given up."""

from __future__ import annotations

import anyio
import psycopg
import pytest

from jobsync_async import StoreUnavailable
from jobsync_async.postgres.driver_errors import translated


@pytest.mark.needs("names")
async def test_a_connection_that_breaks_at_a_rollback_is_an_outage_like_any_other(dsn, admin):
    connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    async with connection:
        with pytest.raises(StoreUnavailable), translated():
            async with connection.transaction() as transaction:
                pid = await (await connection.execute("SELECT pg_backend_pid()")).fetchone()
                await admin.execute("SELECT pg_terminate_backend(%s)", pid)
                with anyio.fail_after(5):
                    while (
                        await admin.execute("SELECT FROM pg_stat_activity WHERE pid = %s", pid)
                    ).rowcount:
                        await anyio.sleep(0.005)
                raise psycopg.Rollback(transaction)

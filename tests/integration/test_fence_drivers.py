"""The fence in transactions of asyncpg and SQLAlchemy. docs/how-to/other-drivers.md shows them,
SQLModel and Django, and runs."""

from __future__ import annotations

from contextlib import asynccontextmanager

import asyncpg
import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from jobsync_async import Job, OwnershipLost, UsageError

ODD = 'o:d"d'
PARTS = {"host": "host", "port": "port", "user": "user", "password": "password"}


class Asyncpg:
    """A user's transaction, statement by statement."""

    style = "numeric"
    order = "INSERT INTO effect VALUES ('done')"

    def __init__(self, connection):
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def transaction(cls, where):
        given = {name: where[key] for key, name in PARTS.items()}
        connection = await asyncpg.connect(database=where["dbname"], **given)
        try:
            async with connection.transaction():
                yield cls(connection)
        finally:
            await connection.close()

    async def row(self, query, params=()):
        return await self._connection.fetchrow(query, *params)


class SQLAlchemy:
    style = "named"
    driver = "asyncpg"

    def __init__(self, connection):
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def transaction(cls, where):
        url = "postgresql+{}://{user}:{password}@{host}:{port}/{dbname}".format(cls.driver, **where)
        engine = create_async_engine(url, poolclass=NullPool)
        async with engine.begin() as connection:
            yield cls(connection)

    async def row(self, query, params=None):
        result = await self._connection.execute(text(query), params)
        return result.first() if result.returns_rows else None


class SQLAlchemyOnPsycopg(SQLAlchemy):
    driver = "psycopg"


@pytest.fixture(params=[Asyncpg, SQLAlchemy, SQLAlchemyOnPsycopg])
def driver(request):
    return request.param


@pytest.fixture
async def odd(make_config, admin):
    """A cluster whose schema has what drivers take for the start of a parameter."""
    await admin.execute('CREATE SCHEMA "o:d""d"')
    await admin.execute("CREATE TABLE effect (what text)")
    return make_config(total_tokens=3, schema=ODD)


async def count(admin) -> int:
    (found,) = await (await admin.execute("SELECT count(*) FROM effect")).fetchone()
    return found


async def test_what_is_fenced_is_committed_while_the_claim_holds_and_rolled_back_afterwards(
    odd, admin, driver
):
    where = conninfo_to_dict(odd.dsn)
    async with Job("before", odd):
        pass
    # An epoch as it is after a failover: more than 32 bits.
    await admin.execute('UPDATE "o:d""d".sync_token SET epoch = epoch + (1::bigint << 40)')

    async def work(claim) -> None:
        async with driver.transaction(where) as mine:
            query, params = claim.fence_sql(driver.style)
            await mine.row("INSERT INTO effect VALUES ('before')")
            claim.check_fence(await mine.row(query, params))
            await mine.row("INSERT INTO effect VALUES ('after')")

    async with Job("a", odd) as job, job.claim("x") as claim:
        await work(claim)
        assert await count(admin) == 2
        await admin.execute('UPDATE "o:d""d".sync_token SET epoch = epoch + 1')
        with pytest.raises(OwnershipLost, match="its row in the tables says so"):
            await work(claim)
        assert await count(admin) == 2
        assert job.metrics.fences_rejected == 1


async def test_after_a_savepoint_the_drivers_error_says_so(odd, admin, driver):
    where = conninfo_to_dict(odd.dsn)
    async with Job("a", odd) as job, job.claim("x") as claim:
        with pytest.raises(Exception, match="comes after a savepoint, which would undo it"):
            async with driver.transaction(where) as mine:
                await mine.row("SAVEPOINT mine")
                await mine.row("INSERT INTO effect VALUES ('before')")
                await mine.row(*claim.fence_sql(driver.style))
        assert await count(admin) == 0


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_a_transaction_that_still_sees_its_token_as_it_was_cannot_fence_it(
    odd, admin, driver, level
):
    where = conninfo_to_dict(odd.dsn)
    async with Job("a", odd) as job:
        async with job.claim("x") as claim:
            pass
        with pytest.raises(Exception, match="could not serialize access"):
            async with driver.transaction(where) as mine:
                await mine.row(f"SET TRANSACTION ISOLATION LEVEL {level}")
                await mine.row("SELECT count(*) FROM effect")
                await job.stop()
                async with Job("b", odd):
                    await mine.row(*claim.fence_sql(driver.style))


async def test_without_a_cluster_there_is_always_a_row(dsn, driver):
    async with Job("alone") as job, job.claim("x") as claim:
        async with driver.transaction(conninfo_to_dict(dsn)) as mine:
            assert (await mine.row(*claim.fence_sql(driver.style)))[0] == claim.epoch
        with pytest.raises(UsageError, match=r"format, numeric, named.*got 'qmark'"):
            claim.fence_sql("qmark")

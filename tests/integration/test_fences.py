"""Fences and savepoints: a fence holds until the commit, or is refused."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import psycopg
import pytest

from jobsync_async import Job, UsageError

FREE = "SELECT token_id FROM sync_token WHERE token_id = %s FOR UPDATE SKIP LOCKED"
WAITS = (
    "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '% AS fenced'"
)


@pytest.fixture
async def user(config):
    async with await psycopg.AsyncConnection.connect(config.dsn, autocommit=True) as connection:
        await connection.execute("CREATE TABLE effect (what text PRIMARY KEY)")
        yield connection


@asynccontextmanager
async def raw_savepoint(connection):
    await connection.execute("SAVEPOINT mine")
    yield


async def taken(admin, claim) -> bool:
    """Whether nobody else can have the token's row."""
    return await (await admin.execute(FREE, [claim.token_id])).fetchone() is None


@pytest.mark.parametrize("kind", ["psycopg's", "raw"])
@pytest.mark.parametrize("written_before", [False, True], ids=["bare", "after a write"])
async def test_a_fence_after_a_savepoint_is_refused_and_says_what_to_do(
    config, user, kind, written_before
):
    savepoint = raw_savepoint if kind == "raw" else psycopg.AsyncConnection.transaction
    async with Job("a", config) as job, job.claim("x") as claim:
        with pytest.raises(UsageError, match=r"savepoint.*outermost transaction"):
            async with user.transaction():
                if written_before:
                    await user.execute("INSERT INTO effect VALUES ('before')")
                async with savepoint(user):
                    await job.fence(user, claim)
        assert claim.valid
        assert await (await user.execute("SELECT count(*) FROM effect")).fetchone() == (0,)


async def test_the_query_for_other_drivers_says_so_too(config, user):
    async with Job("a", config) as job, job.claim("x") as claim:
        with pytest.raises(
            psycopg.errors.InvalidTextRepresentation,
            match=f"token {claim.token_id} comes after a savepoint",
        ):
            async with user.transaction(), user.transaction():
                await user.execute(*claim.fence_sql())
        async with user.transaction():  # with placeholders as other drivers have them
            cursor = await psycopg.AsyncRawCursor(user).execute(*claim.fence_sql("numeric"))
            assert await cursor.fetchone() == (claim.epoch,)


async def test_a_fence_of_the_outermost_transaction_outlasts_savepoints_that_are_rolled_back_to(
    config, user, admin
):
    async with Job("a", config) as job, job.claim("x") as claim:
        async with user.transaction():
            await job.fence(user, claim)
            async with user.transaction(force_rollback=True):
                await user.execute("INSERT INTO effect VALUES ('undone')")
                await job.fence(user, claim)  # it has been fenced already
            assert await taken(admin, claim)
        assert not await taken(admin, claim)


async def test_savepoints_that_have_ended_are_in_no_fences_way(config, user, admin):
    async with Job("a", config) as job, job.claim("x") as claim:
        async with user.transaction():
            async with user.transaction():
                await user.execute("INSERT INTO effect VALUES ('kept')")
            async with user.transaction(force_rollback=True):
                await user.execute("INSERT INTO effect VALUES ('undone')")
            await job.fence(user, claim)
            assert await taken(admin, claim)


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_several_transactions_fence_one_token_at_once_and_none_after_a_savepoint(
    config, user, admin, level
):
    async with Job("a", config) as job, AsyncExitStack() as stack:
        claim = await stack.enter_async_context(job.claim("x"))
        for _ in range(3):
            other = await stack.enter_async_context(
                await psycopg.AsyncConnection.connect(config.dsn, autocommit=True)
            )
            await stack.enter_async_context(other.transaction())
            await other.execute(f"SET TRANSACTION ISOLATION LEVEL {level}".encode())
            await job.fence(other, claim)
        with pytest.raises(UsageError, match="savepoint"):
            async with user.transaction(), user.transaction():
                await job.fence(user, claim)
        assert await taken(admin, claim)


async def test_a_token_that_is_revoked_while_the_fence_waits_for_its_row_can_still_be_fenced(
    config, user, admin
):
    """The row that the fence's statement saw is not the one that it locks then."""
    async with (
        Job("a", config) as job,
        job.claim("x") as claim,
        await psycopg.AsyncConnection.connect(config.dsn) as other,
    ):
        await other.execute(
            "SELECT FROM sync_token WHERE token_id = %s FOR UPDATE", [claim.token_id]
        )
        async with user.transaction():
            fencing = asyncio.ensure_future(job.fence(user, claim))
            while await (await admin.execute(WAITS)).fetchone() is None:
                await asyncio.sleep(0.005)
            await other.execute(
                "UPDATE sync_token SET revoked_at = now() WHERE token_id = %s", [claim.token_id]
            )
            await other.commit()
            await fencing
            assert await taken(admin, claim)


async def test_a_fence_that_comes_while_a_revocation_is_under_way_holds(config, user, admin):
    async with (
        Job("a", config) as job,
        job.claim("x") as claim,
        await psycopg.AsyncConnection.connect(config.dsn) as other,
    ):
        await other.execute(
            "UPDATE sync_token SET revoked_at = now() WHERE token_id = %s", [claim.token_id]
        )
        async with user.transaction():
            await job.fence(user, claim)
            await other.commit()
            assert await taken(admin, claim)
        with pytest.raises(UsageError, match="savepoint"):
            await other.execute(
                "UPDATE sync_token SET revoked_at = NULL WHERE token_id = %s", [claim.token_id]
            )
            async with user.transaction(), user.transaction():
                await job.fence(user, claim)

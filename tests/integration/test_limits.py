"""What is not promised, as docs/guarantees.md says it: where the first promise ends, and that the
second does not."""

from __future__ import annotations

import asyncio

import anyio
import psycopg
import pytest

from jobsync_async import Job, OwnershipLost
from jobsync_async.host.clock import lease_clock
from jobsync_async.testing.proxy import Proxy, endpoint, through


async def test_a_worker_whose_clock_stood_still_holds_what_another_has_until_its_next_heartbeat_and_commits_nothing(  # noqa: E501
    quick,
):
    """As in a virtual machine that its host pauses: nothing passes, and no time, while it passes
    for the others."""
    proxy = Proxy(*endpoint(quick))
    await proxy.start()
    try:
        async with Job("b", quick) as b, Job("a", through(quick, proxy)) as a:
            with anyio.fail_after(10):
                while len(a.my_tokens) != 60:
                    await asyncio.sleep(0.01)
            paused_at = lease_clock()
            a._worker.clock = lambda: paused_at
            proxy.cut(silent=True)
            (task, *_) = a.filter_owned(range(100))
            async with await psycopg.AsyncConnection.connect(
                quick.dsn, autocommit=True
            ) as connection:
                await connection.execute("CREATE TABLE effect (what text)")
                with anyio.fail_after(10):
                    while len(b.my_tokens) != 120:
                        await asyncio.sleep(0.01)
                resumed_at = lease_clock()
                a._worker.clock = lambda: lease_clock() - (resumed_at - paused_at)
                assert a.owns(task) and b.owns(task), "that is the limit"
                with pytest.raises(OwnershipLost):
                    async with a.claim(task) as claim, connection.transaction():
                        await connection.execute("INSERT INTO effect VALUES ('late')")
                        await a.fence(connection, claim)
                assert await (
                    await connection.execute("SELECT count(*) FROM effect")
                ).fetchone() == (0,)
            proxy.heal()
            with anyio.fail_after(quick.lease_sec):
                while a.owns(task):
                    await asyncio.sleep(0.01)
    finally:
        await proxy.stop()

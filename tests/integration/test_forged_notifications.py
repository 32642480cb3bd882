"""Any role may NOTIFY any channel: thousands of forged and junk notifications a second cost a
worker next to nothing."""

from __future__ import annotations

import threading
import time

import anyio
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

FORGER = "jobsync_test_forger"
SECONDS = 3
PER_SECOND = 10_000
BURSTS = 20  # a second
FORGE = """
SELECT pg_notify('sync_changes',
                 CASE n %% 3 WHEN 0 THEN 'junk ' || n WHEN 1 THEN (1000000000000 + n)::text
                     ELSE repeat('9', 19) || n END)
FROM generate_series(%s::bigint, %s) n
"""


@pytest.fixture
def forger(dsn, direct_dsn):
    """A role with no rights at all but to connect."""
    with psycopg.connect(direct_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(sql.Identifier(FORGER)))
        try:
            yield make_conninfo(**{**conninfo_to_dict(dsn), "user": FORGER, "password": "x"})
        finally:
            admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(FORGER)))


def forge(dsn: str) -> float:
    """Send them all at the asked rate, from a thread; how many seconds it took."""
    begun = time.monotonic()
    burst = PER_SECOND // BURSTS
    pace = threading.Event()
    with psycopg.connect(dsn, autocommit=True) as connection:
        for n in range(SECONDS * BURSTS):
            connection.execute(FORGE, [n * burst, (n + 1) * burst - 1])
            pace.wait(max(0.0, begun + (n + 1) / BURSTS - time.monotonic()))
    return time.monotonic() - begun


@pytest.mark.needs("sessions")
async def test_ten_thousand_forged_notifications_a_second_cause_at_most_one_reading_a_second(
    forger, quick_jobs
):
    (job,) = await quick_jobs.start("a")
    before = (job.metrics.notifications, job.metrics.resyncs, job.metrics.heartbeats)
    seconds = await anyio.to_thread.run_sync(forge, forger)
    with anyio.fail_after(10):
        while job.metrics.notifications - before[0] < SECONDS * PER_SECOND:
            await anyio.sleep(0.01)
    resyncs, heartbeats = job.metrics.resyncs - before[1], job.metrics.heartbeats - before[2]
    print(
        f"{SECONDS * PER_SECOND} notifications in {seconds:.1f} s: {resyncs} readings, "
        f"{heartbeats} heartbeats"
    )
    assert resyncs <= seconds + 2  # the first at once, and one that was due when the last came
    assert heartbeats >= seconds / 0.3 - 3
    assert (
        job.metrics.heartbeats_failed
        == job.metrics.lease_losses
        == job.metrics.listener_reconnects
        == 0
    )
    assert len(job.my_tokens) == 120
    # A true change that comes meanwhile is not lost.
    await job.register_lock("x", "nobody")
    with anyio.fail_after(10):
        while job.owns("x"):
            await anyio.sleep(0.01)

"""However much changes and however many workers there are, together they read some hundred times a
second at most."""

from __future__ import annotations

import time

import anyio
import psycopg
import pytest

from jobsync_async.tasks.worker import Worker

CROWD = 200
CHANGES = 600
MOST_TOGETHER_PER_SEC = 250
# Whoever leads, and the next two in age: each of them.
MOST_PROMPT_PER_SEC = 20
# Rows that are there and do nothing: the number of workers is all that a worker's pace depends on.
OTHERS = """
    INSERT INTO sync_node (name, incarnation, joined, state)
    SELECT 'other-' || n, gen_random_uuid(), 1000 + n, 'draining' FROM generate_series(2, %s) n
"""
CHANGE = """
    WITH changed AS (UPDATE sync_cluster SET version = version + 1 RETURNING version)
    SELECT version, pg_notify('sync_changes', version::text) FROM changed
"""


def change_in_a_row(dsn: str) -> tuple[int, float]:
    """One change after the other; the last one's version, and how many seconds they took."""
    begun = time.monotonic()
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(CHANGES):
            row = connection.execute(CHANGE).fetchone()
    assert row is not None
    return row[0], time.monotonic() - begun


@pytest.mark.parametrize(
    ("leads", "most_per_sec"), [(True, MOST_PROMPT_PER_SEC), (False, MOST_TOGETHER_PER_SEC / CROWD)]
)
async def test_workers_together_read_some_hundred_times_a_second_at_most_and_then_know_the_last_change(  # noqa: E501
    direct_dsn, admin, jobs, monkeypatch, leads, most_per_sec
):
    (job,) = await jobs.start("a")
    await jobs.settled()
    monkeypatch.setattr(Worker, "wants_all_beats", lambda self: leads)
    await admin.execute(OTHERS, [CROWD])
    before = job.metrics.resyncs
    begun = time.monotonic()
    version, seconds = await anyio.to_thread.run_sync(change_in_a_row, direct_dsn)
    with anyio.fail_after(10):
        while job._engine.worker.version < version:
            await anyio.sleep(0.005)
    readings, passed = job.metrics.resyncs - before, time.monotonic() - begun
    print(f"{CHANGES} changes in {seconds:.2f} s: {readings} readings in {passed:.2f} s")
    # The first two come at once: the one before it had seen no crowd.
    assert readings <= 2 + passed * most_per_sec

"""Taking over jobsync's pins and completions, as the page about migration says."""

from __future__ import annotations

from pathlib import Path

import psycopg

from jobsync_async import CoordinationConfig, Job
from tests.documents.blocks import ROOT, blocks_of
from tests.documents.test_blocks import _run

PAGE: Path = ROOT / "docs" / "how-to" / "migrate-from-jobsync.md"

# The columns that the page reads, as jobsync 1.3.14 makes them.
JOBSYNC = """
CREATE TABLE sync_lock (task_id varchar PRIMARY KEY, node_patterns jsonb NOT NULL, reason varchar);
CREATE TABLE sync_audit (created_on timestamptz NOT NULL, node varchar NOT NULL, task_id varchar NOT NULL, date date NOT NULL);
INSERT INTO sync_lock VALUES ('model-1', '["gpu-%", "%"]', 'GPU'), ('model-2', '["big-%"]', NULL);
INSERT INTO sync_audit VALUES (now(), 'old', 'a', current_date), (now(), 'old', 'b', current_date - 1);
"""


async def test_pins_and_completions_of_jobsync_are_taken_over(empty_dsn):
    pins, completions = (block for block in blocks_of(PAGE) if block.language == "python")
    async with await psycopg.AsyncConnection.connect(empty_dsn, autocommit=True) as connection:
        await connection.execute(JOBSYNC)
        async with Job("anna", CoordinationConfig(dsn=empty_dsn, appname="jobs_")) as job:
            names = {"job": job, "connection": connection, "ids": ["a", "b", "c"]}
            await _run(pins, names)
            kept = {lock.task_id: (lock.node_patterns, lock.reason) for lock in await job.list_locks()}
            assert kept == {"model-1": (("gpu-%", "%"), "GPU"), "model-2": (("big-%",), None)}
            await _run(completions, names)
            assert names["ids"] == {"b", "c"}

"""Coming from jobsync, as the page about migration says: each block of it runs, and does what it
says."""

from __future__ import annotations

import ast
import asyncio
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

import jobsync_async
from jobsync_async import CoordinationConfig, Job
from jobsync_async.postgres.sql import TABLES
from tests import products
from tests.documents.blocks import ROOT, blocks_of
from tests.documents.test_blocks import _LIBPQ, _run

PAGE: Path = ROOT / "docs" / "how-to" / "migrate-from-jobsync.md"

# The tables that the page reads, as jobsync 1.3.14 makes them; ids are text there.
JOBSYNC = """
CREATE TABLE sync_lock (task_id varchar NOT NULL, node_patterns jsonb NOT NULL, reason varchar,
    created_at timestamptz NOT NULL,
    created_by varchar NOT NULL, expires_at timestamptz, PRIMARY KEY (task_id));
CREATE TABLE sync_audit (created_on timestamptz NOT NULL, node varchar NOT NULL,
    task_id varchar NOT NULL, date date NOT NULL);
INSERT INTO sync_lock VALUES
    ('model-1', '["gpu-%", "%"]', 'GPU', now(), 'old', NULL),
    ('model-2', '["big-%"]', NULL, now(), 'old', now() + interval '36 hours'),
    ('expired', '["gpu-%"]', 'x', now() - interval '9 days', 'old', now() - interval '1 second');
INSERT INTO sync_audit VALUES (now(), 'old', '7', current_date), (now(), 'old', 'a', current_date),
    (now(), 'old', 'b', current_date - 1);
"""


def block(beginning: str) -> str:
    """The page's Python block in which this stands."""
    (found,) = [
        block.text
        for block in blocks_of(PAGE)
        if block.language == "python" and beginning in block.text
    ]
    return found


@pytest.fixture
async def theirs(empty_dsn):
    async with await psycopg.AsyncConnection.connect(empty_dsn, autocommit=True) as connection:
        await connection.execute(JOBSYNC)
        yield connection


async def run_program(text: str, dsn: str) -> str:
    """Run a program of the page as a process; it reaches the server by libpq's environment."""
    program = text.replace('host="localhost", dbname="app", ', "")
    where = conninfo_to_dict(dsn)
    environment = {
        f"PG{name.upper()}": str(where[key]) for name, key in _LIBPQ.items() if key in where
    }
    environment |= products.given_to_programs()
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", "-c", program],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_pins_are_copied_with_their_expiry_and_without_the_expired_ones(theirs, empty_dsn):
    program = block("IN_FORCE")
    for _ in range(2):  # it may be run again
        await run_program(program, empty_dsn)
    async with Job("anna", CoordinationConfig(dsn=empty_dsn, appname="jobs_")) as job:
        locks = {lock.task_id: lock for lock in await job.list_locks()}
    assert {name: (lock.node_patterns, lock.reason) for name, lock in locks.items()} == {
        "model-1": (("gpu-%", "%"), "GPU"),
        "model-2": (("big-%",), None),
    }
    assert locks["model-1"].expires_at is None
    query = (
        "SELECT abs(extract(epoch FROM %s - expires_at)) FROM sync_lock WHERE task_id = 'model-2'"
    )
    (off,) = await (await theirs.execute(query, [locks["model-2"].expires_at])).fetchone()
    assert off < 60


async def test_pins_that_conflict_are_told_and_the_others_copied(theirs, empty_dsn):
    tokens: dict[int, str] = {}
    number = 0
    while (
        first := tokens.setdefault(jobsync_async.task_to_token(f"t{number}"), f"t{number}")
    ) == f"t{number}":
        number += 1
    for task, pattern in ((first, "gpu-%"), (f"t{number}", "big-%"), ("last", "%")):
        values = [task, f'["{pattern}"]']
        await theirs.execute(
            "INSERT INTO sync_lock VALUES (%s, %s, NULL, clock_timestamp(), 'old', NULL)", values
        )
    assert f"task 't{number}' was not pinned" in await run_program(block("IN_FORCE"), empty_dsn)
    async with Job("anna", CoordinationConfig(dsn=empty_dsn, appname="jobs_")) as job:
        assert {lock.task_id for lock in await job.list_locks()} == {
            "model-1",
            "model-2",
            first,
            "last",
        }


async def test_what_is_complete_today_is_left_out_whatever_kind_of_ids_there_are(theirs):
    names = {"connection": theirs, "ids": [6, 7, "a", "b", ("c", 1)]}
    await _run(next(block for block in blocks_of(PAGE) if "sync_audit WHERE" in block.text), names)
    assert names["ids"] == [6, "b", ("c", 1)]


async def test_the_programs_of_the_page_do_what_they_print(empty_dsn):
    assert sorted((await run_program(block("job.run_batch([f"), empty_dsn)).splitlines()) == sorted(
        f"processing item-{n}" for n in range(20)
    )
    portal = block("start_blocking_portal")
    assert (await run_program(portal, empty_dsn)).splitlines() == [
        "processing invoice-1",
        "processing invoice-2",
    ]
    assert await run_program(portal, empty_dsn) == "", "they are complete already"


async def test_the_loop_of_the_page_does_nothing_twice_when_a_worker_joins_midway(make_config):
    """jobsync's own loop, translated word by word, does: both say yes for what moves in between."""
    loop = next(block for block in blocks_of(PAGE) if block.text.startswith("for item in ids:"))
    done: list[object] = []
    config = make_config(total_tokens=200)

    async def work(name: str, begin: asyncio.Event) -> None:
        async def slowly(what: str, item: object) -> None:
            done.append(item)
            begin_other.set()
            await asyncio.sleep(0.002)

        await begin.wait()
        async with Job(name, config) as job:
            text = loop.text.replace(
                'print("processing", item)', 'await slowly("processing", item)'
            )
            code = compile(text, str(loop), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            while len(set(done)) < 200:
                await eval(code, {"job": job, "ids": range(200), "slowly": slowly})

    begin, begin_other = asyncio.Event(), asyncio.Event()
    begin.set()
    await asyncio.gather(work("anna", begin), work("berta", begin_other))
    assert len(done) == len(set(done)) == 200


def test_the_page_names_everything_that_is_gone_and_every_column(jobsync_python):
    listing = (
        "import dataclasses, inspect, jobsync, jobsync.client as c; print(*[n for n in "
        "dir(c.Job) if n[0] != '_']);"
        "print(*[f.name for f in dataclasses.fields(c.CoordinationConfig)]); "
        "print(*(set(dir(jobsync)) | set(c.__all__)));"
        "print(inspect.getsource(jobsync.schema))"
    )
    told = subprocess.run(
        [jobsync_python, "-c", listing], capture_output=True, text=True, check=True
    ).stdout
    methods, settings, names, schema = told.split("\n", 3)
    page = PAGE.read_text("utf-8")
    assert not [
        name for name in methods.split() if not hasattr(Job, name) and f"`job.{name}" not in page
    ]
    patterns = [
        re.compile(text.replace("*", r"\w+")) for text in re.findall(r"`(\w+\*?\w*)`", page)
    ]
    known = CoordinationConfig.__dataclass_fields__
    assert not [
        name
        for name in settings.split()
        if name not in known and not any(p.fullmatch(name) for p in patterns)
    ]
    public = {name for name in names.split() if name[0] != "_"} - {"client", "schema"}
    assert not [name for name in public if name not in jobsync_async.__all__ and name not in page]
    tables = re.findall(
        r"create table if not exists \{(\w+)_table\} \((.*?)\n\);", schema, re.DOTALL
    )
    assert len(tables) == 9
    for table, text in tables:
        assert f"`{'checkpoint' if table == 'check' else table}`" in page
        columns = re.findall(
            r"^    (\w+) (?:varchar|timestamp|date|integer|boolean|jsonb|serial)",
            text,
            re.MULTILINE,
        )
        assert table not in TABLES or not [
            column for column in columns if f"`{column}`" not in page
        ]

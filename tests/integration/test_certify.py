"""`jobsync-async certify` on a real server: it finds what is weaker there, and nothing is left of
it, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from jobsync_async import CoordinationConfig
from jobsync_async.core.server_profile import ANY_SERVER
from jobsync_async.operations.certify import verdicts
from jobsync_async.operations.certify.figures import Left
from jobsync_async.operations.certify.janitor import Duty, Janitor, Taken
from jobsync_async.operations.certify.probes import Probes
from jobsync_async.postgres.connection import Connector
from jobsync_async.postgres.schema import creation_script
from jobsync_async.postgres.sql import Queries
from tests.integration.test_command_line import COMMAND, linux, run, tables
from tests.integration.test_commands import documented, fits

KILLED = "certify_0123456789ab_"


def test_a_sound_server_is_certified_and_nothing_is_left_of_that(empty_dsn):
    done = run("certify", "--quick", "--json", "--dsn", empty_dsn)
    assert done.returncode == 0, done.stdout + done.stderr
    answer, shape = json.loads(done.stdout), documented()["certify"]
    checks = {check["name"]: check for check in answer["checks"]}
    # A server of tests may run without fsync, and a busy machine may be late.
    assert {name for name, check in checks.items() if check["status"] == "fail"} == set()
    assert {
        "tables",
        "rights",
        "row locks",
        "waiting for locks",
        "advisory locks",
        "sequences",
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
        "left behind",
    } <= {name for name, check in checks.items() if check["status"] == "ok"}
    assert checks["fence"]["figures"]["stale_rows"] == 0
    assert checks["fence"]["figures"]["committed"] == ["held"]
    assert checks["left behind"]["figures"] == {"tables": 0, "rows": 0, "sessions": 0}
    assert {"heartbeat", "read_changes"} <= {one["name"] for one in answer["statements"]}
    for check in answer["checks"]:  # each has its own
        check["figures"] = shape["checks"][0]["figures"]
    assert fits(shape, answer) == []
    assert "the leader is killed" in done.stderr
    assert tables(empty_dsn) == []


# -- what is left --------------------------------------------------------------------------------


@contextmanager
def certifying(dsn: str, until: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A run that has come so far, and what marks the environment of its processes."""
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    with subprocess.Popen(
        [*COMMAND, "certify", "--quick", "--dsn", dsn],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CERTIFY_TEST_MARK": mark},
    ) as process:
        assert process.stderr is not None
        assert any(until in line for line in process.stderr)
        yield process, mark
        process.kill()


def processes(mark: str) -> dict[int, str]:
    """The processes of a run: their numbers and command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(folder.name)] = command
        except OSError:
            continue
    return {pid: command for pid, command in found.items() if command}


def until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.needs("names")
@linux
def test_a_run_that_is_killed_leaves_one_connection_for_a_moment_and_then_nothing(empty_dsn):
    with (
        psycopg.connect(empty_dsn, autocommit=True) as admin,
        certifying(empty_dsn, "one leaves") as (process, mark),
    ):
        assert tables(empty_dsn) != []
        process.kill()
        process.wait()
        until(lambda: not any(".worker" in command for command in processes(mark).values()))
        until(lambda: len(sessions(admin)) <= 1)
        until(lambda: not processes(mark))
        until(lambda: not sessions(admin))
        assert tables(empty_dsn) == []


def sessions(admin: psycopg.Connection[Any]) -> list[Any]:
    """Others than the one that asks."""
    return admin.execute(
        "SELECT application_name, state FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ).fetchall()


@linux
def test_what_is_left_when_all_processes_are_killed_the_next_run_removes(empty_dsn):
    with certifying(empty_dsn, "three workers") as (_, mark):
        running = processes(mark)
        for pid in sorted(running, key=lambda pid: "janitor" not in running[pid]):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not processes(mark))
    left = tables(empty_dsn)
    assert left and all(name.startswith("certify_") for name in left)
    with duty(empty_dsn, "certify_ba9876543210_") as janitor:
        until(lambda: janitor.remove_earlier()[0] == len(left))  # once their sessions are gone
        assert tables(empty_dsn) == []


@contextmanager
def duty(dsn: str, prefix: str, *, keep: bool = False) -> Iterator[Janitor]:
    """A janitor in this process, which holds its lock."""
    janitor = Janitor(Duty(dsn, "public", prefix, keep, ""))
    janitor.hold()
    try:
        yield janitor
    finally:
        janitor.close()


def make(dsn: str, prefix: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(creation_script(CoordinationConfig(appname=prefix)).encode())


def test_tables_of_a_run_that_lives_are_left_alone_and_those_of_others_always(empty_dsn):
    make(empty_dsn, KILLED)
    make(empty_dsn, "certify_")  # an administrator's
    make(empty_dsn, "sync_")
    with duty(empty_dsn, KILLED), duty(empty_dsn, "certify_ba9876543210_") as other:
        assert other.remove_earlier() == (0, [])
    with duty(empty_dsn, "certify_ba9876543210_") as other:
        assert other.remove_earlier() == (12, [])
    assert {name.partition("_")[0] for name in tables(empty_dsn)} == {"certify", "sync"}
    assert len(tables(empty_dsn)) == 24


def test_tables_that_were_given_are_emptied_and_stay_unless_somebody_uses_them(empty_dsn):
    make(empty_dsn, "certify_")
    insert = (
        "INSERT INTO certify_node (name, incarnation, joined) VALUES (%s, gen_random_uuid(), 1)"
    )
    with (
        psycopg.connect(empty_dsn, autocommit=True) as admin,
        duty(empty_dsn, "certify_", keep=True) as janitor,
    ):
        with pytest.raises(Taken, match="another certification"), duty(empty_dsn, "certify_"):
            pass
        admin.execute(insert, ["0123456789ab-alpha"])  # of a run that was killed
        assert janitor.remove_earlier() == (0, [])
        assert janitor.clean() == Left(12, 0, 0)
        admin.execute(insert, ["anna"])
        with pytest.raises(Taken, match="anna"):
            janitor.remove_earlier()
        assert admin.execute("SELECT name FROM certify_node").fetchall() == [("anna",)]


# -- servers that are weaker ---------------------------------------------------------------------


class Weaker(Queries):
    """The statements as a server would take them that knows one of their clauses by name only."""

    def __init__(self, unknown: bytes) -> None:
        super().__init__("public", "sync_")
        self._unknown = unknown

    def probe(self, name: str, **parts: sql.SQL) -> bytes:
        query = super().probe(name, **parts)
        return query.replace(self._unknown + b" NOWAIT", b"").replace(self._unknown, b"")


def probes(dsn: str, queries: Queries | None = None) -> Probes:
    config = CoordinationConfig(dsn=dsn)
    connector = Connector(config.conninfo, 10)
    connector.queries = Queries("public", "sync_", ANY_SERVER)
    return Probes(connector, queries or connector.queries)


@pytest.mark.parametrize(
    ("clause", "says"),
    [
        (b"FOR KEY SHARE", "a fence does not keep a change of owner out"),
        (b"FOR NO KEY UPDATE", "two transactions change one row at once"),
        (b"FOR UPDATE", "a fence does not keep a change of owner out"),
    ],
)
async def test_a_lock_that_is_weaker_than_documented_is_found(dsn, clause, says):
    verdict = verdicts.row_locks(await probes(dsn, Weaker(clause)).row_locks())
    assert verdict.status == "fail"
    assert says in verdict.found


async def test_a_server_that_waits_for_no_lock_is_found(dsn):
    verdict = verdicts.waits(await probes(dsn, Weaker(b"FOR UPDATE SKIP LOCKED")).waits())
    assert verdict.status == "fail"
    assert "SKIP LOCKED did not pass over the locked row alone" in verdict.found
    verdict = verdicts.waits(await probes(dsn, Weaker(b" AND reason = %(reason)s")).waits())
    assert "an expiry deleted a worker whose heartbeat had come first" in verdict.found


async def test_a_time_out_that_is_not_acted_upon_is_found(dsn, monkeypatch):
    """A proxy may swallow what is set."""
    monkeypatch.setattr("jobsync_async.operations.certify.probes._TIMEOUT_WITHIN_SEC", 0.4)
    nothing = Weaker(b"set_config(%(name)s, %(value)s, true)")
    found = [verdicts.bound(one) for one in await probes(dsn, nothing).bounds()]
    assert [one.status for one in found] == ["fail"] * 3

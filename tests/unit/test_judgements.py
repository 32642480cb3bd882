"""What the doctor makes of facts: what is sound is ok, and everything else says what to do."""

from __future__ import annotations

from types import SimpleNamespace as Row

import pytest

from jobsync_async import CoordinationConfig
from jobsync_async.operations import judgements as judge
from jobsync_async.postgres.schema import LAYOUT

CONFIG = CoordinationConfig()
MEBIBYTE = 1 << 20


def right(
    table: str, *, reads: bool = True, writes: bool = True, lacks: tuple[str, ...] = ()
) -> Row:
    return Row(table=table, reads=reads, writes=writes, lacks=lacks)


def size(table: str, megabytes: float, live: int, dead: int) -> Row:
    return Row(table=table, bytes=int(megabytes * MEBIBYTE), live=live, dead=dead)


def transaction(seconds: float | None) -> Row:
    return Row(pid=7, application_name="", state="idle in transaction", seconds=seconds)


@pytest.mark.parametrize(
    ("check", "status"),
    [
        (judge.version("12.9", 120009), "fail"),
        (judge.version("13.0", 130000), "ok"),
        (judge.writable(standby=True, read_only=True), "fail"),
        (judge.writable(standby=False, read_only=True), "warn"),
        (judge.writable(standby=False, read_only=False), "ok"),
        (judge.encoding("SQL_ASCII"), "fail"),
        (judge.encoding("UTF8"), "ok"),
        (judge.durability(fsync=False, full_page_writes=True), "warn"),
        (judge.durability(fsync=True, full_page_writes=True), "ok"),
        (judge.connections(81, 100), "warn"),
        (judge.connections(80, 100), "ok"),
        (judge.idle_sessions("5min"), "warn"),
        (judge.idle_sessions("0"), "ok"),
        (judge.session_names("jobsync_async 0123456789ab a", "Supavisor"), "warn"),
        (judge.session_names("jobsync_async 0123456789ab ä", "jobsync_async 0123456789ab ?"), "ok"),
        (judge.queue(0.91), "fail"),
        (judge.queue(0.6), "warn"),
        (judge.queue(0.0), "ok"),
        (judge.lease(CONFIG, 0.001), "ok"),
        (judge.lease(CONFIG, 0.7), "warn"),
        (judge.clock(-3600.0), "warn"),
        (judge.clock(0.1), "ok"),
        (judge.polling(0.5), "ok"),
        (judge.push(None, through_pooler=True), "fail"),
        (judge.push(None, through_pooler=False), "fail"),
        (judge.push(0.001, through_pooler=True), "ok"),
        (judge.tables("s", ["a"], 7, schema_exists=True), "fail"),
        (judge.tables("s", [], 7, schema_exists=False), "fail"),
        (judge.tables("s", [], 7, schema_exists=True), "ok"),
        (judge.rights([right("a")], uses_schema=False), "fail"),
        (judge.rights([right("a"), right("b", reads=False)], uses_schema=True), "fail"),
        (judge.rights([right("a"), right("b", lacks=("DELETE",))], uses_schema=True), "fail"),
        (judge.rights([right("a", writes=False, lacks=("INSERT",))], uses_schema=True), "warn"),
        (judge.rights([right("a")], uses_schema=True), "ok"),
        (judge.settings([]), "warn"),
        (
            judge.settings(
                [Row(schema_version=1, layout=LAYOUT - 1, total_tokens=1, hash_function="md5")]
            ),
            "fail",
        ),
        (
            judge.settings(
                [
                    Row(
                        schema_version=LAYOUT + 1,
                        layout=LAYOUT + 1,
                        total_tokens=1,
                        hash_function="md5",
                    )
                ]
            ),
            "fail",
        ),
        (
            judge.settings(
                [Row(schema_version=1, layout=LAYOUT, total_tokens=1, hash_function="md5")]
            ),
            "ok",
        ),
        (judge.bloat("sync_", [size("sync_cluster", 5, 1, 10)]), "warn"),
        (judge.bloat("sync_", [size("sync_node", 0.1, 10, 30_000)]), "warn"),
        (judge.bloat("sync_", [size("sync_token", 2, 10_000, 20_002)]), "ok"),
        (judge.bloat("sync_", [size("sync_audit", 5_000, 1_000_000, 100_000)]), "ok"),
        (judge.transactions([transaction(301)]), "warn"),
        (judge.transactions([transaction(299)]), "ok"),
        (judge.transactions([transaction(None)]), "ok"),
        (judge.transactions([]), "ok"),
    ],
)
def test_what_is_sound_is_ok_and_everything_else_says_what_to_do(check, status):
    assert (check.status, check.found != "") == (status, True)
    assert bool(check.advice) == (status != "ok")

"""Real workers of 0.1.0 beside today's: one by one to the new version and back, and what is refused
when it must be."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest

from jobsync_async import __version__
from jobsync_async.core.server_history import UNSAID_TIMEOUT_SEC
from jobsync_async.embedded import EmbeddedPostgres
from jobsync_async.postgres.sql import LAYOUT, TOO_OLD
from tests.faults.conftest import QUICK, STEADY, MakeFleet, make_database
from tests.faults.fleet import Fleet
from tests.faults.history import History
from tests.faults.nursery import Nursery
from tests.faults.versions import FIRST, checked_out, tables_of

PIECES = 3000
LOAD = {"act_every_sec": 0.1, "write_every_sec": 1.0, "drains": True}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 0.1.0."""
    folder = tmp_path_factory.mktemp("first")
    reason = checked_out(FIRST, folder)
    if reason is not None:
        print(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="module")
def old(first: Path) -> Iterator[Nursery]:
    """Starts workers of 0.1.0."""
    with Nursery(first) as nursery:
        yield nursery


@pytest.fixture
def old_dsn(postgres: EmbeddedPostgres, first: Path) -> str:
    """A database with the tables as 0.1.0 makes them."""
    return make_database(postgres, script=tables_of(first))


def replace(fleet: Fleet, before: str, after: str, **options: object) -> tuple[float, float]:
    """Four workers are replaced one by one; from when to when."""
    began = fleet.now()
    for n in range(4):
        fleet.start(f"{after}-{n}", **LOAD, **options)
        fleet.leave(f"{before}-{n}")
        fleet.even(20)
    return began, fleet.now()


def longest_pause(past: History, began: float, ended: float) -> float:
    """The longest time that a task had nobody in it, of those that began in between."""
    stays = defaultdict[int, list[tuple[float, float]]](list)
    for stay in past.stays:
        stays[stay.task].append((stay.began, stay.held_until))
    pauses = [
        after[0] - before[1]
        for of_task in stays.values()
        for before, after in pairwise(sorted(of_task))
        if began <= before[1] <= ended
    ]
    return max(pauses)


def layout(fleet: Fleet) -> tuple[int, int]:
    row = fleet.value("SELECT to_jsonb(c) FROM sync_cluster c")
    return row["schema_version"], row.get("layout", 1)


def test_four_workers_of_0_1_0_are_replaced_one_by_one_by_todays_and_back_under_load(
    make_fleet: MakeFleet, old: Nursery, old_dsn: str
):
    fleet = make_fleet(STEADY, dsn=old_dsn, tasks=60)
    work = {"batch": PIECES, "batch_from": 0}  # as workers of 0.1.0 take them
    fleet.start(*(f"old-{n}" for n in range(4)), **LOAD, **work, nursery=old)
    assert fleet.work_goes_on(fleet.now(), 10)
    assert layout(fleet) == (1, 1)
    same = replace(fleet, "old", "same", nursery=old, **work)  # a deploy as any, to compare with
    assert layout(fleet) == (1, 1)
    there = replace(fleet, "same", "new", **work)
    assert layout(fleet) == (1, LAYOUT), (
        "the first new worker expands the tables, and 0.1.0 may still come"
    )
    back = replace(fleet, "new", "again", nursery=old, **work)
    fleet.until(
        lambda: all(m.said("said", "batch is done", 0) for m in fleet.running()),
        60,
        "the batch is done",
    )
    fleet.judge()
    pieces = [piece for member in fleet.members.values() for _, _, piece in member.said("piece")]
    assert set(pieces) == set(range(PIECES))
    assert fleet.value("SELECT count(*) FROM sync_audit") == PIECES
    assert not [m.name for m in fleet.members.values() if m.said("state", False) and not m.dead]
    usual, to_new, to_old = (longest_pause(fleet.past, *times) for times in (same, there, back))
    print(
        f"longest pause of a task: {usual:.2f} s old to old, {to_new:.2f} s old to new, "
        f"{to_old:.2f} s new to old"
    )
    assert max(to_new, to_old) <= usual + 1, (
        "a deploy between versions takes no longer pauses than one within a version"
    )


@pytest.mark.long
@pytest.mark.timeout(600)
def test_versions_change_there_and_back_for_minutes_while_workers_of_both_are_killed(
    make_fleet: MakeFleet, old: Nursery, old_dsn: str
):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    fleet = make_fleet(STEADY, dsn=old_dsn, tasks=60)
    fleet.start(*(f"start-{n}" for n in range(4)), **LOAD, nursery=old)
    before = "start"
    for turn in range(8):
        after = f"{'old' if turn % 2 else 'new'}-{turn}"
        for n in range(4):
            fleet.start(f"{after}-{n}", **LOAD, nursery=old if turn % 2 else None)
            end = fleet.kill if chance.random() < 0.4 else fleet.leave
            end(f"{before}-{n}")
            fleet.even(30)
        before = after
        fleet.judge()
    assert fleet.work_goes_on(fleet.now(), 10)


def test_no_worker_of_0_1_0_loses_its_lease_while_the_tables_are_expanded_behind_a_long_transaction(
    make_fleet: MakeFleet, old: Nursery, old_dsn: str
):
    fleet = make_fleet(QUICK, dsn=old_dsn)
    fleet.start(*(f"old-{n}" for n in range(4)), nursery=old)
    with psycopg.connect(old_dsn) as analyst:
        analyst.execute("SELECT FROM sync_cluster, sync_node, sync_token, sync_claim, sync_audit")
        with fleet.no_token_moves():
            fleet.launch("new")
            fleet.watch(3 * fleet.timeout_sec)
        assert layout(fleet) == (1, 1)
        assert not fleet["new"].said("up")
    fleet.even(30)
    assert layout(fleet) == (1, LAYOUT)
    assert fleet["new"].said("up")


def test_a_worker_of_0_1_0_is_refused_once_the_tables_are_contracted_also_one_that_slept_meanwhile(
    make_fleet: MakeFleet, old: Nursery, old_dsn: str
):
    """It opened the tables before, was expired, and would make its row anew without another look at
    the version."""
    fleet = make_fleet(QUICK, dsn=old_dsn)
    fleet.start("old", nursery=old)
    fleet.start("new")
    refused = contract(old_dsn)
    assert (refused.returncode, "old (0.1.0)" in refused.stderr) == (1, True), refused
    fleet.stop("old")
    # It says no timeout of its own, so it is judged by the longest that it can have.
    sec = UNSAID_TIMEOUT_SEC + 5
    fleet.until(lambda: fleet.by_age() == ["new"], sec, "the one that sleeps is expired")
    assert contract(old_dsn).returncode == 0
    fleet["old"].resume()
    assert TOO_OLD in last_words(fleet, "old")
    fleet.launch("late", nursery=old)
    assert "install the version" in last_words(fleet, "late")
    fleet.even(10)


def last_words(fleet: Fleet, name: str) -> str:
    """Why a worker failed, as it is to."""
    member = fleet.forget(name)
    member.await_end(1)
    member.look()
    return str(member.said("failed"))


def contract(dsn: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobsync_async", "contract", "--dsn", dsn]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_start_of_0_1_0_under_the_name_of_a_dead_worker_of_todays_is_seen_as_what_it_is(
    make_fleet: MakeFleet, old: Nursery, old_dsn: str
):
    fleet = make_fleet(QUICK, dsn=old_dsn)
    fleet.start("one", nursery=old)
    fleet.start("two")
    told = (
        "SELECT CASE WHEN said_by = incarnation THEN library END FROM sync_node WHERE name = 'two'"
    )
    assert fleet.value(told) == __version__
    fleet.kill("two")
    fleet.forget("two")
    fleet.launch("two", nursery=old)
    fleet.until(
        lambda: any(pid == fleet["two"].pid for _, _, pid in fleet["two"].said("up")),
        20,
        "it took the name over",
    )
    assert fleet.value(told) is None
    refused = contract(old_dsn)
    assert "one (0.1.0)" in refused.stderr
    assert "two (0.1.0)" in refused.stderr

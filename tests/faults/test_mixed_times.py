"""Faults in a cluster whose workers have different times, as in a rolling deploy that changes
them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from jobsync_async.embedded import EmbeddedPostgres
from tests.faults.conftest import MakeFleet, make_database
from tests.faults.fleet import SLACK_SEC
from tests.standbys import Standby

QUICK = {"heartbeat_interval_sec": 0.4, "heartbeat_timeout_sec": 1.5}
SLOW = {"heartbeat_interval_sec": 1.5, "heartbeat_timeout_sec": 5.0}


@pytest.mark.parametrize(
    ("cut_off", "others"), [(SLOW, QUICK), (QUICK, SLOW)], ids=["slow", "quick"]
)
@pytest.mark.parametrize("leads", [False, True], ids=["follows", "leads"])
def test_a_worker_that_is_cut_off_is_replaced_after_its_own_timeout_whatever_those_of_the_others_are(  # noqa: E501
    make_fleet: MakeFleet, make_proxy, cut_off, others, leads
):
    proxy, way = make_proxy()
    fleet = make_fleet(SLOW)
    fleet.start("first")  # it sets the bound
    names = ["c", "a", "b"] if leads else ["a", "b", "c"]
    for name in names:
        fleet.start(name, times=cut_off if name == "c" else others, **(way if name == "c" else {}))
    fleet.leave("first")
    fleet.even(10)
    assert (fleet.leader() == "c") == leads
    # Nobody is taken for dead meanwhile, whoever watches whom.
    fleet.watch(2 * SLOW["heartbeat_timeout_sec"])
    orphans = fleet["c"].state[3]
    fleet["c"].cut = True
    cut_at = fleet.now()
    proxy.cut("up", "down")
    took = fleet.begun(orphans, cut_at, 20)
    timeout_sec, interval_sec = cut_off["heartbeat_timeout_sec"], cut_off["heartbeat_interval_sec"]
    assert took <= timeout_sec + 1 + SLACK_SEC
    assert took > 0.8 * timeout_sec - interval_sec, "nobody was taken for dead"
    rejoined = [
        line
        for m in fleet.members.values()
        if m.name != "c"
        for line in m.diary()
        if "joins anew" in line
    ]
    assert rejoined == []
    proxy.restore()
    fleet["c"].cut = False
    fleet.even(15)


def test_an_outage_that_is_longer_than_the_shortest_timeout_lets_nobody_be_expired(
    make_fleet: MakeFleet, postgres: EmbeddedPostgres
):
    fleet = make_fleet(SLOW)
    fleet.start("a")
    fleet.start("b", "c", times=QUICK)
    fleet.start("d")
    before = fleet.tokens()
    for seconds in (2.2, 1.0, 3.5):
        postgres.stop()
        fleet.watch(seconds)
        postgres.start()
        back = fleet.now()
        assert fleet.work_goes_on(back, 5) <= 1 + SLACK_SEC
        fleet.watch(QUICK["heartbeat_timeout_sec"])
        assert fleet.tokens() == before, fleet.describe()


@pytest.fixture
def replicated() -> Iterator[tuple[EmbeddedPostgres, Standby, str]]:
    """A primary, its standby, and a way to whichever of them takes writes."""
    with ExitStack() as stack:
        primary = stack.enter_context(EmbeddedPostgres())
        dsn = make_database(primary)
        standby = stack.enter_context(Standby(primary))
        hosts = {"host": "127.0.0.1,127.0.0.1", "port": f"{primary.port},{standby.port}"}
        yield primary, standby, make_conninfo(dsn, **hosts, target_session_attrs="read-write")


@pytest.mark.parametrize(
    ("cut_off", "others"), [(SLOW, QUICK), (QUICK, SLOW)], ids=["slow", "quick"]
)
def test_after_a_failover_the_lease_of_a_slow_worker_that_is_cut_off_is_waited_for(
    replicated, make_fleet: MakeFleet, cut_off, others
):
    primary, standby, dsn = replicated
    fleet = make_fleet(SLOW, dsn=dsn)
    fleet.start("first")  # it sets the bound
    fleet.start("a", "b", times=others)
    alone = make_conninfo(dsn, host="127.0.0.1", port=primary.port)
    fleet.start("c", times=cut_off, dsn=alone)  # it never hears of another server
    fleet.leave("first")
    fleet.even(10)
    tasks = fleet.tokens()
    fleet["c"].cut = True
    primary.stop("fast")  # the standby has every commit
    standby.promote()
    promoted = fleet.now()
    took = fleet.begun(tasks, promoted, 20)
    bound_sec = SLOW["heartbeat_timeout_sec"]
    assert bound_sec - 2 < took <= bound_sec + 2 + SLACK_SEC
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "SELECT longest_wait, longest_allowed, generation > 1 FROM sync_cluster"
        ).fetchone()
    assert row == (bound_sec, bound_sec, True)

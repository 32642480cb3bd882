"""What can happen to PostgreSQL and its sessions."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobsync_async.embedded import EmbeddedPostgres
from tests.faults.conftest import QUICK, STEADY, MakeFleet
from tests.faults.fleet import SLACK_SEC, Fleet

DEFAULT = {"heartbeat_interval_sec": 5.0, "heartbeat_timeout_sec": 15.0}


@contextmanager
def frozen(fleet: Fleet, pid: int) -> Iterator[None]:
    """A server process that does not run. It is stopped between two transactions: in one, it would
    keep its locks from all."""
    os.kill(pid, signal.SIGSTOP)
    try:
        fleet.until(
            lambda: stopped_idle(fleet, pid),
            5,
            "the server process is stopped outside a transaction",
        )
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def stopped_idle(fleet: Fleet, pid: int) -> bool:
    """Whether it has stopped, and holds no lock; if it holds one, it runs on until the next
    look."""
    if Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "T":
        os.kill(pid, signal.SIGSTOP)
        return False
    holds_locks = fleet.admin.execute(
        "SELECT 1 FROM pg_locks WHERE pid = %s LIMIT 1", [pid]
    ).fetchone()
    if holds_locks:
        os.kill(pid, signal.SIGCONT)
    return not holds_locks


def sessions_are_back(fleet: Fleet, than: dict[str, int] | None = None) -> Callable[[], bool]:
    """Whether everybody who runs has both sessions, other listeners than those."""

    def back() -> bool:
        listeners = fleet.sessions("listener")
        renewed = all(listeners.get(name) != pid for name, pid in (than or {}).items())
        return renewed and len(listeners) == len(fleet.sessions("heartbeat")) == len(
            fleet.running()
        )

    return back


def test_a_frozen_listener_is_found_by_the_next_heartbeat_and_renewed(make_fleet: MakeFleet):
    fleet = make_fleet(STEADY)
    fleet.start("a", "b")
    listener = fleet.sessions("listener")["b"]
    with frozen(fleet, listener):
        fleet.launch("c")
        fleet.until(lambda: fleet["c"].said("up") or fleet["c"].state[3], 10, "c has joined")
        assert fleet.even(10) <= fleet.interval_sec + 1 + SLACK_SEC
        assert fleet.sessions("listener")["b"] != listener
        assert not fleet["b"].said("state", False), "no lease was lost"


def test_a_frozen_heartbeat_session_is_replaced_before_the_lease_ends(make_fleet: MakeFleet):
    fleet = make_fleet(STEADY)
    fleet.start("a", "b")
    before = fleet.sessions("heartbeat")["b"]
    with frozen(fleet, before), fleet.no_token_moves():
        fleet.watch(fleet.timeout_sec + fleet.interval_sec)
        assert fleet.sessions("heartbeat")["b"] != before


def test_sessions_that_are_terminated_are_replaced_and_no_token_moves(make_fleet: MakeFleet):
    fleet = make_fleet(STEADY)
    fleet.start("a", "b", "c")
    with fleet.no_token_moves():
        before = fleet.sessions("listener")
        fleet.admin.execute("SELECT pg_terminate_backend(%s)", [before["b"]])
        fleet.until(sessions_are_back(fleet, {"b": before["b"]}), 1 + SLACK_SEC, "b listens again")
        before = fleet.sessions("listener")
        fleet.admin.execute(
            """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()"""
        )
        fleet.until(sessions_are_back(fleet, before), 1 + SLACK_SEC, "all listen again")
    fleet.launch("d")
    fleet.even(10)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_postgresql_moves_no_token(
    make_fleet: MakeFleet, postgres: EmbeddedPostgres, mode
):
    fleet = make_fleet(STEADY)
    fleet.start("a", "b", "c")
    with fleet.no_token_moves():
        before = fleet.sessions("listener")
        postgres.stop(mode)
        postgres.start()
        back = fleet.now()
        fleet.until(sessions_are_back(fleet, before), 1 + SLACK_SEC, "all are connected again")
        assert fleet.work_goes_on(back, 5) <= 1 + SLACK_SEC


@pytest.mark.long
def test_with_the_default_times_all_are_back_a_second_after_postgresql_is(
    make_fleet: MakeFleet, postgres: EmbeddedPostgres
):
    """It was away for long enough that tries to connect have become rare."""
    fleet = make_fleet(DEFAULT)
    fleet.start("a", "b", "c")
    with fleet.no_token_moves():
        fleet.until(sessions_are_back(fleet), 5, "all are connected")
        before = fleet.sessions("listener")
        postgres.stop()
        fleet.watch(8)
        postgres.start()
        fleet.until(sessions_are_back(fleet, before), 1 + SLACK_SEC, "all are connected again")


def test_all_stop_when_postgresql_is_away_for_longer_than_the_lease_and_go_on_when_it_is_back(
    make_fleet: MakeFleet, postgres: EmbeddedPostgres
):
    fleet = make_fleet(QUICK)
    fleet.start("a", "b", "c")
    before = fleet.tokens()
    away = fleet.now()
    postgres.stop()
    fleet.watch(fleet.timeout_sec + 1)
    for name in ("a", "b", "c"):
        assert fleet.last_act(name) <= away + fleet.lease_sec
        assert fleet[name].state[1:] == (False, False, frozenset())
    starting = fleet.now()  # a worker may be connected, and at work, before the start has told us
    postgres.start()
    back = fleet.now()
    assert starting + fleet.begun(before, starting, 10) <= back + 1 + SLACK_SEC
    assert fleet.work_goes_on(back, 5) <= 2 + SLACK_SEC
    assert fleet.tokens() == before, "each is still whose it was"


def test_all_stop_when_postgresql_is_read_only_for_longer_than_the_lease_and_go_on_afterwards(
    make_fleet: MakeFleet,
):
    fleet = make_fleet(QUICK)
    fleet.start("a", "b", "c")
    before = fleet.tokens()
    fleet.admin.execute("SET default_transaction_read_only = off")
    since = fleet.now()
    fleet.admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    try:
        fleet.admin.execute("SELECT pg_reload_conf()")
        fleet.watch(fleet.timeout_sec + 1)
    finally:
        back = fleet.now()
        fleet.admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
        fleet.admin.execute("SELECT pg_reload_conf()")
    for name in ("a", "b", "c"):  # the server takes a moment to read its settings
        assert fleet.last_act(name) <= since + fleet.lease_sec + SLACK_SEC
    assert fleet.begun(before, back, 10) <= 1 + SLACK_SEC
    assert fleet.tokens() == before, "each is still whose it was"


def test_a_full_disk_loses_nothing_and_moves_nothing(small_disk, make_fleet: MakeFleet):
    """The database's own disk; PostgreSQL itself stops when the disk of its log is full, and then
    it is away."""
    dsn, disk = small_disk
    fleet = make_fleet(STEADY, dsn=dsn)
    fleet.start("a", "b", "c", write_every_sec=0.1)
    before = fleet.tokens()
    ballast = disk / "ballast"
    with fleet.no_token_moves():
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(65536))
        fleet.watch(fleet.timeout_sec)
        last = max(t for member in fleet.running() for _, t, *_ in member.said("commit"))
        assert last < fleet.now() - 1, "nothing more can be written"
    ballast.unlink()
    back = fleet.now()
    assert fleet.work_goes_on(back, 10) <= 1 + SLACK_SEC
    assert fleet.tokens() == before

"""Wall clocks that jump, the server's and the workers', by libfaketime. Nothing is decided by a
wall clock."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from jobsync_async.embedded import EmbeddedPostgres
from tests.faults.conftest import STEADY, MakeFleet, make_database

MakeClock = Callable[[], tuple[Path, dict[str, str]]]
HOUR = 3600


@pytest.fixture
def make_clock() -> Iterator[MakeClock]:
    """Makes clocks: the file that sets one, and the environment of a program that goes by it."""
    found = [
        *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
        *Path("/usr/lib/faketime").glob("libfaketimeMT.so.1"),
    ]
    if sys.platform != "linux" or not found:
        pytest.skip("libfaketime is not installed (apt-get install faketime)")
    folder = Path(tempfile.mkdtemp(prefix="clocks-"))
    folder.chmod(0o755)
    made = 0

    def make() -> tuple[Path, dict[str, str]]:
        nonlocal made
        made += 1
        file = folder / str(made)
        set_clock(file, 0)
        environment = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        return file, environment

    yield make
    shutil.rmtree(folder)


def set_clock(file: Path, seconds: int) -> None:
    """Set a clock wrong by so much, all at once."""
    new = file.with_suffix(".new")
    new.write_text(f"{seconds:+d}\n", "ascii")
    new.rename(file)


@pytest.fixture
def server_and_clock(
    make_clock: MakeClock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[EmbeddedPostgres, Path]]:
    """A server that goes by a clock of its own."""
    file, environment = make_clock()
    server = EmbeddedPostgres()
    try:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            server.create()
        yield server, file
    finally:
        server.delete()


def test_a_database_whose_clock_jumps_by_an_hour_has_no_effect(
    server_and_clock, make_fleet: MakeFleet
):
    server, clock = server_and_clock
    dsn = make_database(server)
    fleet = make_fleet(STEADY, dsn=dsn)
    fleet.start("a", "b", "c")
    orphans = fleet["c"].state[3]
    with fleet.no_token_moves():
        for wrong_by in (HOUR, -HOUR):
            set_clock(clock, wrong_by)
            with psycopg.connect(dsn) as connection:
                row = connection.execute("SELECT extract(epoch FROM clock_timestamp())").fetchone()
            assert row is not None
            assert abs(float(row[0]) - time.time() - wrong_by) < 60, "the clock was set"
            fleet.watch(1.5)
        set_clock(clock, HOUR)
    killed = fleet.kill("c")
    assert fleet.begun(orphans, killed, 20) <= fleet.takeover_sec


def test_workers_whose_clocks_jump_by_an_hour_notice_nothing(
    make_clock: MakeClock, make_fleet: MakeFleet
):
    (fast, fasts), (slow, slows) = make_clock(), make_clock()
    fleet = make_fleet(STEADY)
    fleet.launch("a", environment=fasts)
    fleet.launch("b", environment=slows)
    fleet.launch("c", environment=slows)
    fleet.start("d")
    orphans = fleet["b"].state[3]
    with fleet.no_token_moves():
        for sign in (1, -1):
            set_clock(fast, sign * HOUR)
            set_clock(slow, -sign * HOUR)
            fleet.watch(1.5)
    killed = fleet.kill("b")
    assert fleet.begun(orphans, killed, 20) <= fleet.takeover_sec

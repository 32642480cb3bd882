"""Workers that come and go: replaced one by one, and at random."""

from __future__ import annotations

import random

import pytest

from tests.faults.conftest import QUICK, STEADY, MakeFleet
from tests.faults.fleet import Fleet

PIECES = 1500


def test_ten_workers_are_replaced_one_by_one_under_load_and_no_piece_of_work_is_done_twice_or_missed(  # noqa: E501
    make_fleet: MakeFleet,
):
    fleet = make_fleet(STEADY, tasks=120)
    load = {"act_every_sec": 0.25, "write_every_sec": 2.0, "batch": PIECES, "drains": True}
    fleet.start(*(f"old-{n}" for n in range(10)), **load)
    fleet.judge()
    moved_before = fleet.past.moves()
    for n in range(10):
        fleet.start(f"new-{n}", **load)
        fleet.leave(f"old-{n}")
        fleet.even(10)
    new = [fleet[f"new-{n}"] for n in range(10)]
    fleet.until(
        lambda: all(member.said("said", "batch is done", 0) for member in new),
        60,
        "the batch is done",
    )
    pieces = [piece for member in fleet.members.values() for _, _, piece in member.said("piece")]
    assert len(pieces) == PIECES
    assert set(pieces) == set(range(PIECES))
    assert fleet.value("SELECT count(*) FROM sync_audit") == PIECES
    report = fleet.judge()
    assert not report.unfenced_overlaps
    moved = fleet.past.moves() - moved_before
    print(f"{moved} moves of 120 tokens")
    assert moved <= 2.2 * 120, "each token must move once, for its first owner leaves"


def at_random(fleet: Fleet, seconds: float, seed: int) -> None:
    """Joins, leaves, kills and stops, one after the other; two to six workers at a time, of which
    one is only ever stopped."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    fleet.start("anchor", "w0", "w1")
    born = 2
    until = fleet.now() + seconds
    resume_at: dict[str, float] = {}
    while fleet.now() < until:
        others = [m.name for m in fleet.running() if m.name != "anchor"]
        action = chance.choice(["join", "leave", "kill", "stop"])
        if action == "stop" and others:
            name = (
                chance.choice(["anchor", *others])
                if "anchor" not in resume_at
                else chance.choice(others)
            )
            fleet.stop(name)
            resume_at[name] = fleet.now() + chance.uniform(0.1, 3) * fleet.timeout_sec
        elif action == "join" or len(others) < 2:
            if len(fleet.running()) + len(resume_at) < 6:
                fleet.launch(f"w{born}", drains=chance.random() < 0.5, far=chance.random() < 0.5)
                fleet.until(
                    lambda name=f"w{born}": fleet[name].said("said", "listening"),
                    30,
                    "it has joined",
                )
                born += 1
        elif action == "leave":
            fleet.leave(chance.choice(others))
        elif action == "kill":
            fleet.kill(chance.choice(others))
        fleet.watch(chance.uniform(0, 1.5))
        for name in [name for name, due in resume_at.items() if fleet.now() >= due]:
            fleet.resume(name)
            del resume_at[name]
    if resume_at:
        fleet.resume(*resume_at)
    fleet.even(15)
    assert fleet.work_goes_on(fleet.now(), 5)


def connections(fleet: Fleet) -> int:
    """Sessions of the library, whoever's."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND "
        "application_name LIKE 'jobsync_async %%'"
    )
    return int(fleet.value(query))


def test_twenty_seconds_of_random_joins_leaves_kills_and_stops(make_fleet: MakeFleet):
    fleet = make_fleet(QUICK)
    at_random(fleet, 20, random.randrange(2**32))
    fleet.judge()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_ten_minutes_of_random_joins_leaves_kills_and_stops_leave_memory_and_connections_flat(
    make_fleet: MakeFleet,
):
    fleet = make_fleet(QUICK)
    at_random(fleet, 600, random.randrange(2**32))
    fleet.judge()
    # Leaders close the connection that they write with when it was idle for five seconds, and so
    # does the pool.
    fleet.until(
        lambda: connections(fleet) == 2 * len(fleet.running()),
        15,
        "two connections are left for each worker",
    )
    memory = [kib for _, _, kib in fleet["anchor"].said("memory")]
    early, late = max(memory[: len(memory) // 4]), memory[-1]
    print(
        f"resident memory of the oldest worker: {early} KiB in the first quarter, {late} KiB in "
        "the end"
    )
    assert late <= early + 4096

"""SIGKILL: of a worker, of the leader, of two at once, of one in the middle of a fenced
transaction."""

from __future__ import annotations

import pytest

from tests.faults.conftest import QUICK, MakeFleet
from tests.faults.fleet import SLACK_SEC, Fleet

WORKERS = ("a", "b", "c", "d")

somewhere = pytest.mark.parametrize(
    "far", [False, True], ids=["on one host", "on hosts of their own"]
)
"""Workers on one host see each other's processes end; others wait until the dead must have
stopped."""


def takeover_sec(fleet: Fleet, far: bool) -> float:
    """How long the tasks of the dead may stay without a worker."""
    return fleet.takeover_sec if far else 0.5 + SLACK_SEC


@somewhere
@pytest.mark.parametrize(
    "ranks", [(3,), (0,), (0, 1)], ids=["a worker", "the leader", "the leader and the next in age"]
)
def test_what_killed_workers_owned_is_worked_on_again_in_time(
    make_fleet: MakeFleet, far: bool, ranks: tuple[int, ...]
):
    fleet = make_fleet(QUICK)
    fleet.start(*WORKERS, far=far)
    by_age = fleet.by_age()
    assert by_age[0] == fleet.leader()
    victims = [by_age[rank] for rank in ranks]
    orphans = [task for name in victims for task in fleet[name].state[3]]
    killed = fleet.kill(*victims)
    took = fleet.begun(orphans, killed, 20)
    print(f"worked on again after {took:.3f} s")
    assert took <= takeover_sec(fleet, far)
    fleet.even(5)


@somewhere
def test_a_dead_workers_last_commit_comes_before_the_takeover_which_waits_for_its_fence(
    make_fleet: MakeFleet, far: bool
):
    """Its COMMIT is on the way when it dies, and the server gets to it only when the others have
    taken over."""
    fleet = make_fleet(QUICK)
    fleet.start("a", "b", "c", far=far)
    victim = next(name for name in ("a", "b", "c") if name != fleet.leader())
    task, *others = sorted(fleet[victim].state[3])
    outlasts = fleet.timeout_sec + 2
    fleet.tell(victim, "last_words", task=task, seconds=outlasts)
    fleet.until(lambda: fleet[victim].said("said", "holding", task), 5, "the fence is held")
    _, held_since, _, _, epoch = fleet[victim].said("said", "holding", task)[0]
    killed = fleet.kill(victim)
    assert fleet.begun(others, killed, 20) <= takeover_sec(fleet, far), (
        "the other tokens do not wait for the fence"
    )
    committed = (
        "SELECT count(*) FROM effect WHERE worker = %s AND task = %s AND epoch = %s AND n > %s"
    )
    heard_of = max((n for *_, n in fleet[victim].said("commit", task)), default=0)
    fleet.until(
        lambda: fleet.value(committed, victim, task, epoch, heard_of),
        10,
        "its last words are committed",
    )
    committed_at = fleet.now()
    fleet.begun([task], killed, 10)
    began = min(
        t for member in fleet.running() for _, t, *_ in member.said("begin", task, since=killed)
    )
    assert held_since + outlasts <= began <= committed_at + 1 + SLACK_SEC

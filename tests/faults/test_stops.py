"""SIGSTOP, and an event loop that user code blocks: a worker that does not know that time has
passed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from jobsync_async.core.heartbeat_schedule import SETTLING
from tests.faults.conftest import DEFAULT, QUICK, MakeFleet
from tests.faults.fleet import SLACK_SEC, Fleet

NOTHING = {
    "owns": False,
    "claim": False,
    "filtered": 0,
    "tokens": 0,
    "healthy": False,
    "leads": False,
}


def test_stopped_workers_are_replaced_and_commit_and_start_nothing_when_they_wake(
    make_fleet: MakeFleet,
):
    """The leader and another one are stopped for three timeouts."""
    fleet = make_fleet(QUICK)
    fleet.start("a", "b", "c", "d")
    sleepers = [fleet.leader(), fleet.by_age()[-1]]
    orphans = [task for name in sleepers for task in fleet[name].state[3]]
    for name in sleepers:
        fleet.tell(name, "late_fence", task=min(fleet[name].state[3]))
        fleet.until(lambda name=name: fleet[name].said("said", "waiting"), 5, "a claim is open")
    stopped = fleet.stop(*sleepers)
    assert fleet.begun(orphans, stopped, 20) <= fleet.takeover_sec
    fleet.watch(max(0.0, 3 * fleet.timeout_sec - (fleet.now() - stopped)))
    taken_over = {task: fleet.tokens()[task] for task in orphans}
    resumed = fleet.resume(*sleepers)
    fleet.even(10)
    for name in sleepers:
        fleet.until(lambda name=name: fleet[name].said("said", "fence"), 5, "the fence was asked")
        assert fleet[name].said("said", "fence")[0][3:] == [False, False], (
            "neither the claim nor the fence says yes"
        )
        for _, _, task, epoch in [
            e for e in fleet[name].said("begin", since=resumed) if e[2] in taken_over
        ]:
            assert epoch > taken_over[task][1], "what it begins it has got anew"
    report = fleet.judge()
    assert len(report.unfenced_overlaps) <= len(sleepers), (
        "one act can be between its check and its effect"
    )


@pytest.mark.parametrize(
    "ages",
    [
        pytest.param((0, 1), id="the leader, the next in age"),
        pytest.param((-1, 0), id="the youngest, the leader", marks=pytest.mark.long),
        pytest.param((1,), id="the next in age", marks=pytest.mark.long),
    ],
)
def test_with_default_times_stopped_workers_are_replaced_a_second_after_the_timeout(
    make_fleet: MakeFleet, ages: Sequence[int]
):
    """Each is stopped right after its next heartbeat: then there is most to wait for."""
    fleet = make_fleet(DEFAULT)
    fleet.start("a", "b", "c", "d")
    names = [fleet.by_age()[age] for age in ages]
    # Each has come to its moment in the leader's interval.
    fleet.watch(SETTLING * fleet.interval_sec)
    stopped = {}
    for name in names:
        until_it_beats(fleet, name)
        stopped[name] = fleet.stop(name)
    for name, since in stopped.items():
        replaced_a_second_after_the_timeout(fleet, name, since)
    fleet.resume(*names)
    fleet.even(10)


def test_with_default_times_a_worker_that_has_just_joined_is_replaced_as_soon(
    make_fleet: MakeFleet,
):
    """On the way to their place its beats are far from the leader's: the next one comes shortly
    after the leader's look."""
    fleet = make_fleet(DEFAULT)
    fleet.start("a", "b", "c")
    until_it_beats(fleet, fleet.leader())
    fleet.watch(0.5 * fleet.interval_sec)
    fleet.start("d")
    until_it_beats(fleet, "d")
    replaced_a_second_after_the_timeout(fleet, "d", fleet.stop("d"))
    fleet.resume("d")
    fleet.even(10)


def until_it_beats(fleet: Fleet, name: str) -> None:
    beats = fleet.beats(name)
    fleet.until(lambda: fleet.beats(name) > beats, 6, "it sends a heartbeat")


def replaced_a_second_after_the_timeout(fleet: Fleet, name: str, stopped: float) -> None:
    took = fleet.begun(fleet[name].state[3], stopped, 30)
    print(f"what was {name}'s is worked on again after {took:.3f} s")
    assert took <= fleet.timeout_sec + 1 + SLACK_SEC


@pytest.mark.parametrize("timeouts", [0.9, 3.0])
def test_a_worker_whose_event_loop_was_blocked_knows_at_the_first_look_that_it_owns_nothing(
    make_fleet: MakeFleet, timeouts: float
):
    """For longer than the lease: with nobody else's knowledge, or until all it had is others'."""
    fleet = make_fleet(QUICK)
    fleet.start("a", "b", "c")
    leader = fleet.leader()
    orphans = fleet[leader].state[3]
    fleet.tell(leader, "block", seconds=timeouts * fleet.timeout_sec)
    fleet.until(lambda: fleet[leader].said("said", "blocking"), 5, "it blocks")
    blocked_at = fleet[leader].said("said", "blocking")[0][1]
    if timeouts > 1:
        fleet[leader].cut = True
        assert fleet.begun(orphans, blocked_at, 20) <= fleet.takeover_sec
        fleet[leader].cut = False
    fleet.until(lambda: len(fleet[leader].said("looked")) == 2, 20, "it has looked")
    for _, t, who, seen in fleet[leader].said("looked"):
        assert t >= blocked_at + timeouts * fleet.timeout_sec
        assert seen == NOTHING, f"{who} saw it"
    fleet.until(lambda: fleet[leader].said("said", "unblocked"), 5, "the claim has ended")
    assert fleet.even(10) <= 1 + SLACK_SEC, "it is back by itself"
    assert fleet.work_goes_on(fleet.now(), 5)
    assert not fleet.judge().unfenced_overlaps

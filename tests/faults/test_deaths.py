"""SIGKILL: of a worker, of the leader, of two at once, of one in the middle of a fenced transaction."""

from __future__ import annotations

import pytest

from tests.faults.conftest import QUICK, MakeFleet
from tests.faults.fleet import SLACK_SEC

WORKERS = ("a", "b", "c", "d")


@pytest.mark.parametrize("ranks", [(3,), (0,), (0, 1)], ids=["a worker", "the leader", "the leader and the next in age"])
def test_what_killed_workers_owned_is_worked_on_again_after_the_timeout(make_fleet: MakeFleet, ranks: tuple[int, ...]):
    fleet = make_fleet(QUICK)
    fleet.start(*WORKERS)
    by_age = fleet.by_age()
    assert by_age[0] == fleet.leader()
    victims = [by_age[rank] for rank in ranks]
    orphans = [task for name in victims for task in fleet[name].state[3]]
    killed = fleet.kill(*victims)
    took = fleet.begun(orphans, killed, 20)
    # Each further one in age waits an interval longer before it takes the leadership over.
    assert took <= fleet.takeover_sec + (1 in ranks) * fleet.interval_sec
    fleet.even(5)


def test_a_dead_workers_last_commit_comes_before_the_takeover_which_waits_for_its_fence(make_fleet: MakeFleet):
    """Its COMMIT is on the way when it dies, and the server gets to it only when the others have taken over."""
    fleet = make_fleet(QUICK)
    fleet.start("a", "b", "c")
    victim = next(name for name in ("a", "b", "c") if name != fleet.leader())
    task, *others = sorted(fleet[victim].state[3])
    outlasts = fleet.timeout_sec + 2
    fleet.tell(victim, "last_words", task=task, seconds=outlasts)
    fleet.until(lambda: fleet[victim].said("said", "holding", task), 5, "the fence is held")
    (*_, epoch), held_since = fleet[victim].said("said", "holding", task)[0], fleet[victim].events[-1][1]
    killed = fleet.kill(victim)
    assert fleet.begun(others, killed, 20) <= fleet.takeover_sec, "the other tokens do not wait for the fence"
    fleet.begun([task], killed, 20)
    began = min(t for m in fleet.running() for _, t, *_ in m.said("begin", task, since=killed))
    assert held_since + outlasts <= began <= held_since + outlasts + 1 + SLACK_SEC
    last_of_victim, n = fleet.admin.execute(
        "SELECT max(epoch), max(n) FROM effect WHERE worker = %s AND task = %s", [victim, task]
    ).fetchone() or (None, None)
    assert last_of_victim == epoch
    ours = fleet[victim].said("commit", task)
    assert n == ours[-1][4] + 1 if ours else n == 1, "its last words were committed, though it never heard of it"

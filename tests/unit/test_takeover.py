"""When to take over, and when to rebalance."""

from __future__ import annotations

from uuid import uuid4

import pytest

from jobsync_async.core.distribution import RebalanceReason
from jobsync_async.core.lease import Beat, BeatWatch, Times
from jobsync_async.core.rows import HeartbeatAnswer
from jobsync_async.core.takeover import Pacing, Takeover

LEADER, NEXT, CROWD = (
    Beat("leader", uuid4(), 5),
    Beat("next", uuid4(), 7),
    Beat("crowd", uuid4(), 9),
)


USUAL = Times(15, 5)


def answer(*beats: Beat, rank: int = 0) -> HeartbeatAnswer:
    shown = dict.fromkeys(beats, USUAL)
    return HeartbeatAnswer(version=1, term=1, leader=LEADER.incarnation, rank=rank, beats=shown)


class Watched(BeatWatch):
    """A watch that reads every second, so that none of its readings is too old."""

    def see(self, *beats: Beat, since: float, until: float, times: Times = USUAL) -> None:
        while since <= until:
            self.observe(dict.fromkeys(beats, times), since)
            since += 1


def succession() -> tuple[Takeover, Watched]:
    watch = Watched()
    return Takeover(watch, step_sec=5), watch


def test_the_next_in_age_takes_over_when_the_leader_stood_still_for_the_timeout():
    succeed, watch = succession()
    watch.see(LEADER, since=100, until=114)
    assert succeed.due(LEADER.incarnation, answer(LEADER), 114.9) == (False, ())
    assert succeed.due(LEADER.incarnation, answer(LEADER), 115) == (True, (LEADER,))


@pytest.mark.parametrize("times", [Times(4, 1), Times(60, 20)])
def test_it_is_the_leaders_own_timeout_that_counts(times):
    succeed, watch = succession()
    watch.see(LEADER, since=100, until=99 + times.timeout_sec, times=times)
    due = 100 + times.timeout_sec
    assert succeed.due(LEADER.incarnation, answer(LEADER), due - 0.1) == (False, ())
    assert succeed.due(LEADER.incarnation, answer(LEADER), due) == (True, (LEADER,))


def test_who_has_not_read_for_long_does_not_take_over_but_reads_first():
    succeed, watch = succession()
    watch.see(LEADER, since=100, until=107)
    assert succeed.due(LEADER.incarnation, answer(LEADER), 115) == (False, ())
    assert succeed.due_at_latest(LEADER.incarnation, answer(LEADER), 115) == float("inf")


def test_each_further_one_waits_a_heartbeat_longer():
    succeed, watch = succession()
    watch.see(LEADER, since=100, until=120)
    assert succeed.due_at_latest(LEADER.incarnation, answer(LEADER, rank=2), 120) == 125
    assert not succeed.due(LEADER.incarnation, answer(LEADER, rank=2), 124.9)[0]


def test_the_one_after_the_next_takes_over_when_both_stood_still_for_the_timeout():
    succeed, watch = succession()
    both = answer(LEADER, NEXT, CROWD, rank=1)
    watch.see(LEADER, NEXT, CROWD, since=100, until=114)
    assert succeed.due(LEADER.incarnation, both, 114.9) == (False, ())
    assert succeed.due(LEADER.incarnation, both, 115) == (True, (LEADER,))
    succeed, watch = succession()
    watch.see(LEADER, NEXT, CROWD, since=100, until=101)
    watch.see(LEADER, NEXT._replace(beat=8), CROWD, since=102, until=114)
    assert succeed.due_at_latest(LEADER.incarnation, both, 114) == 117
    watch.see(LEADER, NEXT._replace(beat=9), CROWD, since=108, until=114)
    assert succeed.due_at_latest(LEADER.incarnation, both, 114) == 120, (
        "a heartbeat later at the latest"
    )


def test_a_look_between_two_heartbeats_tells_of_a_leader_that_has_sent_one():
    succeed, watch = succession()
    watch.see(LEADER, since=100, until=102)
    watch.see(LEADER._replace(beat=6), since=103, until=112)
    assert succeed.due_at_latest(LEADER.incarnation, answer(LEADER), 112) == 118


def test_a_leader_whose_row_is_gone_is_replaced_at_once_and_nobody_expired():
    succeed, _ = succession()
    assert succeed.due(LEADER.incarnation, answer(), 100) == (True, ())
    later, _ = succession()
    assert later.due(LEADER.incarnation, answer(rank=1), 100) == (False, ())
    assert later.due(LEADER.incarnation, answer(rank=1), 105) == (True, ())


def test_a_leader_that_is_not_watched_yet_is_left_alone():
    succeed, _ = succession()
    assert succeed.due_at_latest(LEADER.incarnation, answer(LEADER), 100) == float("inf")


def test_what_is_urgent_waits_for_nothing():
    assert Pacing(0.1).due_at(RebalanceReason(("anna left",), urgent=True), 100) == 100


def test_joins_wait_for_more_of_them_but_not_for_ever():
    pacing = Pacing(0.1)
    due = pacing.due_at(RebalanceReason(("a joined",), urgent=False), 100)
    assert due == 100.1
    for number in range(20):
        now = 100 + 0.05 * number
        due = pacing.due_at(RebalanceReason((f"{number} joined",), urgent=False), now)
        assert due <= 100.5 + 1e-9
    assert due == 100.5
    pacing.done()
    assert pacing.due_at(RebalanceReason(("b joined",), urgent=False), 200) == 200.1


def test_looking_again_does_not_put_it_off():
    pacing = Pacing(0.1)
    need = RebalanceReason(("a joined",), urgent=False)
    assert pacing.due_at(need, 100) == pacing.due_at(need, 100.05) == 100.1


def rebalances(joins: list[float]) -> list[float]:
    """When there is a rebalance for workers that join at these moments."""
    pacing, due, done = Pacing(0.1), float("inf"), list[float]()
    for number, at in enumerate([*joins, float("inf")]):
        while due < at:
            done.append(due)
            pacing.done()
            due = float("inf")
        if at < float("inf"):
            due = pacing.due_at(RebalanceReason((f"{number} joined",), urgent=False), at)
    return done


def test_joins_that_follow_each_other_slowly_are_each_soon_counted_in():
    joins = [100.0 + 0.4 * number for number in range(20)]
    done = rebalances([90, 90.05, *joins])[-20:]
    assert [due - at for due, at in zip(done, joins, strict=True)] == pytest.approx([0.1] * 20)


def test_a_crowd_that_takes_seconds_to_come_in_makes_a_few_rebalances():
    assert len(rebalances([100 + 0.01 * number for number in range(50)])) == 1
    for seconds in (2, 5, 10):
        done = rebalances([100 + seconds * number / 50 for number in range(50)])
        assert len(done) <= 5
        assert done[0] <= 100.5 + 1e-9
        assert done[-1] <= 100 + seconds + 4 + 1e-9


def test_after_a_pause_a_join_is_counted_in_as_soon_as_ever():
    crowd = [100 + 0.1 * number for number in range(50)]
    assert rebalances([*crowd, 120, 125])[-2:] == [120.1, 125.1]

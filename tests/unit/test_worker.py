"""What a worker does by its own clock, whoever else has not come round to it."""

from __future__ import annotations

from uuid import uuid4

import pytest

from jobsync_async import CoordinationConfig, NotOwner
from jobsync_async.core.lease import Beat, Times
from jobsync_async.core.rows import Announcement, HeartbeatAnswer, Snapshot, TokenRow
from jobsync_async.tasks.worker import Worker
from jobsync_async.work.holding import Holding

CONFIG = CoordinationConfig()  # a timeout of 15 s, and so a lease of 12


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def worker(clock: Clock) -> Worker:
    return Worker(CONFIG, "anna", Announcement(), clock)


def answer(
    *others: Beat, timeout_sec: float = 15, longest_wait: float | None = None
) -> HeartbeatAnswer:
    beats = dict.fromkeys(others, Times(15, 5))
    return HeartbeatAnswer(
        version=1,
        term=1,
        leader=None,
        rank=0,
        beats=beats,
        timeout_sec=timeout_sec,
        longest_wait=longest_wait,
    )


def reading(worker: Worker) -> Snapshot:
    row = TokenRow(token_id=7, epoch=3, version=1, revoking=False)
    return Snapshot(
        worker.identity.incarnation, -1, 1, 1, None, "active", settled=True, mine=[row], others=[]
    )


def test_a_reading_is_applied_only_while_the_lease_is_valid(worker, clock):
    worker.snapshot_read(reading(worker))
    assert not worker.ownership.known, "before the first heartbeat"
    worker.beat_answered(clock.now, answer(), watched_all=False)
    clock.now += 12
    worker.snapshot_read(reading(worker))
    assert not worker.ownership.known, (
        "after the end of the lease, whether anybody has noticed it or not"
    )
    worker.beat_answered(clock.now, answer(), watched_all=False)
    worker.snapshot_read(reading(worker))
    assert worker.owned_now() == {7}


def test_nothing_is_owned_from_the_moment_when_the_lease_is_over_whoever_has_noticed_it(
    worker, clock
):
    worker.beat_answered(clock.now, answer(), watched_all=False)
    worker.snapshot_read(reading(worker))
    clock.now += 11.9
    assert worker.owns(7)
    clock.now += 0.1
    assert 7 in worker.ownership.grants, "the task that forgets it has not come round to it"
    assert not worker.owns(7)
    assert worker.owned_now() == frozenset()


async def test_a_claim_is_begun_only_while_the_lease_is_valid(worker, clock):
    worker.home.settle()
    worker.beat_answered(clock.now, answer(), watched_all=False)
    worker.snapshot_read(reading(worker))
    async with Holding(worker, "task", "task", 7, None):
        pass
    clock.now += 12
    assert 7 in worker.ownership.grants, "the task that forgets it has not come round to it"
    with pytest.raises(NotOwner):
        async with Holding(worker, "task", "task", 7, None):
            pytest.fail("the lease is over")


def test_what_was_held_under_a_lease_that_is_over_is_lost_before_another_begins(worker, clock):
    """Also when nobody has noticed its end, as after the machine was suspended."""
    worker.beat_answered(clock.now, answer(), watched_all=False)
    worker.snapshot_read(reading(worker))
    clock.now += 13
    worker.beat_answered(clock.now, answer(), watched_all=False)
    assert worker.may_act()
    assert not worker.ownership.known
    assert worker.sync_wanted.is_set(), "what is held is read anew"


def test_a_lease_counts_from_before_the_heartbeat_and_by_the_timeout_that_it_left_in_the_row(
    worker, clock
):
    sent_at = clock.now
    clock.now += 2
    worker.beat_answered(sent_at, answer(), watched_all=False)
    assert worker.lease.deadline == sent_at + 12
    worker.beat_answered(clock.now, answer(timeout_sec=5), watched_all=False)
    assert worker.lease.deadline == clock.now + 4


def test_the_last_bound_that_a_heartbeat_told_of_is_known(worker, clock):
    for bound in (15.0, 60.0, 30.0):
        worker.beat_answered(clock.now, answer(longest_wait=bound), watched_all=False)
        assert worker.bound == bound


@pytest.mark.parametrize("interval", [0.1, 0.3, 0.7, 1, 3, 5, 6])
def test_who_is_neither_leader_nor_next_in_age_looks_only_where_its_own_heartbeats_are_too_rare(
    interval,
):
    clock = Clock()
    worker = Worker(
        CoordinationConfig(heartbeat_interval_sec=interval), "anna", Announcement(), clock
    )
    first = Beat("leader", uuid4(), 1)

    def heard(leader: Beat, times: Times) -> None:
        shown = HeartbeatAnswer(
            version=1, term=1, leader=leader.incarnation, rank=5, beats={leader: times}
        )
        worker.beat_answered(clock.now, shown, watched_all=False)

    heard(first, Times(15, interval))
    assert worker.next_beat_reading() == float("inf"), (
        "with the same times nothing more is read than ever"
    )
    heard(first._replace(incarnation=uuid4()), Times(0.12, 0.03))
    assert worker.next_beat_reading() == pytest.approx(clock.now + 0.8 * 0.075)

"""Lease arithmetic; time is an argument."""

from __future__ import annotations

from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobsync_async.core.lease import Backoff, Beat, Lease, Watch, lease_sec

ANNA, BERTA = Beat("anna", uuid4(), 1), Beat("berta", uuid4(), 1)


def test_a_lease_is_a_fifth_shorter_than_the_timeout():
    assert lease_sec(15) == pytest.approx(12)


@given(st.floats(0.5, 1000), st.floats(0, 0.1))
def test_a_lease_is_over_before_anybody_may_take_over_whatever_the_clocks_rates(timeout, error):
    assert lease_sec(timeout) * (1 + error) < timeout * (1 - error)


def test_a_lease_counts_from_the_sending_and_ends_by_the_clock():
    lease = Lease(12)
    assert not lease.valid(0)
    lease.extend(100)
    assert lease.valid(111.999)
    assert not lease.valid(112)
    assert lease.remaining(110) == 2
    assert lease.remaining(200) == 0


def test_an_older_heartbeat_acknowledged_late_takes_nothing_back():
    lease = Lease(12)
    lease.extend(100)
    lease.extend(90)
    assert lease.deadline == 112


def test_an_ended_lease_is_over_until_the_next_heartbeat():
    lease = Lease(12)
    lease.extend(100)
    lease.end()
    assert not lease.valid(100)


def watch() -> Watch:
    return Watch(timeout_sec=15, gap_sec=10)


def test_a_beat_that_stands_still_is_stalled_after_the_timeout_of_observation():
    seen = watch()
    for now in (100, 105, 110):
        seen.observe([ANNA, BERTA._replace(beat=now)], now)
    assert seen.stalled(114.9) == []
    assert seen.stalled(115) == [ANNA]
    assert seen.next_due() == 115
    assert seen.stalled_for(ANNA, 107) == 7


def test_a_beat_that_moves_begins_anew():
    seen = watch()
    seen.observe([ANNA], 100)
    seen.observe([ANNA._replace(beat=2)], 108)
    assert seen.since(ANNA) is None
    assert seen.stalled(122) == []


def test_another_incarnation_under_the_name_begins_anew():
    seen = watch()
    seen.observe([ANNA], 100)
    seen.observe([ANNA._replace(incarnation=uuid4())], 108)
    assert seen.next_due() == 123


def test_a_gap_in_the_watchers_own_reading_begins_anew_for_all():
    seen = watch()
    seen.observe([ANNA], 100)
    seen.observe([ANNA], 110.5)
    assert seen.stalled(120) == []
    assert seen.stalled(125.5) == [ANNA]


def test_forgetting_begins_anew():
    seen = watch()
    seen.observe([ANNA], 100)
    seen.forget()
    assert seen.next_due() == float("inf")
    seen.observe([ANNA], 105)
    assert seen.next_due() == 120


def test_who_is_not_shown_any_more_is_not_watched():
    seen = watch()
    seen.observe([ANNA, BERTA], 100)
    seen.observe([BERTA], 105)
    assert seen.stalled(200) == [BERTA]


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_waits_grow_within_bounds(failures, chance):
    backoff = Backoff(first_sec=0.1, most_sec=5)
    assert 0.05 <= backoff.wait_sec(failures, chance) <= 5
    assert backoff.wait_sec(failures + 1, chance) >= backoff.wait_sec(failures, chance)

"""Lease arithmetic; time is an argument."""

from __future__ import annotations

from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobsync_async.core.lease import Backoff, Beat, BeatWatch, Lease, Times, lease_sec

ANNA, BERTA = Beat("anna", uuid4(), 1), Beat("berta", uuid4(), 1)
USUAL = Times(15, 10 / 3)  # its gap is 10
SLOW, QUICK = Times(15, 5), Times(4, 1)  # their gaps are 7.5 and 2.5


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


def test_a_lease_is_no_longer_than_the_row_allows_that_its_heartbeat_left():
    lease = Lease(12)
    lease.extend(100, lease_sec(5))
    assert lease.deadline == 104
    lease.extend(101, lease_sec(60))
    assert lease.deadline == 113, "nor than this worker's own settings do"
    lease.extend(102, lease_sec(5))
    assert lease.deadline == 106, (
        "what an earlier heartbeat left in the row does not count any more"
    )


def test_a_beat_that_stands_still_is_stalled_after_the_timeout_of_observation():
    seen = BeatWatch()
    for now in (100, 105, 110):
        seen.observe({ANNA: USUAL, BERTA._replace(beat=now): USUAL}, now)
    assert seen.stalled(114.9) == []
    assert seen.stalled(115) == [ANNA]
    assert seen.next_due(110) == 115
    assert seen.stalled_for(ANNA, 107) == 7


def test_each_beat_is_watched_for_its_own_workers_timeout():
    seen = BeatWatch()
    for now in (100, 102, 104, 106, 108, 110, 112, 114):
        seen.observe({ANNA: SLOW, BERTA: QUICK}, now)
        assert seen.stalled(now) == ([] if now < 104 else [BERTA])
    assert seen.next_due(103) == 104
    assert seen.stalled(115) == [ANNA, BERTA]


def test_the_timeout_is_that_of_the_answer_which_showed_the_beat():
    heir = ANNA._replace(incarnation=uuid4(), beat=2)
    seen = BeatWatch()
    seen.observe({ANNA: QUICK}, 100)
    seen.observe({heir: SLOW}, 102)
    seen.observe({heir: SLOW}, 109)
    assert seen.stalled(116.9) == []
    seen.observe({heir: SLOW}, 116)
    assert seen.stalled(117) == [heir]


def test_a_beat_that_moves_begins_anew():
    seen = BeatWatch()
    seen.observe({ANNA: USUAL}, 100)
    seen.observe({ANNA._replace(beat=2): USUAL}, 108)
    assert seen.stalls_at(ANNA, 108) == float("inf")
    seen.observe({ANNA._replace(beat=2): USUAL}, 116)
    assert seen.stalled(122) == []


def test_another_incarnation_under_the_name_begins_anew():
    seen = BeatWatch()
    seen.observe({ANNA: USUAL}, 100)
    other = ANNA._replace(incarnation=uuid4())
    for now in (108, 114):
        seen.observe({other: USUAL}, now)
    assert seen.next_due(114) == 123


def test_a_gap_in_the_watchers_own_reading_begins_anew_for_those_whom_it_could_have_missed():
    seen = BeatWatch()
    seen.observe({ANNA: USUAL, BERTA: Times(30, 3)}, 100)
    seen.observe({ANNA: USUAL, BERTA: Times(30, 3)}, 110.5)
    seen.observe({ANNA: USUAL, BERTA: Times(30, 3)}, 120)
    assert seen.stalled(120) == []
    assert seen.stalled(125.5) == [ANNA]
    assert seen.stalls_at(BERTA, 120) == 130, "a gap is judged by the times of whom it hides"


def test_a_reading_that_is_older_than_the_gap_expires_nobody():
    seen = BeatWatch()
    for now in (100, 109):
        seen.observe({ANNA: USUAL}, now)
    assert seen.stalled(119) == [ANNA]
    assert seen.stalled(119.1) == []
    assert seen.next_due(119.1) == float("inf"), (
        "it reads first, and does not wait for a moment that is over"
    )


def test_readings_are_due_before_they_are_a_gap_and_no_sooner_than_heartbeats_where_all_have_the_same_times():  # noqa: E501
    seen = BeatWatch()
    assert seen.read_within_sec == float("inf")
    seen.observe({ANNA: SLOW, BERTA: QUICK}, 100)
    assert seen.read_within_sec == 2
    for interval in (0.1, 0.5, 3, 5, 6):
        seen.observe({ANNA: Times(15, interval)}, 200)
        assert interval <= seen.read_within_sec < seen._seen[ANNA].times.gap_sec


def test_forgetting_begins_anew():
    seen = BeatWatch()
    seen.observe({ANNA: USUAL}, 100)
    seen.forget()
    assert seen.next_due(100) == float("inf")
    seen.observe({ANNA: USUAL}, 105)
    seen.observe({ANNA: USUAL}, 112)
    assert seen.next_due(112) == 120


def test_who_is_not_shown_any_more_is_not_watched():
    seen = BeatWatch()
    seen.observe({ANNA: USUAL, BERTA: USUAL}, 100)
    for now in range(105, 200, 5):
        seen.observe({BERTA: USUAL}, now)
    assert seen.stalled(200) == [BERTA]


def test_of_a_row_that_says_nothing_the_worst_is_taken():
    assert Times.said(15, 5) == Times(15, 5)
    assert Times.said(15, None) == Times(15, 6), (
        "an older library's: the bound, and the longest interval that it allows"
    )
    seen = BeatWatch()
    for now in range(100, 1000, 100):
        seen.observe({ANNA: Times.said(None, None)}, now)
    assert seen.stalled(1e9) == [], "it is not known how long it may act"


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_waits_grow_within_bounds(failures, chance):
    backoff = Backoff(first_sec=0.1, most_sec=5)
    assert 0.05 <= backoff.wait_sec(failures, chance) <= 5
    assert backoff.wait_sec(failures + 1, chance) >= backoff.wait_sec(failures, chance)

"""On which reading a worker may stand, and how long it waits before it begins anew."""

from __future__ import annotations

import pytest

from jobsync_async import CoordinationConfig
from jobsync_async.core.server_history import (
    UNSAID_TIMEOUT_SEC,
    AdoptedHistory,
    OldLeasesWait,
    ServerReading,
)

READING = ServerReading(
    recorded="1/01/5/9", actual="1/01/5/9", generation=3, version=70, running_since="100.5"
)
HISTORY = AdoptedHistory("1/01/5/9", 3)


def test_a_newcomer_adopts_what_row_and_server_agree_on():
    assert READING.adoptable(None, -1) == HISTORY


@pytest.mark.parametrize(
    "other", [{"actual": "1/02/5/9"}, {"recorded": None}, {"recorded": None, "actual": None}]
)
def test_nobody_adopts_what_they_do_not_agree_on(other):
    assert READING._replace(**other).adoptable(None, -1) is None
    assert READING._replace(**other).adoptable(HISTORY, 70) is None


def test_what_is_known_is_adopted_again_while_it_is_not_older_than_what_was_seen():
    assert READING.adoptable(HISTORY, 70) == HISTORY
    assert READING.adoptable(HISTORY, 71) is None


def test_a_later_generation_is_adopted_whatever_its_version():
    assert READING._replace(generation=4, version=0).adoptable(HISTORY, 70) == AdoptedHistory(
        "1/01/5/9", 4
    )
    assert READING._replace(generation=4, recorded="2", actual="2").adoptable(
        HISTORY, 70
    ) == AdoptedHistory("2", 4)


def test_an_earlier_generation_is_not_gone_back_to():
    assert READING._replace(generation=2, version=1000).adoptable(HISTORY, 70) is None


def test_the_same_generation_of_another_server_is_not_the_same():
    assert READING._replace(recorded="2", actual="2", version=1000).adoptable(HISTORY, 70) is None


def test_the_wait_is_over_a_timeout_after_the_first_look_at_the_same_ground():
    waiting = OldLeasesWait(15)
    assert waiting.observe(READING, 100)
    assert not waiting.observe(READING._replace(version=71), 108)
    assert waiting.remaining(114) == 1
    assert waiting.remaining(115) == 0


@pytest.mark.parametrize(
    "other",
    [
        {"generation": 4},
        {"recorded": "2"},
        {"actual": "2"},
        {"running_since": "100.6"},
        {"longest_wait": 9.0},
    ],
    ids=lambda other: next(iter(other)),
)
def test_the_wait_begins_anew_on_another_ground(other):
    waiting = OldLeasesWait(15)
    waiting.observe(READING, 100)
    assert waiting.observe(READING._replace(**other), 114)
    assert waiting.remaining(115) == 14


@pytest.mark.parametrize(
    ("own", "known", "recorded", "waits"),
    [
        (4, 9, 15, 15),
        (4, 15, 9, 15),
        (15, 9, 4, 15),
        (4, None, 20, 20),
        (4, 20, None, 20),
        (20, None, None, 20),
        (4, 9, None, 9),
    ],
)
def test_the_wait_is_the_greatest_of_the_own_timeout_and_of_the_bounds_that_are_known(
    own, known, recorded, waits
):
    waiting = OldLeasesWait(own, known)
    waiting.observe(READING._replace(longest_wait=recorded), 100)
    assert waiting.wait_sec == waiting.remaining(100) == waits


def test_where_no_bound_was_ever_written_the_workers_of_before_may_have_an_older_librarys_timeout():
    waiting = OldLeasesWait(4)
    waiting.observe(READING, 100)
    assert waiting.remaining(100) == UNSAID_TIMEOUT_SEC


@pytest.mark.parametrize("interval", [0.1, 0.3, 1, 4, 5, 6])
@pytest.mark.parametrize("timeout", [0.25, 1.5, 2.5, 10, 15, 60])
def test_no_outage_however_long_lets_a_watcher_expire_who_lives(interval, timeout):
    if 2 * interval > timeout * 0.8:
        return  # such a configuration is refused
    config = CoordinationConfig(heartbeat_interval_sec=interval, heartbeat_timeout_sec=timeout)
    seen_before_the_outage, back_after_the_watcher = interval, min(0.5, interval / 4)
    assert config.times.gap_sec > interval, "an answer that is a little late is no gap"
    assert seen_before_the_outage + config.times.gap_sec + back_after_the_watcher <= timeout + 1e-9

"""When in the leader's interval the others send their heartbeats."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobsync_async.core.heartbeat_schedule import (
    CROWD,
    LOOK,
    SETTLING,
    SUCCESSORS,
    LookSchedule,
    slot_of,
    wait_for_next,
)

INTERVAL_SEC = 5.0
TIMER_LATE_SEC = 1e-6
"""The least that a timer is late, for none is ever early: so sums of floats do not carry a beat
over the edge of its place."""
chances = st.floats(0, 1, exclude_max=True)
ranks = st.integers(0, 3)


def beats(
    first: float, rank: int, chance: float, late_by: float = TIMER_LATE_SEC, set_by: float = 0.0
) -> Iterator[float]:
    """Moments of a worker's beats, where the leader's are at whole intervals; `late_by` is what
    each timer adds, `set_by` how wrong the server's clock makes the leader's age once."""
    moment = first
    while True:
        yield moment
        age = moment % INTERVAL_SEC + set_by
        set_by = 0.0
        moment += wait_for_next(INTERVAL_SEC, age, rank=rank, chance=chance) + late_by


def after_the_leaders(moment: float) -> float:
    """How long after the nearest of the leader's beats, as a fraction of the interval."""
    return (moment / INTERVAL_SEC + 0.5) % 1 - 0.5


@given(st.floats(0, INTERVAL_SEC), chances, st.floats(TIMER_LATE_SEC, 0.01), ranks)
def test_from_any_moment_beats_come_to_their_place_and_stay_there(
    first: float, chance: float, late_by: float, rank: int
):
    aim, spread = slot_of(rank)
    for moment in islice(beats(first, rank, chance, late_by), 4, 500):
        assert abs(after_the_leaders(moment) - aim) <= spread + 0.01
        if rank >= len(SUCCESSORS):
            assert after_the_leaders(moment) < 0, "the leader's next beat sees it"
        else:
            assert after_the_leaders(moment) > 0, "it sees the leader's last beat"
    settled = [
        moment
        for moment in islice(beats(first, rank, chance, late_by), 9)
        if moment > SETTLING * INTERVAL_SEC
    ]
    assert abs(after_the_leaders(settled[0]) - aim) <= spread + 0.01


SOON_SEC = 0.21 * INTERVAL_SEC
AGES = {1: SUCCESSORS[0], 2: SUCCESSORS[1], 3: CROWD, 4: CROWD}


@pytest.mark.parametrize("dead", [{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}, {3, 4}])
def test_of_any_two_that_die_the_last_beats_were_soon_seen_by_whoever_replaces_them(dead: set[int]):
    """By age: the leader, the next two, and two of the crowd, each anywhere in its place."""
    places = {
        0: (0.0, 0.0),
        **{
            age: (place.aim - place.spread, place.aim + place.spread) for age, place in AGES.items()
        },
    }
    watcher = min(places.keys() - dead)
    looks = [0.0, LOOK] if watcher < 2 else [0.0]
    for mine in places[watcher]:
        for age in dead:
            for beat in places[age]:
                seen_after = min((mine + look - beat) % 1 for look in looks)
                assert seen_after * INTERVAL_SEC <= SOON_SEC, f"{watcher} sees {age}"


@given(st.floats() | st.none(), chances, ranks)
def test_whatever_the_clocks_say_a_beat_is_never_later_than_an_interval_and_never_hurries(
    age: float | None, chance: float, rank: int
):
    assert (
        INTERVAL_SEC / 2
        <= wait_for_next(INTERVAL_SEC, age, rank=rank, chance=chance)
        <= INTERVAL_SEC
    )


@given(st.floats(0, INTERVAL_SEC), chances, st.floats(-3600, 3600))
def test_a_clock_that_was_set_moves_beats_but_once(first: float, chance: float, set_by: float):
    settled = list(islice(beats(first, 3, chance), 5))[-1]
    for moment in islice(beats(settled % INTERVAL_SEC, 3, chance, set_by=set_by), 5, 20):
        assert abs(after_the_leaders(moment) - CROWD.aim) <= CROWD.spread + 0.01


def test_those_who_must_be_moved_are_spread():
    waits = {wait_for_next(INTERVAL_SEC, 2.0, rank=3, chance=n / 100) for n in range(100)}
    assert len(waits) == 100
    assert max(waits) - min(waits) > 0.02 * INTERVAL_SEC


def test_the_leader_and_whoever_sees_no_leader_keep_the_interval():
    assert wait_for_next(INTERVAL_SEC, None, rank=0, chance=0.5) == INTERVAL_SEC
    assert wait_for_next(INTERVAL_SEC, 8.0, rank=0, chance=0.5) == INTERVAL_SEC


def test_a_watcher_looks_once_after_each_beat_and_again_and_again_while_somebody_is_new():
    looks = LookSchedule(INTERVAL_SEC)
    looks.begin(100)
    assert looks.due_at == 100 + LOOK * INTERVAL_SEC
    looks.done(101)
    assert looks.due_at == float("inf")
    looks.somebody_is_new(103)
    looks.begin(105)
    times = 0
    while looks.due_at < 200:
        times += 1
        looks.done(looks.due_at)
    assert 3 < times < 20


def test_everybody_looks_in_time_for_the_shortest_timeout_that_it_watches():
    looks = LookSchedule(INTERVAL_SEC)
    assert looks.late_at(2) == float("inf"), "before the first beat nobody is watched"
    looks.begin(100)
    assert looks.late_at(2) == 102
    looks.done(102)
    assert looks.late_at(2) == 104, "also where a look has failed, and not at once again"

"""When in the leader's interval the others send their heartbeats."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from jobsync_async.core.phase import AFTER, BEFORE, LOOK, SPREAD, wait_for_next

INTERVAL_SEC = 5.0
TIMER_LATE_SEC = 1e-6
"""The least that a timer is late, for none is ever early: so sums of floats do not carry a beat over the edge of its place."""
chances = st.floats(0, 1, exclude_max=True)


def beats(
    first: float, successor: bool, chance: float, late_by: float = TIMER_LATE_SEC, set_by: float = 0.0
) -> Iterator[float]:
    """Moments of a worker's beats, where the leader's are at whole intervals; `late_by` is what each timer adds, `set_by` how
    wrong the server's clock makes the leader's age once."""
    moment = first
    while True:
        yield moment
        age = moment % INTERVAL_SEC + set_by
        set_by = 0.0
        moment += wait_for_next(INTERVAL_SEC, age, successor=successor, chance=chance) + late_by


def after_the_leaders(moment: float) -> float:
    """How long after the nearest of the leader's beats, as a fraction of the interval."""
    return (moment / INTERVAL_SEC + 0.5) % 1 - 0.5


@given(st.floats(0, INTERVAL_SEC), chances, st.floats(TIMER_LATE_SEC, 0.01), st.booleans())
def test_from_any_moment_beats_come_to_be_seen_soon_and_stay_so(first: float, chance: float, late_by: float, successor: bool):
    aim = AFTER if successor else -BEFORE
    for moment in islice(beats(first, successor, chance, late_by), 4, 500):
        assert abs(after_the_leaders(moment) - aim) <= SPREAD + 0.01
        if not successor:
            assert after_the_leaders(moment) < 0, "the leader's next beat sees it"
        else:
            assert after_the_leaders(moment) > 0, "it sees the leader's last beat"
            assert after_the_leaders(moment) < LOOK, "the leader's look sees it"


@given(st.floats() | st.none(), chances, st.booleans())
def test_whatever_the_clocks_say_a_beat_is_never_later_than_an_interval_and_never_hurries(
    age: float | None, chance: float, successor: bool
):
    assert INTERVAL_SEC / 2 <= wait_for_next(INTERVAL_SEC, age, successor=successor, chance=chance) <= INTERVAL_SEC


@given(st.floats(0, INTERVAL_SEC), chances, st.floats(-3600, 3600))
def test_a_clock_that_was_set_moves_beats_but_once(first: float, chance: float, set_by: float):
    settled = list(islice(beats(first, False, chance), 5))[-1]
    for moment in islice(beats(settled % INTERVAL_SEC, False, chance, set_by=set_by), 5, 20):
        assert abs(after_the_leaders(moment) + BEFORE) <= SPREAD + 0.01


def test_those_who_must_be_moved_are_spread():
    waits = {wait_for_next(INTERVAL_SEC, 2.0, successor=False, chance=n / 100) for n in range(100)}
    assert len(waits) == 100
    assert max(waits) - min(waits) > 0.02 * INTERVAL_SEC


def test_the_leader_and_whoever_sees_no_leader_keep_the_interval():
    assert wait_for_next(INTERVAL_SEC, None, successor=True, chance=0.5) == INTERVAL_SEC
    assert wait_for_next(INTERVAL_SEC, 8.0, successor=True, chance=0.5) == INTERVAL_SEC

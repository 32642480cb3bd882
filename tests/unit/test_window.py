"""How many pieces of a batch are begun before their handlers are called."""

from __future__ import annotations

import pytest

from jobsync_async.core.window import Window


def settled(window: Window, a_second: float, every_sec: float) -> int:
    """Its size after two seconds, in which handlers take so many and never wait."""
    for turn in range(int(2 / every_sec)):
        window.adapt(int(turn * every_sec * a_second), turn * every_sec, dry=False)
    return window.size


@pytest.mark.parametrize(
    ("a_second", "size"), [(0.5, 8), (79, 8), (500, 50), (5_000, 500), (80_000, 1_000)]
)
def test_as_many_are_begun_as_handlers_take_in_a_tenth_of_a_second(a_second, size):
    for every_sec in (0.002, 0.05):
        assert settled(Window(8), a_second, every_sec) == pytest.approx(size, rel=0.02, abs=1)


def test_handlers_that_become_slow_have_few_begun_for_them():
    window = Window(8)
    assert settled(window, 5_000, 0.01) == 500
    assert settled(window, 8, 0.5) == 8


def test_where_handlers_have_to_wait_many_times_as_many_are_begun():
    window, sizes = Window(1), []
    for turn in range(6):
        window.adapt(turn, turn, dry=True)
        sizes.append(window.size)
    assert sizes == [8, 64, 512, 1_000, 1_000, 1_000]


def test_where_handlers_have_to_wait_what_they_took_of_late_counts_if_that_is_more():
    window = Window(1)
    window.adapt(0, 0.0, dry=True)
    window.adapt(1, 0.002, dry=True)
    assert window.size == 64, "the one that was called first may be running still"
    window = Window(1)
    window.adapt(0, 0.0, dry=True)
    window.adapt(17, 0.002, dry=True)
    assert window.size == 800


def test_a_moment_of_many_does_not_make_it_large_at_once():
    window = Window(8)
    window.adapt(0, 0.0, dry=False)
    window.adapt(1_000, 0.001, dry=False)
    assert window.size == 64


def test_handlers_that_run_at_once_never_have_fewer():
    window = Window(2_000)
    window.adapt(0, 0.0, dry=False)
    window.adapt(10, 1.0, dry=False)
    assert window.size == 2_000
    window.adapt(20, 2.0, dry=True)
    assert window.size == 2_000

"""A connection whose answer stays away is given up, by the limit that counts at the time."""

from __future__ import annotations

import asyncio

import pytest

from jobsync_async.postgres.limits import Limited


class Timers:
    """A loop's timers, by hand."""

    def __init__(self) -> None:
        self.running: list[float] = []

    def call_later(self, seconds, callback):
        self.running.append(seconds)
        self.callback = callback
        return self

    def cancel(self) -> None:
        self.running.pop()


class Given(Limited):
    given_up = False

    def give_up(self) -> None:
        self.given_up = True


@pytest.fixture
def timers(monkeypatch) -> Timers:
    made = Timers()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: made)
    return made


def test_a_limit_in_another_takes_its_place_and_the_outer_one_begins_anew(timers):
    connection = Given()
    with connection.limited(3):
        assert timers.running == [3]
        with connection.limited(10):
            assert timers.running == [10]
        assert timers.running == [3]
        with pytest.raises(ZeroDivisionError), connection.limited(1):
            assert 1 / 0
        assert timers.running == [3]
        timers.callback()
    assert timers.running == []
    assert connection.given_up

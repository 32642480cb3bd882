"""When an outage is said to begin and to be over."""

from __future__ import annotations

import pytest

from jobsync_async.core.outages import OutageNews, Outages

ERROR = Exception("refused")


class Told:
    """Outages, with a clock that the test sets, and what they have said."""

    def __init__(self) -> None:
        self.outages = Outages("pulse")
        self.now = 100.0

    def fails(
        self, what: str, failures: int, kind: str = "away", took: float = 0.0
    ) -> list[tuple[str, bool]]:
        return short(
            self.outages.failed(what, kind, ERROR, failures, self.now - took, self.now)  # type: ignore[arg-type]
        )

    def works(self, what: str) -> list[tuple[str, bool]]:
        return short(self.outages.succeeded(what, self.now, self.now))

    def after(self, seconds: float) -> Told:
        self.now += seconds
        return self


def short(news: list[OutageNews]) -> list[tuple[str, bool]]:
    return [(one.what, one.over) for one in news]


@pytest.fixture
def told() -> Told:
    told = Told()
    assert told.works("pulse") == []
    return told.after(1)


def test_a_failure_that_is_over_with_the_next_try_is_no_outage(told):
    assert told.fails("pulse", 1) == []
    assert told.after(0.1).works("pulse") == []
    assert told.fails("listening", 1) == []
    assert told.works("listening") == told.after(0.1).works("pulse") == []


def test_an_outage_is_said_once_when_it_begins_and_once_when_it_is_over(told):
    assert told.fails("pulse", 1) == []
    assert told.after(0.1).fails("pulse", 2) == [("pulse", False)]
    for failures in range(3, 30):
        assert told.after(0.1).fails("pulse", failures) == []
    (over,) = told.outages.succeeded("pulse", told.now, told.now)
    assert (over.what, over.over, over.error, over.failures) == ("pulse", True, ERROR, 29)
    assert over.seconds == pytest.approx(2.8)
    assert told.after(1).works("pulse") == []


def test_a_heartbeat_that_waited_long_for_an_answer_is_an_outage_at_once(told):
    assert told.fails("pulse", 1, took=3.0) == [("pulse", False)]
    (over,) = told.outages.succeeded("pulse", told.now + 1, told.now + 2)
    assert over.seconds == pytest.approx(5.0)


def test_whatever_else_fails_while_heartbeats_fail_is_a_part_of_it(told):
    assert told.fails("listening", 1) == []
    assert told.fails("pulse", 1) == []
    assert told.fails("listening", 2) == []
    assert told.fails("pulse", 2) == [("pulse", False)]
    for failures in range(3, 10):
        assert told.after(0.5).fails("listening", failures) == []
        assert told.fails("a batch", failures) == []
    assert told.works("pulse") == [("pulse", True)]
    assert told.after(5).works("pulse") == []


def test_a_try_that_began_before_the_end_of_the_outage_is_a_part_of_it(told):
    told.fails("pulse", 2)
    told.after(5).works("pulse")
    assert told.after(1).fails("a batch", 4, took=4.5) == []
    assert told.after(1).works("pulse") == []
    assert told.fails("a batch", 5, took=0.5) == [], "this one is not, and may be one of its own"
    assert told.after(0.1).works("pulse") == [("a batch", False)]


def test_what_fails_while_heartbeats_are_answered_is_an_outage_of_its_own(told):
    assert told.fails("listening", 1) == []
    assert told.after(0.1).works("pulse") == [], "it may be over with the next try"
    assert told.after(0.1).fails("listening", 2) == [], "the server may have ended since"
    assert told.after(0.1).works("pulse") == [("listening", False)]
    assert told.after(0.1).fails("listening", 3) == []
    assert told.works("pulse") == told.works("a batch") == []
    assert told.after(4).works("listening") == [("listening", True)]


def test_one_that_is_under_way_goes_on_beside_one_of_all(told):
    told.fails("listening", 2)
    assert told.after(0.1).works("pulse") == [("listening", False)]
    told.after(1).fails("pulse", 1)
    assert told.fails("pulse", 2) == [("pulse", False)]
    assert told.after(5).works("pulse") == [("pulse", True)]
    assert told.works("listening") == [("listening", True)]


def test_a_refusal_is_an_outage_at_once(told):
    assert told.fails("pulse", 1, "refused") == [("pulse", False)]
    told.works("pulse")
    assert told.after(1).fails("a batch", 1, "refused") == []
    assert told.after(1).works("pulse") == [("a batch", False)]


def test_an_outage_of_another_kind_is_another_outage(told):
    told.fails("pulse", 2)
    assert told.after(1).fails("pulse", 3, "read-only") == [("pulse", True), ("pulse", False)]
    assert told.after(1).works("pulse") == [("pulse", True)]


def test_before_the_first_heartbeat_whatever_fails_is_an_outage_of_its_own():
    told = Told()
    assert told.fails("looking", 1) == []
    assert told.after(1).fails("looking", 2) == [("looking", False)]
    assert told.works("looking") == [("looking", True)]


def test_what_nobody_tries_any_more_is_not_said_to_work_again(told):
    told.fails("a batch", 2)
    assert told.after(1).works("pulse") == [("a batch", False)]
    told.outages.forget("a batch")
    assert told.works("a batch") == told.works("pulse") == []
    told.fails("a batch", 2)
    assert told.after(1).works("pulse") == [("a batch", False)]

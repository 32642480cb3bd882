"""What is told of batches, from plain values."""

from __future__ import annotations

import datetime as dt

import pytest

from jobsync_async import ConfigError
from jobsync_async.core.hashing import name_key
from jobsync_async.operations.batches import (
    described,
    grouped,
    rate_between,
    rate_over,
    refusal,
    sought,
    speed,
)
from jobsync_async.operations.pruning import check
from jobsync_async.postgres.batch_runs import FailedRow, RunRow, RunWorkerRow

NOON = dt.datetime(2026, 11, 23, 12, tzinfo=dt.timezone.utc)
TODAY = dt.date(2026, 11, 23)


def run(**values: object) -> RunRow:
    made = {
        "batch_key": b"k" * 32, "date": TODAY, "name": "nightly", "total": 100,
        "started_at": NOON, "started_by": "anna", "finished_at": None,
        "completed_before": 0, "completed": 40, "otherwise": 2, "failed": 1, "unnamed": 0,
        "all_runs": 1, "at": NOON,
    }  # fmt: skip
    return RunRow(**{**made, **values})


@pytest.mark.parametrize(
    ("values", "done", "remaining"),
    [
        ({}, 42, 58),
        ({"total": None}, 42, None),
        ({"completed": 99, "otherwise": 8}, 100, 0),  # found complete, and counted as completed too
        ({"completed": 0, "otherwise": -1}, 0, 100),
        ({"finished_at": NOON}, 100, 0),  # the rest was complete before
        ({"finished_at": NOON, "total": None}, 42, 0),
    ],
)
def test_done_and_remaining_add_up_to_the_total(values, done, remaining):
    seen = described(run(**values))
    assert (seen["done"], seen["remaining"]) == (done, remaining)


def test_the_rate_is_what_was_counted_in_the_time_between_by_the_servers_clock():
    later = run(completed=50, otherwise=4, at=NOON + dt.timedelta(seconds=4))
    assert rate_between(run(), later) == 3
    assert speed(later, 3.0) == {"rate_per_sec": 3, "left_sec": 46 / 3}
    assert rate_between(run(), run()) is None
    assert rate_between(later, run(at=later.at + dt.timedelta(seconds=1))) == 0  # retried


def test_the_time_left_is_not_known_without_a_rate_or_a_total_and_nothing_when_all_is_done():
    assert speed(run(), 0.0)["left_sec"] is None
    assert speed(run(), None)["left_sec"] is None
    assert speed(run(total=None), 3.0)["left_sec"] is None
    assert speed(run(finished_at=NOON), None)["left_sec"] == 0


def test_the_rate_of_a_finished_run_is_its_mean():
    assert rate_over(run(finished_at=NOON + dt.timedelta(seconds=10))) == 4
    assert rate_over(run(finished_at=NOON + dt.timedelta(seconds=10), completed_before=30)) == 1
    assert rate_over(run(finished_at=NOON)) is None


def test_failures_are_told_by_error_the_most_frequent_first_with_some_of_the_ids():
    failed = [
        FailedRow("z", "once", False),
        *(FailedRow(f"i{n}", "often", False) for n in (3, 1, 2)),
        FailedRow("p", "often", True),
    ]
    seen = grouped(failed, most_ids=2)
    assert (seen["failed"], seen["all_counted"]) == (5, True)
    assert [(one["error"], one["set_aside"], one["count"]) for one in seen["errors"]] == [
        ("often", False, 3),
        ("once", False, 1),
        ("often", True, 1),
    ]
    assert [(one["ids"], one["more_ids"]) for one in seen["errors"]] == [
        (["i1", "i2"], 1),
        (["z"], 0),
        (["p"], 0),
    ]
    assert not grouped(failed * 2000)["all_counted"]


@pytest.mark.parametrize("name", ["nightly", "12345678", "ABCDEF0123", "f" * 64])
def test_a_batch_is_sought_by_its_name_and_by_the_digits_of_a_key(name):
    wanted = sought(name)
    assert wanted.name_key == name_key(name)
    is_key = name != "nightly"
    assert (wanted.low <= wanted.high) == is_key
    if is_key:
        assert wanted.low.hex().startswith(name.lower())
        assert wanted.high.hex().startswith(name.lower())
        assert len(wanted.low) == len(wanted.high) == 32


GIVEN_UP = [FailedRow("i", "boom", False)]


def test_what_failed_is_tried_again_unless_nothing_did_or_a_worker_would_not_or_it_is_unclear():
    idle, busy = RunWorkerRow("anna", 1, 1, False), RunWorkerRow("berta", 1, 1, True)
    assert refusal(run(), GIVEN_UP, [idle]) is None
    assert refusal(run(), [], [idle]) == "nothing was given up in it"
    assert str(refusal(run(), GIVEN_UP, [idle, busy])).startswith("it is run now by berta")
    assert refusal(run(name=None, unnamed=1), GIVEN_UP, [idle]) is None
    assert "date=2026-11-23" in str(refusal(run(name=None, unnamed=2), GIVEN_UP, [idle]))


@pytest.mark.parametrize("days", [0, 1, 400])
def test_a_date_that_is_not_in_the_past_is_refused_by_name(days):
    before = TODAY + dt.timedelta(days=days)
    with pytest.raises(ConfigError, match=f"{before} is not in the past"):
        check(before, TODAY)
    check(TODAY - dt.timedelta(days=1), TODAY)

"""What the driver logs of our connections, and of others'."""

from __future__ import annotations

import logging

import pytest

from jobsync_async.postgres import connection  # noqa: F401 - from then on it is so
from jobsync_async.postgres.driver_logs import POOL_NAME

POOL = logging.getLogger("psycopg.pool")
TEXT = "error connecting in %r: %s"


def levels(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.levelname for record in caplog.records]


def test_what_the_driver_logs_of_ours_is_for_whoever_wants_details(caplog):
    caplog.set_level(logging.DEBUG, "jobsync_async")
    POOL.warning(TEXT, POOL_NAME, "refused")
    assert levels(caplog) == ["DEBUG"]
    caplog.clear()
    caplog.set_level(logging.INFO, "jobsync_async")
    POOL.warning(TEXT, POOL_NAME, "refused")
    assert levels(caplog) == []


def test_what_it_logs_of_others_is_left_alone(caplog):
    caplog.set_level(logging.INFO, "jobsync_async")
    POOL.warning(TEXT, "theirs", "refused")
    POOL.warning("something without arguments")
    POOL.warning("%(a)s", {"a": POOL_NAME})
    assert levels(caplog) == ["WARNING"] * 3

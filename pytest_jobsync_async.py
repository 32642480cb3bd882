"""The pytest plugin of `jobsync_async.testing`: fixtures for a real PostgreSQL and a cluster of
workers.

pytest imports this in every run wherever the library is installed, so it is a module of its own:
importing it loads neither the library nor PostgreSQL's driver. A fixture does when a test asks for
it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from jobsync_async import CoordinationConfig
    from jobsync_async.testing import Cluster

_DSN = "JOBSYNC_TEST_DSN"


@pytest.fixture(scope="session")
def jobsync_server() -> Iterator[str]:
    """A superuser's DSN of the server to test on: what `JOBSYNC_TEST_DSN` names, else an embedded
    one, once per session."""
    if given := os.environ.get(_DSN):
        yield given
        return
    from jobsync_async.embedded import EmbeddedPostgres  # noqa: PLC0415 - see above
    from jobsync_async.errors import ConfigError  # noqa: PLC0415

    postgres = EmbeddedPostgres()
    try:
        postgres.create()
    except ConfigError as error:
        pytest.fail(f"{error} in {_DSN}", pytrace=False)
    try:
        yield postgres.dsn
    finally:
        postgres.delete()


@pytest.fixture(scope="session")
def jobsync_template(jobsync_server: str) -> Iterator[str]:
    """The name of a database with the library's tables. Override it to copy another one, with your
    application's tables too."""
    from jobsync_async.testing.databases import with_tables  # noqa: PLC0415 - see above

    with with_tables(jobsync_server, "jobsync_template") as name:
        yield name


@pytest.fixture
def jobsync_dsn(jobsync_server: str, jobsync_template: str) -> Iterator[str]:
    """The DSN of a database for this test alone, copied from `jobsync_template`."""
    from jobsync_async.testing.databases import database  # noqa: PLC0415 - see above

    with database(jobsync_server, jobsync_template, "jobsync_test") as dsn:
        yield dsn


@pytest.fixture
def jobsync_config(jobsync_dsn: str) -> CoordinationConfig:
    """The settings of a small cluster whose dead are expired after a second and a half. Override it
    for others."""
    from jobsync_async import CoordinationConfig  # noqa: PLC0415 - see above

    return CoordinationConfig(
        dsn=jobsync_dsn, total_tokens=120, heartbeat_interval_sec=0.3, heartbeat_timeout_sec=1.5
    )


@pytest.fixture
def jobsync_cluster(jobsync_config: CoordinationConfig) -> Cluster:
    """A cluster to enter with ``async with``. It is entered by the test, so that any asynchronous
    pytest plugin will do."""
    from jobsync_async.testing import Cluster  # noqa: PLC0415 - see above

    return Cluster(jobsync_config)

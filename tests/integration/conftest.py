"""Fixtures for tests with jobs on the test's own event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jobsync_async import CoordinationConfig
from jobsync_async.testing import Cluster
from tests import predecessors
from tests.clusters import cluster


@pytest.fixture
def config(make_config) -> CoordinationConfig:
    """A small cluster with the default times."""
    return make_config(total_tokens=120)


@pytest.fixture
def quick(make_config) -> CoordinationConfig:
    """A small cluster that expires the dead after a second and a half."""
    return make_config(total_tokens=120, heartbeat_interval_sec=0.3, heartbeat_timeout_sec=1.5)


@pytest.fixture(scope="session")
def jobsync_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with jobsync 1.3.14; skips where that cannot be
    installed."""
    return predecessors.environment(tmp_path_factory.mktemp("jobsync") / "venv")


@pytest.fixture
async def jobs(config) -> AsyncIterator[Cluster]:
    async with cluster(config) as made:
        yield made


@pytest.fixture
async def quick_jobs(quick) -> AsyncIterator[Cluster]:
    async with cluster(quick) as made:
        yield made

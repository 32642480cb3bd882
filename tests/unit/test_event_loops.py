"""Which event loops a job runs on."""

from __future__ import annotations

import anyio
import pytest

from jobsync_async import CoordinationConfig, Job, UsageError


async def use(config: CoordinationConfig | None) -> None:
    async with Job("anna", config) as job:
        assert job.owns("x")


def test_it_runs_under_anyio_on_asyncio():
    anyio.run(use, None, backend="asyncio")


@pytest.mark.parametrize(
    "config", [None, CoordinationConfig(host="localhost")], ids=["standalone", "in a cluster"]
)
def test_on_trio_it_says_what_to_use(config):
    with pytest.raises(UsageError, match="on trio it cannot run; use asyncio"):
        anyio.run(use, config, backend="trio")

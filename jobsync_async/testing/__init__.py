"""A test kit for applications: real workers and a real PostgreSQL, in one event loop.

    async def test_work_goes_on_when_a_worker_is_cut_off(jobsync_cluster):
        async with jobsync_cluster as cluster:
            anna, berta = await cluster.start("anna", "berta")
            with partition(anna):
                await cluster.settled(workers=["berta"])

Installing the library brings the pytest fixtures ``jobsync_server``, ``jobsync_dsn``,
``jobsync_config`` and ``jobsync_cluster``, which work with pytest-asyncio and with anyio's plugin
alike.
"""

from jobsync_async.testing.cluster import Cluster, expire, partition
from jobsync_async.testing.detector import OwnerWatch, TwoOwners

__all__ = ["Cluster", "OwnerWatch", "TwoOwners", "expire", "partition"]

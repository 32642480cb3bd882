"""Several jobs on one event loop: the test kit that users get, with nothing between the jobs and
the server."""

from __future__ import annotations

from jobsync_async import CoordinationConfig
from jobsync_async.testing import Cluster


def cluster(config: CoordinationConfig) -> Cluster:
    """A cluster that is watched for two owners of a token, and stopped in the end."""
    return Cluster(config, partitionable=False)

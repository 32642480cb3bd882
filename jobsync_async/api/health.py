"""How this worker and its cluster are."""

from __future__ import annotations

from typing import Any

from jobsync_async.api.base import Started
from jobsync_async.metrics import Metrics
from jobsync_async.runtime.cluster_status import silent
from jobsync_async.types import NodeInfo


class Health(Started):
    """Questions about workers. What is asynchronous asks PostgreSQL, and raises
    StoreUnavailable."""

    def am_i_healthy(self) -> bool:
        """Whether this worker runs and its lease is valid, by the clock. No I/O."""
        return self._state == "running" and self._engine.failure is None and self._worker.may_act()

    @property
    def failure(self) -> BaseException | None:
        """What ended the job; None while it runs, before, or when it ended in order. No I/O."""
        return self._engine.failure

    def am_i_leader(self) -> bool:
        """Whether this worker leads, as far as it knows. No I/O."""
        return self._state == "running" and self._worker.may_act() and self._worker.leads

    @property
    def lease_remaining_sec(self) -> float:
        """For how many seconds this worker may still act without another heartbeat; 0 when its
        lease is over, infinity when standalone. No I/O."""
        return self._worker.lease.remaining(self._worker.clock())

    @property
    def metrics(self) -> Metrics:
        """Counters of this worker since it started. No I/O."""
        return self._worker.metrics

    async def get_active_nodes(self) -> list[NodeInfo]:
        """Workers whose last heartbeat is younger than their timeout, oldest worker first; none
        when standalone."""
        return [node for node in await self._nodes() if not silent(node)]

    async def get_dead_nodes(self) -> list[str]:
        """Names of workers without a heartbeat for their timeout that are still listed. By the
        server's clock, for people."""
        return [node.name for node in await self._nodes() if silent(node)]

    async def _nodes(self) -> list[NodeInfo]:
        self._require_started()
        return await self._engine.nodes()

    async def get_coordination_status(self) -> dict[str, Any]:
        """This worker and its cluster at a glance, for people and dashboards; a plain dictionary
        that JSON can hold."""
        self._require_started()
        own = {
            "node_name": self.node_name,
            "is_leader": self.am_i_leader(),
            "is_healthy": self.am_i_healthy(),
            "my_tokens": len(self._worker.owned_now()),
            "token_version": max(0, self._worker.version),
        }
        return own | await self._engine.describe()

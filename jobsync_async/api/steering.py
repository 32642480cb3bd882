"""Pausing the cluster: everybody keeps its tokens, and nothing new starts."""

from __future__ import annotations

from jobsync_async.api.base import Started, check_text
from jobsync_async.core.rows import Steered
from jobsync_async.types import Pause


class SteeringCalls(Started):
    """What steers all workers, from one of them."""

    @property
    def paused(self) -> Pause | None:
        """The pause that holds, as far as this worker knows: why, by whom, since when; None when
        there is none. No I/O."""
        return self._worker.paused

    async def pause(self, reason: str | None = None, *, by: str | None = None) -> bool:
        """Let no worker start anything new, until `resume`; returns when it holds here.

        Every worker keeps its tokens, and goes on with what it runs. `claim` raises, or waits if it
        was asked to; `can_claim_task` and `add_task` say no; `run_owned` and `run_batch` start no
        handler. The pause outlasts restarts, of workers and of the server. One that holds already
        stays as it is.

        Args:
            reason: for people.
            by: who asks for it; None for this worker.

        Returns whether there was none before.

        Raises StoreUnavailable; it may hold all the same. Workers of 0.1.0 know no pause.
        """
        self._require_started()
        for name, text in (("reason", reason), ("by", by)):
            if text is not None:
                check_text(name, text)
        by = self.node_name if by is None else by
        return await self._known(await self._engine.steering.pause(by, reason))

    async def resume(self, *, by: str | None = None) -> bool:
        """End a pause; returns when it is over here. Whether there was one. Raises
        StoreUnavailable."""
        self._require_started()
        if by is not None:
            check_text("by", by)
        by = self.node_name if by is None else by
        return await self._known(await self._engine.steering.resume(by))

    async def _known(self, done: Steered) -> bool:
        """Return when this worker has read what was done; in an outage, after its timeout."""
        worker = self._worker
        if done.changed:
            worker.hinted = max(worker.hinted, done.version)
            worker.sync_wanted.set()
            await worker.until(
                lambda: worker.ended or worker.version >= done.version,
                worker.config.heartbeat_timeout_sec,
            )
        return done.changed

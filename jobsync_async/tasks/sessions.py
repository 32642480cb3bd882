"""The sessions task, for ``failover="session"`` alone: expires a worker whose session is gone and
does not come back.

The leader and the next in age look, several times a second. All others, and all who may not act,
wait for their turn.
"""

from __future__ import annotations

import asyncio

from jobsync_async.core.session_loss import SessionWatch
from jobsync_async.errors import StoreError
from jobsync_async.host.logs import WorkerLog
from jobsync_async.postgres.deaths import Deaths
from jobsync_async.postgres.sessions import Sessions
from jobsync_async.tasks.outages import SESSIONS
from jobsync_async.tasks.worker import Worker

# A worker that lives connects again within a fraction of the grace.
_GRACE_SEC = 1.0
_LOOK_SEC = 0.3
_TURN_SEC = 1.0


class SessionMonitor:
    """The task's state. `run` is the task."""

    def __init__(self, worker: Worker, sessions: Sessions, deaths: Deaths) -> None:
        self._worker = worker
        self._log = WorkerLog(__name__, worker.identity.name)
        self._sessions = sessions
        self._deaths = deaths
        self._watch = SessionWatch(_GRACE_SEC, gap_sec=_GRACE_SEC)

    async def run(self) -> None:
        """Watch while it is this worker's turn, for ever."""
        worker, watch = self._worker, self._watch
        self._sessions.tell_loss_to(worker.beat_wanted.set)
        failures = 0
        while True:
            wait_sec = _TURN_SEC
            if worker.wants_all_beats() and worker.may_act():
                try:
                    await self._read_locks()
                    if failures:
                        failures = 0
                        worker.outages.succeeded(SESSIONS)
                    wait_sec = max(0.01, min(_LOOK_SEC, watch.next_due() - worker.clock()))
                except StoreError as error:
                    failures += 1
                    watch.forget()
                    wait_sec = worker.outages.wait_after(SESSIONS, error, failures, 0.5)
            else:
                watch.forget()
            worker.metrics.sessions_watched = watch.watched
            await asyncio.sleep(wait_sec)

    async def _read_locks(self) -> None:
        worker, watch = self._worker, self._watch
        reading = await self._sessions.read()
        now = worker.clock()
        watch.observe(reading, now)
        gone = [
            session
            for session in watch.gone(now)
            if session.beat.incarnation != worker.identity.incarnation
        ]
        if not gone:
            return
        # What it had sent may still be under way; and if it lives after all, it does not go on as
        # if nothing had happened.
        await self._deaths.end_sessions([session.session_tag for session in gone])
        expired = await self._sessions.expire(reading.watcher, gone)
        worker.metrics.sessions_expired += len(expired)
        worker.metrics.nodes_expired += len(expired)
        for name in expired:
            self._log.warning("expired %s, whose session is gone", name, expired=name)

"""The forgetting task: while this worker leads, old rows of the history go, a few at a time.

It has a connection of its own, and no other task waits for it.
"""

from __future__ import annotations

import asyncio
import logging

from jobsync_async.errors import SchemaError, StoreError
from jobsync_async.host.logs import WorkerLog
from jobsync_async.postgres.history import HistoryStatements
from jobsync_async.tasks.worker import Worker

# A portion takes the server some milliseconds.
_MOST_ROWS = 500
_NEXT_PORTION_SEC = 1.0
_LOOK_SEC = 600.0
# Whoever does not lead looks that soon whether it does by now.
_TURN_SEC = 60.0


async def forget_old(worker: Worker, history: HistoryStatements) -> None:
    """Delete what is older than ``keep_history_days``, for ever. Returns at once where all is
    kept."""
    days = worker.config.keep_history_days
    if days is None:
        return
    log = WorkerLog(__name__, worker.identity.name)
    while True:
        wait_sec = _TURN_SEC
        if worker.leads and worker.may_act():
            wait_sec = _LOOK_SEC
            try:
                if max(await history.forget(_MOST_ROWS, days=days)) >= _MOST_ROWS:
                    wait_sec = _NEXT_PORTION_SEC
            except StoreError as error:
                # It has time; but rights that are missing are somebody's to grant.
                level = logging.WARNING if isinstance(error, SchemaError) else logging.DEBUG
                log.log(level, "old rows of the history are not deleted now: %s", error)
        await asyncio.sleep(wait_sec)

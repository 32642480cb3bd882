"""What a worker says of outages: two lines for each, whoever notices it first. Each failure is a
line at DEBUG."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from jobsync_async.core.outages import OutageNews, Outages
from jobsync_async.errors import SchemaError, StoreError
from jobsync_async.host.logs import WorkerLog
from jobsync_async.postgres.driver_errors import VersionRefused, kind_of
from jobsync_async.postgres.statement_context import ServerChanged

if TYPE_CHECKING:
    from jobsync_async.tasks.worker import Worker

HEARTBEAT = "heartbeat"
FOLLOWING = "following changes"
LEADING = "leading"
DEATHS = "reporting deaths"
SESSIONS = "watching sessions"
PREDECESSOR = "looking for workers of jobsync"
BATCH = "recording a batch"

_MEANING = {
    FOLLOWING: "its tokens stay, and none comes or goes",
    LEADING: "no tokens are given out or moved",
    DEATHS: "a dead worker of this host keeps its tokens until its timeout",
    SESSIONS: "deaths are noticed by silence alone",
    PREDECESSOR: "nobody knows whether one is back",
    BATCH: "the batch waits",
}


class OutageLog:
    """One worker's: told by its loops and batches."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._log = WorkerLog(__name__, worker.identity.name)
        self._outages = Outages(HEARTBEAT)

    def failed(
        self, what: str, error: StoreError, failures: int, began: float | None = None
    ) -> None:
        """A try of this failed, the last of so many in a row; it began then, None for now."""
        now = self._worker.clock()
        self._log.debug("%s failed (%d in a row): %s", what, failures, error, failures=failures)
        # That somebody else answers is no outage. What it is, the heartbeats find out and say.
        if not isinstance(error, ServerChanged):
            began = now if began is None else began
            self._say(self._outages.failed(what, kind_of(error), error, failures, began, now))

    def wait_after(
        self,
        what: str,
        error: StoreError,
        failures: int,
        chance: float,
        began: float | None = None,
    ) -> float:
        """The same, of what is tried again; seconds until then. Missing tables or rights are an
        outage like any other, for tools take and give them; they are waited for longer, since the
        server logs each try. A start raises them at once."""
        worker = self._worker
        refused = isinstance(error, SchemaError)
        if refused and (not worker.started or isinstance(error, VersionRefused)):
            raise error
        self.failed(what, error, failures, began)
        most_sec = worker.config.heartbeat_interval_sec if refused else worker.backoff.most_sec
        return replace(worker.backoff, most_sec=most_sec).wait_sec(failures, chance)

    def succeeded(self, what: str, began: float | None = None) -> None:
        """A try of this succeeded; it began then, None for now."""
        now = self._worker.clock()
        self._say(self._outages.succeeded(what, now if began is None else began, now))

    def forget(self, what: str) -> None:
        """Nobody tries this any more."""
        self._outages.forget(what)

    def _say(self, news: list[OutageNews]) -> None:
        for one in news:
            text, args = self._of_all(one) if one.what == HEARTBEAT else _of_one(one)
            self._log.log(
                logging.INFO if one.over else logging.WARNING,
                text,
                *args,
                outage=one.what,
                seconds=round(one.seconds, 3),
                failures=one.failures,
                lease_sec=round(self._lease_left(), 3),
            )

    def _lease_left(self) -> float:
        return self._worker.lease.remaining(self._worker.clock())

    def _of_all(self, one: OutageNews) -> tuple[str, tuple[object, ...]]:
        ownership, left = self._worker.ownership, self._lease_left()
        if one.over:
            lost = "its lease had ended, and it takes up its tokens again"
            held = "no token was lost" if ownership.known else lost
            return f"the outage is over after %.1f s: {held}", (one.seconds,)
        began = "an outage began %.1f s ago: %s; "
        if left > 0:
            text = began + "%d tokens are held until the lease ends in %.1f s"
            return text, (one.seconds, one.error, len(ownership.grants), left)
        return began + "nothing is held", (one.seconds, one.error)


def _of_one(one: OutageNews) -> tuple[str, tuple[object, ...]]:
    if one.over:
        return "%s works again after %.1f s", (one.what, one.seconds)
    text = "%s has failed for %.1f s, though heartbeats are answered: %s; %s"
    return text, (one.what, one.seconds, one.error, _MEANING[one.what])

"""What every statement of a worker is sent with: the history that it must be on, and how changes
are announced."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from jobsync_async.core.server_history import AdoptedHistory
from jobsync_async.errors import StoreUnavailable
from jobsync_async.postgres.names import Hung

logger = logging.getLogger(__name__)

# Once the queue of notifications is no fuller than this again, changes are announced again.
_ROOM = 0.5


class ServerChanged(StoreUnavailable):
    """The server is not the one that the cluster was begun on, or that this worker has adopted; or
    the cluster was begun anew. Nothing was written. The heartbeat task finds out which, and what to
    do."""


class StatementContext:
    """What the statements of one worker require of server and cluster row.

    Attributes:
        by: whose statements these are, for the history.
        history: what the worker has adopted; None requires only that server and row agree.
        channel: on which changes are announced, as the cluster row says.
        unreadable: the identity in the cluster's row, where it was made by readings that the server
            refuses everybody by now; else None.
        announces: False while the server's queue of notifications is full: then changes are made
            without being announced.
        hung: where a connection of this worker hung, which all its connections try last.
        on_change: told when a connection leads elsewhere.
    """

    def __init__(self, by: str = "") -> None:
        self.by: str = by
        self.history: AdoptedHistory | None = None
        self.channel: str = ""
        self.unreadable: str | None = None
        self.announces: bool = True
        self.hung: Hung = Hung()
        self.on_change: Callable[[], None] = lambda: None

    def values(self, server: str | None) -> dict[str, Any]:
        """The parameters of ``{sound}`` and ``{announces}`` on a connection to `server`, None where
        each statement has to look; and whose statement it is."""
        history = self.history
        return {
            "here": server,
            "adopted_server": None if history is None else history.server,
            "adopted_generation": None if history is None else history.generation,
            "channel": self.channel if self.announces else None,
            "by": self.by,
        }

    def leads_elsewhere(self, server: str | None) -> bool:
        """Whether a connection to `server` does not lead to the adopted one."""
        return (
            self.history is not None
            and server is not None
            and self.history.server.rpartition("/")[0] != server
        )

    def check(self, server: str | None) -> None:
        """A connection to `server` was opened, or is used: raises ServerChanged when that is not
        the adopted one."""
        if self.leads_elsewhere(server):
            self.on_change()
            raise self.changed()

    def queue_is_full(self) -> None:
        """Announce nothing from now on, until `learn_queue_usage` tells of room again."""
        self.announces = False
        logger.warning(
            "the server's queue of notifications is full, for some session listens and stays in a "
            "transaction: end it (the server's log names it); until then changes are not "
            "announced, but found by heartbeats and by polling",
            extra={"channel": self.channel},
        )

    def learn_queue_usage(self, usage: float | None) -> None:
        """How full the queue is, from 0 to 1, where that was asked."""
        if not self.announces and usage is not None and usage <= _ROOM:
            self.announces = True
            logger.info(
                "the server's queue of notifications has room again",
                extra={"channel": self.channel},
            )

    def changed(self) -> ServerChanged:
        """The error for a statement that found no sound row."""
        return ServerChanged(
            "the server is another one than before, or the cluster was begun anew; this worker "
            "finds out and resumes by itself"
        )

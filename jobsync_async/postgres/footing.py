"""The basis that a worker's statements stand on, shared by everything that sends one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jobsync_async.core.basis import Basis
from jobsync_async.errors import StoreUnavailable


class ServerChanged(StoreUnavailable):
    """The server is not the one that the cluster was begun on, or that this worker has adopted; or the cluster was begun anew.
    Nothing was written. The heartbeat task finds out which, and what to do."""


class Footing:
    """What the statements of one worker require of server and cluster row.

    Attributes:
        basis: what the worker has adopted; None requires only that server and row agree.
        on_change: told when a connection leads elsewhere.
    """

    def __init__(self) -> None:
        self.basis: Basis | None = None
        self.on_change: Callable[[], None] = lambda: None

    def values(self, server: str | None) -> dict[str, Any]:
        """The parameters of ``{sound}`` on a connection to `server`; None where each statement has to look."""
        basis = self.basis
        return {
            "here": server,
            "basis_server": None if basis is None else basis.server,
            "basis_generation": None if basis is None else basis.generation,
        }

    def check(self, server: str | None) -> None:
        """A connection to `server` was opened, or is used: raises ServerChanged when that is not the adopted one."""
        if self.basis is not None and server is not None and self.basis.server.rpartition("/")[0] != server:
            self.on_change()
            raise self.changed()

    def changed(self) -> ServerChanged:
        """The error for a statement that found no sound row."""
        return ServerChanged(
            "the server is another one than before, or the cluster was begun anew; this worker finds out and resumes by itself"
        )

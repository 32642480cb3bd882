"""What becomes of connections in a child made by fork: they are cut there, and their parent does
not notice.

A child has the sockets of its parent, and every byte that it writes to one of them arrives in its
parent's session: psycopg's `close` would end that session, and so would the end of the child's
event loop. So in the child each socket is first replaced by one that leads nowhere, and then the
connection is closed.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import psycopg

connections: WeakSet[psycopg.AsyncConnection[Any]] = WeakSet()
"""Every connection of this library that is open in this process."""


def _cut_in_child() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        for connection in tuple(connections):
            with suppress(psycopg.Error, OSError):  # it was closed, or broken, before
                os.dup2(nowhere, connection.fileno(), inheritable=False)
                connection.pgconn.finish()
    finally:
        os.close(nowhere)
    connections.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_cut_in_child)

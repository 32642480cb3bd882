"""What the driver and its pool log of our connections: details of failures, which this library
tells of itself. They are lines at DEBUG. Others' connections are left alone."""

from __future__ import annotations

import logging

POOL_NAME = "jobsync_async"


class _Details(logging.Filter):
    """Lets pass what is not about our connections, and the rest for whoever wants details.

    Args:
        kind: the class of our connections.
    """

    def __init__(self, kind: type) -> None:
        super().__init__()
        self._kind = kind

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG or not self._about_ours(record.args):
            return True
        record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
        return logging.getLogger("jobsync_async").isEnabledFor(logging.DEBUG)

    def _about_ours(self, args: object) -> bool:
        # A pool is told by its name. A transaction or a COPY has its connection.
        return isinstance(args, tuple) and any(
            arg == POOL_NAME
            if isinstance(arg, str)
            else isinstance(getattr(arg, "connection", arg), self._kind)
            for arg in args
        )


def take_for_details(kind: type) -> None:
    """From now on, what is logged of connections of this class is a detail."""
    details = _Details(kind)
    for name in ("psycopg", "psycopg.pool"):
        logging.getLogger(name).addFilter(details)

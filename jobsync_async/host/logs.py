"""A worker's log lines: each begins with the worker's name, and carries it as the field
``node``."""

from __future__ import annotations

import logging
from functools import partialmethod
from typing import Any


class WorkerLog:
    """Writes to the logger of a module, in the name of a worker: ``WorkerLog(__name__, node)``.

    Texts and arguments are as for a `logging.Logger`, but each text is a format, also one without
    arguments. Further keywords are fields of the record; docs/operations.md lists them.
    """

    def __init__(self, module: str, node: str) -> None:
        self._logger = logging.getLogger(module)
        self._node = node

    def log(
        self,
        level: int,
        text: str,
        /,
        *args: object,
        exc_info: BaseException | None = None,
        **fields: Any,
    ) -> None:
        """Write one line, with the traceback of `exc_info`."""
        text, extra = f"%s: {text}", {"node": self._node, **fields}
        self._logger.log(
            level, text, self._node, *args, exc_info=exc_info, extra=extra, stacklevel=2
        )

    # None of these has a frame of its own: so for all of them the caller is one level above `log`.
    debug = partialmethod(log, logging.DEBUG)
    info = partialmethod(log, logging.INFO)
    warning = partialmethod(log, logging.WARNING)
    error = partialmethod(log, logging.ERROR)

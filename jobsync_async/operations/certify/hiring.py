"""The janitor's process, as whoever certifies sees it."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import Process

from jobsync_async.errors import StoreUnavailable
from jobsync_async.host.orders import start_process
from jobsync_async.operations.certify.crew import CertifyFailed, lines_of
from jobsync_async.operations.certify.figures import Left
from jobsync_async.operations.certify.janitor import Duty, Janitor

_READY_WITHIN_SEC = 20.0
_CLEAN_WITHIN_SEC = 20.0


class Hired:
    """A janitor that is there before anything is made."""

    def __init__(self, duty: Duty, process: Process) -> None:
        self._duty = duty
        self._process = process
        self._lines: AsyncIterator[dict[str, Any]] = lines_of(process.stdout)
        self._earlier: dict[str, Any] = {}

    @classmethod
    async def start(cls, duty: Duty) -> Hired:
        """Let it take the lock, and remove what earlier runs left.

        Raises CertifyFailed when another run uses the tables, or StoreUnavailable.
        """
        module = f"{__package__}.janitor"
        process = await start_process(module, duty, stdout=subprocess.PIPE, stderr=None)
        hired = cls(duty, process)
        told = {"event": "failed", "error": "it does not answer"}
        with anyio.move_on_after(_READY_WITHIN_SEC):
            told = await anext(hired._lines, {"event": "failed", "error": "it ended by itself"})
        if told["event"] == "taken":
            raise CertifyFailed(
                f"the tables {duty.prefix}* are in use by {told['by']}: let that end, or give a "
                "prefix whose tables nobody uses"
            )
        if told["event"] == "failed":
            raise StoreUnavailable(f"the process that cleans up could not begin: {told['error']}")
        hired._earlier = {"removed": told["removed"], "others": tuple(told["others"])}
        return hired

    async def clean(self) -> Left:
        """Let it remove what this run made; what is left. Where it is gone, that is done here."""
        assert self._process.stdin is not None, "it was piped"
        told = None
        try:
            with anyio.move_on_after(_CLEAN_WITHIN_SEC):
                await self._process.stdin.aclose()
                told = await anext(self._lines, None)
        finally:
            await self._process.aclose()
        if told is None:
            left = await anyio.to_thread.run_sync(Janitor(self._duty).clean)
        else:
            left = Left(**{name: value for name, value in told.items() if name != "event"})
        return Left(left.tables, left.rows, left.sessions, **self._earlier)

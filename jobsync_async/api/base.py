"""What the topics of a job share."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable
from typing import Any, Literal

from jobsync_async.core import ids
from jobsync_async.core.hashing import task_text
from jobsync_async.core.texts import error_text
from jobsync_async.errors import ConfigError, UsageError
from jobsync_async.tasks.worker import Worker
from jobsync_async.work.engine import Engine

State = Literal["new", "starting", "running", "stopping", "stopped"]

_MAX_TEXT = 1_000
_MOST_BITS = 1_000  # Python refuses to write out numbers of several thousand digits


class Started:
    """A job that is started and stopped, and refuses what it cannot do before and after."""

    node_name: str
    _engine: Engine
    _worker: Worker
    _token_of: Callable[[Hashable], int]
    _state: State

    def _require_started(self) -> None:
        """Raise UsageError unless the job runs, and this is called where it does."""
        self._require_alive()
        self._worker.home.require()

    def _require_alive(self) -> None:
        """Raise UsageError unless the job runs. For what is local, and may be asked from anywhere
        in its process."""
        self._worker.home.require_own_process()
        failure = self._engine.failure
        if failure is not None:
            raise UsageError(
                f"the job has ended; what ended it: {failure}. Start it again, or make a new one"
            ) from failure
        if self._state == "new" or (self._state == "starting" and not self._worker.ownership.known):
            raise UsageError("the job is not started: use `async with Job(…)`, or await start()")
        if self._state == "stopped":
            raise UsageError("the job has stopped: start it again, or make a new one")

    def _ended(self, meaning: str) -> UsageError:
        """The error for a call that cannot go on because the job has ended: why it has, and what
        that means for the call."""
        failure = self._engine.failure
        if failure is None:
            return UsageError(f"the job ended because it was stopped: {meaning}")
        error = UsageError(f"the job ended, {meaning}; what ended it: {error_text(failure)}")
        error.__cause__ = failure
        return error

    def _token(self, task_id: Any) -> int:
        """The token of an id. Raises ConfigError for a value that cannot be one."""
        kind = type(task_id)
        plain = (
            (
                kind is str
                and task_id.isascii()
                and "\0" not in task_id
                and len(task_id) <= ids.MOST_CHARACTERS
            )
            or (kind is int and task_id.bit_length() <= _MOST_BITS)
        )  # fmt: skip
        if not plain:
            ids.id_text(task_id, self._engine.codec)
        return self._token_of(task_id)


def require_asyncio() -> None:
    """Raise UsageError where no asyncio event loop runs. The connections are psycopg's, which knows
    no other."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError(
            "this needs a running asyncio event loop, and here is none: on trio it cannot run; "
            "use asyncio.run(main()), or "
            'anyio.run(main) with its default backend="asyncio" (in tests: an anyio_backend '
            'fixture that returns "asyncio")'
        ) from None


def check_text(name: str, value: object) -> None:
    """Raise ConfigError unless it is a short string that PostgreSQL can store."""
    if not isinstance(value, str) or not value or len(value) > _MAX_TEXT:
        raise ConfigError(
            f"{name} must be a string of 1 to {_MAX_TEXT} characters; got {value!r:.100}"
        )
    task_text(value)  # refuses what PostgreSQL cannot store


def check_number(name: str, value: object) -> None:
    """Raise ConfigError unless it is a finite number of at least 0."""
    number = (
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    )
    if not number or value < 0:  # type: ignore[operator]
        raise ConfigError(f"{name} must be a number of at least 0; got {value!r}")

"""What the topics of a job share."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable
from typing import Literal

from jobsync_async.core.hashing import task_text
from jobsync_async.engine import Engine
from jobsync_async.errors import ConfigError, UsageError
from jobsync_async.tasks.worker import Worker

State = Literal["new", "starting", "running", "stopping", "stopped"]

_MAX_TEXT = 1_000


class Started:
    """A job that is started and stopped, and refuses what it cannot do before and after."""

    node_name: str
    _engine: Engine
    _worker: Worker
    _token_of: Callable[[Hashable], int]
    _state: State

    def _require_started(self) -> None:
        if self._engine.failure is not None:
            raise UsageError(
                f"the job has ended, make a new one; what ended it: {self._engine.failure}"
            ) from self._engine.failure
        if self._state in ("new", "starting"):
            raise UsageError("the job is not started: use `async with Job(…)`, or await start()")
        if self._state == "stopped":
            raise UsageError("the job has stopped; make a new one")


def require_asyncio() -> None:
    """Raise UsageError where no asyncio event loop runs. The connections are psycopg's, which knows no other."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError(
            "this needs a running asyncio event loop, and here is none: on trio it cannot run; use asyncio.run(main()), or "
            'anyio.run(main) with its default backend="asyncio" (in tests: an anyio_backend fixture that returns "asyncio")'
        ) from None


def check_text(name: str, value: object) -> None:
    """Raise ConfigError unless it is a short string that PostgreSQL can store."""
    if not isinstance(value, str) or not value or len(value) > _MAX_TEXT:
        raise ConfigError(f"{name} must be a string of 1 to {_MAX_TEXT} characters; got {value!r:.100}")
    task_text(value)  # refuses what PostgreSQL cannot store


def check_number(name: str, value: object) -> None:
    """Raise ConfigError unless it is a finite number of at least 0."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0:  # type: ignore[operator]
        raise ConfigError(f"{name} must be a number of at least 0; got {value!r}")

"""Pins as users give them: checked, hashed, and stored or refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Protocol

from jobsync_async.core.hashing import task_text
from jobsync_async.core.ids import id_text, require_storable
from jobsync_async.core.patterns import validate_patterns
from jobsync_async.core.pins import Pin
from jobsync_async.core.texts import storable
from jobsync_async.errors import ConfigError, LockConflict
from jobsync_async.host.logs import WorkerLog
from jobsync_async.types import LockInfo, TaskOrId, task_id_of

_MOST_DAYS = 1_000_000


class PinStore(Protocol):
    """Where pins are kept."""

    async def register(
        self,
        pins: Sequence[Pin],
        reasons: Sequence[str | None],
        created_by: str,
        expires_in_days: float | None,
    ) -> list[tuple[Pin, Pin]]:
        """Store pins; those that were refused, each with the pin that stays."""

    async def clear(self, created_by: str | None) -> int:
        """Delete the pins that `created_by` made, or all for None; how many there were."""

    async def list(self) -> list[LockInfo]:
        """The pins in force, oldest first."""


class PinRegistry:
    """The pins of one cluster, registered in the name of one worker."""

    def __init__(
        self,
        store: PinStore,
        token_of: Callable[[Hashable], int],
        creator: str,
        codec: str = "utf-8",
    ) -> None:
        self._store = store
        self._codec = codec
        self._token_of = token_of
        self._creator = creator
        self.clear = store.clear
        self.list = store.list

    async def register(
        self,
        locks: Iterable[tuple[TaskOrId, str | Sequence[str], str | None]],
        expires_in_days: float | None,
    ) -> list[LockConflict]:
        """Pin tasks, given with patterns and a reason; why some were refused, which is logged too.
        Raises ConfigError before anything is stored."""
        _check_days(expires_in_days)
        require_storable("whoever pins", self._creator, self._codec)
        pins: list[Pin] = []
        reasons: list[str | None] = []
        for lock in locks:
            if not isinstance(lock, tuple) or len(lock) != 3:
                raise ConfigError(
                    f"each lock must be a tuple (task_id, node_patterns, reason); got {lock!r:.200}"
                )
            task, patterns, reason = lock
            task_id = task_id_of(task)
            pin = Pin(
                id_text(task_id, self._codec), self._token_of(task_id), validate_patterns(patterns)
            )
            for pattern in pin.node_patterns:
                require_storable("a node pattern", pattern, self._codec)
            pins.append(pin)
            reasons.append(None if reason is None else storable(task_text(reason), self._codec))
        if not pins:
            return []
        refused = await self._store.register(pins, reasons, self._creator, expires_in_days)
        return [self._conflict(pin, stays) for pin, stays in refused]

    def _conflict(self, pin: Pin, stays: Pin) -> LockConflict:
        WorkerLog(__name__, self._creator).warning(
            "task %.200r is not pinned to %s: it shares token %d with task %.200r, whose pin to "
            "%s stays",
            pin.task_id,
            list(pin.node_patterns),
            pin.token_id,
            stays.task_id,
            list(stays.node_patterns),
            task_id=pin.task_id,
            token_id=pin.token_id,
            patterns=pin.node_patterns,
        )
        return LockConflict(pin.task_id, pin.token_id, stays.task_id, stays.node_patterns)


def _check_days(days: object) -> None:
    if days is None:
        return
    number = isinstance(days, (int, float)) and not isinstance(days, bool) and math.isfinite(days)
    if not number or not 0 < days <= _MOST_DAYS:  # type: ignore[operator]
        raise ConfigError(
            f"expires_in_days must be a number above 0 and up to {_MOST_DAYS:,}, or None; got "
            f"{days!r}"
        )

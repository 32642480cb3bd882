"""A job without a cluster: it owns every token, keeps its records in memory, and opens no connection."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jobsync_async.callbacks import Callback, RebalanceCallback
from jobsync_async.clock import lease_clock
from jobsync_async.config import CoordinationConfig
from jobsync_async.core.hashing import token_hasher
from jobsync_async.core.pins import Pin
from jobsync_async.core.rows import Announcement, Identity, Progress, Snapshot, TokenRow, Work
from jobsync_async.core.runs import Asked, Begun, Opened, Run
from jobsync_async.errors import UsageError
from jobsync_async.locks import Locks
from jobsync_async.tasks.worker import Worker
from jobsync_async.types import LockInfo, NodeInfo, Owner

_EPOCH = 1


class Standalone:
    """The `Engine` of a job that has no cluster."""

    fence_table = None
    codec = "utf-8"

    def __init__(self, name: str, announcement: Announcement, on_rebalance: Callback | None) -> None:
        self.worker: Worker = Worker(CoordinationConfig(), name, announcement, lease_clock)
        self.failure: BaseException | None = None
        self.work: MemoryWork = MemoryWork()
        self.locks: Locks = Locks(
            NoPins(), token_hasher(self.worker.config.total_tokens, self.worker.config.hash_function), name
        )
        self._callback = None if on_rebalance is None else RebalanceCallback(self.worker, on_rebalance)

    async def open(self) -> None:
        """There is nothing to connect to."""

    async def start(self, wait_sec: float) -> None:
        """Own everything, from now on and for ever."""
        worker = self.worker
        worker.lease.extend(float("inf"))
        tokens = [TokenRow(token, _EPOCH, 0, False) for token in range(worker.config.total_tokens)]
        me = worker.identity.incarnation
        worker.snapshot_read(Snapshot(me, -1, 0, 0, me, "active", True, tokens, ()))
        if self._callback is not None:
            await self._callback.first()

    async def stop(self) -> None:
        """End: claims that are open are cancelled, streams end."""
        self.worker.end()

    def hurry(self) -> None:
        """Nothing is waited for here."""

    def tell_failure_to(self, listener: Callable[[], object]) -> None:
        """Nothing fails here."""

    async def nodes(self) -> list[NodeInfo]:
        return []

    async def describe(self) -> dict[str, Any]:
        return {"coordination_enabled": False}

    async def owner_of(self, token: int) -> Owner:
        return Owner(self.worker.identity.name, self.worker.announcement.address, _EPOCH)

    async def set_draining(self, draining: bool) -> None:
        raise UsageError("a standalone job has nobody to hand its tokens to; give the Job a coordination_config")


class NoPins:
    """Where there is one worker, every task runs on it, whatever pins say."""

    async def register(
        self, pins: Sequence[Pin], reasons: Sequence[str | None], created_by: str, expires_in_days: float | None
    ) -> list[tuple[Pin, Pin]]:
        return []

    async def clear(self, created_by: str | None) -> int:
        return 0

    async def list(self) -> list[LockInfo]:
        return []


class MemoryWork:
    """The `Records` of one process, which end with it. Its date is what this machine's clock says in UTC."""

    def __init__(self) -> None:
        self._completed: dict[tuple[Run, str], dict[str, Any]] = {}
        self._open: dict[bytes, dict[dt.date, Opened]] = {}

    async def read_date(self) -> dt.date:
        return _now().date()

    async def record_claims(
        self, me: Identity, run: Run, works: Sequence[Work], *, all_or_none: bool = False
    ) -> dict[str, bool]:
        return {work.task_id: (run, work.task_id) not in self._completed for work in works}

    async def begin_tasks(
        self, me: Identity, run: Run, works: Sequence[Work], *, lost_limit: int, alone: bool = False
    ) -> dict[str, Begun]:
        done = {work.task_id: (run, work.task_id) in self._completed for work in works}
        return {text: Begun(not complete, complete) for text, complete in done.items()}

    async def record_completions(self, me: Identity, run: Run, works: Sequence[Work]) -> dict[str, bool]:
        return {work.task_id: self._complete(me, run, work) for work in works}

    async def write_audit(self, me: Identity, run: Run, works: Sequence[Work]) -> int:
        return sum(self._complete(me, run, work) for work in works)

    async def end_claims(self, run: Run, ended: Sequence[tuple[Work, str | None]]) -> int:
        return len(ended)  # there is nobody to tell

    async def forget_failures(self, run: Run, texts: Iterable[str]) -> None:
        """There are none."""

    async def read_progress(self, run: Run, texts: Iterable[str]) -> dict[str, Progress]:
        rows = ((text, self._completed.get((run, text))) for text in texts)
        return {text: Progress(row["node"], None) for text, row in rows if row is not None}

    async def read_set_aside(self, run: Run, texts: Iterable[str]) -> dict[str, Progress]:
        return {}  # an id that ended this process ended these records with it

    async def read_audit(self, date: dt.date) -> list[dict[str, Any]]:
        return [row for (run, _), row in self._completed.items() if run.date == date]

    async def begin_batch(self, me: Identity, key: bytes, asked: Asked, total: int) -> Opened:
        runs = self._open.setdefault(key, {})
        fresh = asked.date or asked.default_date or await self.read_date()
        chosen = asked.date or max(runs, default=fresh)
        before = runs.get(chosen) or Opened(chosen, _now(), me.name, fresh, _now())
        runs[chosen] = before._replace(fresh=fresh, at=_now())
        return runs[chosen]

    async def finish_batch(self, key: bytes, opened: Opened) -> None:
        runs = self._open.get(key, {})
        runs.pop(opened.date, None)
        if not runs:
            self._open.pop(key, None)

    async def find_dates(self, key: bytes, run: Run, tokens: Mapping[str, int]) -> set[tuple[str, dt.date]]:
        return set()

    def _complete(self, me: Identity, run: Run, work: Work) -> bool:
        if (run, work.task_id) in self._completed:
            return False
        self._completed[run, work.task_id] = {
            "date": run.date,
            "node": me.name,
            **work._asdict(),
            "completed_at": _now(),
            "batch": run.batch,
        }
        return True


def _now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)

"""A job without a cluster: it owns every token, keeps its records in memory, and opens no
connection."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from jobsync_async.config import CoordinationConfig
from jobsync_async.core.hashing import token_hasher
from jobsync_async.core.pins import Pin
from jobsync_async.core.rows import (
    Announcement,
    Identity,
    Snapshot,
    Steered,
    TaskProgress,
    TokenRow,
    Work,
)
from jobsync_async.core.runs import Asked, Begun, Complete, Opened, Parts, Place, Run
from jobsync_async.host.clock import lease_clock
from jobsync_async.host.logs import WorkerLog
from jobsync_async.tasks.worker import Worker
from jobsync_async.types import LockInfo, NodeInfo, Owner, Pause
from jobsync_async.work.callbacks import Callback, RebalanceCallback
from jobsync_async.work.pins import PinRegistry


class Standalone:
    """The `Engine` of a job that has no cluster."""

    fence_table = None
    codec = "utf-8"

    def __init__(
        self, name: str, announcement: Announcement, on_rebalance: Callback | None
    ) -> None:
        self.worker: Worker = Worker(CoordinationConfig(), name, announcement, lease_clock)
        self.failure: BaseException | None = None
        self.work: MemoryWork = MemoryWork()
        self.steering: OwnPauses = OwnPauses(self.worker)
        self.locks: PinRegistry = PinRegistry(
            NoPins(),
            token_hasher(self.worker.config.total_tokens, self.worker.config.hash_function),
            name,
        )
        self._callback = (
            None
            if on_rebalance is None
            else RebalanceCallback(self.worker, on_rebalance, self._fail)
        )
        self._on_failure: Callable[[], object] = lambda: None
        self._over = asyncio.Event()
        self._hurry = False
        self._epoch = 0
        self._log = WorkerLog(__name__, name)

    async def open(self) -> None:
        """There is nothing to connect to."""

    async def start(self, wait_sec: float) -> None:
        """Own everything, until it is drained or stopped."""
        self.worker.lease.extend(float("inf"))
        self._read("active")
        if (callback := self._callback) is not None:
            callback.begin()
            await self.worker.until(lambda: callback.begun)
        if self.failure is not None:
            raise self.failure
        tokens = self.worker.config.total_tokens
        self._log.info(
            "is standalone, for no coordination_config was given: it owns all %d tokens, and "
            "coordinates with nobody",
            tokens,
            tokens=tokens,
        )

    def _read(self, state: Literal["active", "draining"]) -> None:
        """Take in what tables would say: all tokens are here, or on their way to nobody."""
        worker, me = self.worker, self.worker.identity.incarnation
        going = state == "draining"
        self._epoch += not going  # what comes back is another stay
        held = worker.ownership.epoch
        tokens = range(worker.config.total_tokens)
        version = worker.version + 1
        rows = [
            TokenRow(token, held(token) or self._epoch, version, going)
            for token in tokens
            if not going or held(token)
        ]
        worker.snapshot_read(
            Snapshot(
                me, worker.ownership.version, version, 0, me, state, not going, rows, ()
            )._replace(pause=worker.paused)
        )

    def begin_to_stop(self, by: asyncio.Task[Any] | None) -> None:
        """End: claims that are open are cancelled, streams end."""
        self.worker.end()
        self._over.set()

    async def ended(self) -> None:
        await self._over.wait()
        if (callback := self._callback) is not None:
            await self.worker.until(
                lambda: callback.over or self._hurry, self.worker.config.handoff_timeout_sec
            )
            await callback.end()

    async def stop(self) -> None:
        self.begin_to_stop(None)
        await self.ended()

    def _fail(self, error: Exception) -> None:
        self.failure = error
        self.begin_to_stop(None)
        self._on_failure()

    def hurry(self) -> None:
        """Do not wait for `on_rebalance`, which is told of the end."""
        self._hurry = True
        self.worker.wake_waiters()

    def tell_failure_to(self, listener: Callable[[], object]) -> None:
        """Call `listener` when `on_rebalance` raises; at once if it has."""
        self._on_failure = listener
        if self.failure is not None:
            listener()

    async def nodes(self) -> list[NodeInfo]:
        return []

    async def describe(self) -> dict[str, Any]:
        return {"coordination_enabled": False}

    async def owner_of(self, token: int) -> Owner | None:
        worker = self.worker
        self._release()
        epoch = worker.ownership.epoch(token)
        return (
            None
            if epoch is None
            else Owner(worker.identity.name, worker.announcement.address, epoch)
        )

    async def set_draining(self, draining: bool) -> bool:
        """Own nothing any more, or everything again. Work under way goes on: nobody wants the
        tokens, and nobody waits."""
        self._read("draining" if draining else "active")
        self._release()
        return True

    def _release(self) -> None:
        """Let go of the tokens on which nobody works any more."""
        ownership = self.worker.ownership
        ownership.released([token for token, _ in ownership.releasable()])


class OwnPauses:
    """Pauses of one process."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def pause(self, by: str, reason: str | None = None) -> Steered:
        before = self._worker.paused
        self._worker.heed(before or Pause(reason, by, _now()))
        return Steered(before is None, self._worker.version, self._worker.paused)

    async def resume(self, by: str) -> Steered:
        before = self._worker.paused
        self._worker.heed(None)
        return Steered(before is not None, self._worker.version, before)


class NoPins:
    """Where there is one worker, every task runs on it, whatever pins say."""

    async def register(
        self,
        pins: Sequence[Pin],
        reasons: Sequence[str | None],
        created_by: str,
        expires_in_days: float | None,
    ) -> list[tuple[Pin, Pin]]:
        return []

    async def clear(self, created_by: str | None) -> int:
        return 0

    async def list(self) -> list[LockInfo]:
        return []


class MemoryWork:
    """The `WorkRecords` of one process, which end with it. Its date is what this machine's clock
    says in UTC."""

    def __init__(self) -> None:
        self._completed: dict[tuple[dt.date, bytes], dict[str, Any]] = {}
        self._open: dict[bytes, dict[dt.date, Opened]] = {}

    async def read_date(self) -> dt.date:
        return _now().date()

    async def record_claims(
        self, me: Identity, run: Run, works: Sequence[Work], *, all_or_none: bool = False
    ) -> dict[str, bool]:
        return {
            work.task_id: (run.date, run.key(work.task_id)) not in self._completed for work in works
        }

    async def begin_tasks(
        self, me: Identity, run: Run, works: Sequence[Work], *, lost_limit: int, most_lost: int
    ) -> dict[str, Begun]:
        done = {
            work.task_id: (run.date, run.key(work.task_id)) in self._completed for work in works
        }
        return {text: Begun(not complete, complete) for text, complete in done.items()}

    async def record_completions(
        self, me: Identity, run: Run, works: Sequence[Work]
    ) -> dict[str, bool]:
        return {work.task_id: self._complete(me, run, work) for work in works}

    async def write_audit(self, me: Identity, run: Run, works: Sequence[Work]) -> int:
        return sum(self._complete(me, run, work) for work in works)

    async def end_claims(
        self, me: Identity, run: Run, ended: Sequence[tuple[Work, str | None]]
    ) -> int:
        return len(ended)

    async def note_failure(self, run: Run, work: Work, error: str) -> None:
        """There is nobody to tell."""

    async def forget_failures(self, me: Identity, run: Run, texts: Iterable[str]) -> None:
        """There are none."""

    async def read_progress(self, run: Run, texts: Iterable[str]) -> dict[str, TaskProgress]:
        rows = ((text, self._completed.get((run.date, run.key(text)))) for text in texts)
        return {text: TaskProgress(row["node"], None) for text, row in rows if row is not None}

    async def read_set_aside(self, run: Run, texts: Iterable[str]) -> dict[str, TaskProgress]:
        return {}  # an id that ended this process ended these records with it

    async def read_audit(self, date: dt.date) -> list[dict[str, Any]]:
        return [row for (day, _), row in self._completed.items() if day == date]

    async def begin_batch(
        self, me: Identity, key: bytes, ids_key: bytes, asked: Asked, total: int | None
    ) -> Opened:
        runs = self._open.setdefault(key, {})
        fresh = asked.date or asked.default_date or await self.read_date()
        chosen = asked.date or max(runs, default=fresh)
        before = runs.get(chosen) or Opened(chosen, _now(), me.name, fresh, _now())
        runs[chosen] = before._replace(fresh=fresh, at=_now())
        return runs[chosen]

    async def find_complete(
        self, key: bytes, ids_key: bytes, asked: Asked, total: int
    ) -> Complete | None:
        return None  # these records are looked through in no time

    async def advance_batch(self, me: Identity, run: Run, place: Place, *, anyhow: bool) -> bool:
        return True

    async def finish_batch(self, run: Run, opened: Opened, ids_key: bytes) -> None:
        runs = self._open.get(run.batch_key, {})
        runs.pop(run.date, None)
        if not runs:
            self._open.pop(run.batch_key, None)

    async def read_parts(self, run: Run, opened: Opened, ids_key: bytes) -> Parts:
        return Parts(0, 0, finished=False)  # whoever waits here waits for itself

    async def find_dates(self, run: Run, tokens: Mapping[str, int]) -> set[tuple[str, dt.date]]:
        return set()

    async def find_strays(self, run: Run, place: Place, tokens: Collection[int]) -> set[str]:
        return set()

    def _complete(self, me: Identity, run: Run, work: Work) -> bool:
        if (run.date, run.key(work.task_id)) in self._completed:
            return False
        self._completed[run.date, run.key(work.task_id)] = {
            "date": run.date,
            "node": me.name,
            **work._asdict(),
            "completed_at": _now(),
            "batch": run.batch,
        }
        return True


def _now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)

"""`Job`: one worker of a cluster, as its user sees it."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import signal
from collections.abc import Iterable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import anyio
import psycopg
from typing_extensions import Self

from jobsync_async import claims
from jobsync_async.api.base import State, check_number, check_text, require_asyncio
from jobsync_async.api.health import Health
from jobsync_async.api.ownership import Ownership
from jobsync_async.api.pins import Pins
from jobsync_async.api.records import Records
from jobsync_async.body import Body
from jobsync_async.callbacks import Callback, call
from jobsync_async.claims import Claim, ClaimScope, Holding, OnRevoke
from jobsync_async.config import CoordinationConfig
from jobsync_async.coordinator import Coordinator
from jobsync_async.core.hashing import token_hasher
from jobsync_async.core.ids import id_text, items_of
from jobsync_async.core.runs import Asked, date_of
from jobsync_async.engine import Engine
from jobsync_async.errors import ConfigError, StoreError, UsageError
from jobsync_async.process import announce
from jobsync_async.signals import Signals
from jobsync_async.tasklog import TaskLog
from jobsync_async.types import BatchResult, Owner, TaskOrId, task_id_of

if TYPE_CHECKING:
    from jobsync_async.handlers import Handler
    from jobsync_async.owned import Ids
    from jobsync_async.progress import ProgressCallback

logger = logging.getLogger(__name__)


class Job(Ownership, Health, Records, Pins):
    """One worker. It joins on entering ``async with`` (or `start`) and hands everything on when leaving it (or `stop`).

    Args:
        node_name: this worker's name, unique in the cluster; pins match it.
        coordination_config: the cluster. None is standalone: everything is owned, nothing is connected to.
        date: the date that claims and completions are written under where a call gives none; None asks for the cluster's at
            each call, which the database's clock says in the configuration's ``time_zone``.
        wait_on_enter: how many seconds start waits at most for ``minimum_nodes`` and the first tokens.
        wait_on_exit: seconds to stay before leaving.
        lock_provider: called with this job before it joins, to register pins. A plain function may call `register_lock` and the
            like without ``await``: what it has called so is done when it returns, in order.
        clear_existing_locks: delete the pins that this worker's name has made before, ahead of `lock_provider`.
        on_rebalance: called on every change of the owned tokens, first when start ends, with a `RebalanceEvent` if it takes an
            argument. Revoked tokens are handed on when it returns. If it raises, the job leaves and raises that.
        weight: this worker's share relative to the others, 0 or more; 0 gets pinned tasks only.
        address: what `owner_of` tells others, to route requests here.
        handle_signals: in ``async with``, SIGTERM and SIGINT make this worker hand everything on, cancel the body, and leave;
            the program goes on after the block, with `stop_signal` set. A second signal makes it leave at once. A signal while
            it still joins ends the program, in order. Works in the main thread only.

    Attributes:
        node_name: as given.
        date: as given, None by default: it does not tell today's date.

    Callbacks may be plain or asynchronous; a plain one blocks the event loop while it runs.

    Raises:
        ConfigError: an argument cannot work.
    """

    def __init__(
        self,
        node_name: str,
        coordination_config: CoordinationConfig | None = None,
        *,
        date: dt.date | None = None,
        wait_on_enter: float = 120,
        wait_on_exit: float = 0,
        lock_provider: Callback | None = None,
        clear_existing_locks: bool = False,
        on_rebalance: Callback | None = None,
        weight: float = 1.0,
        address: str | None = None,
        handle_signals: bool = False,
    ) -> None:
        check_text("node_name", node_name)
        if coordination_config is not None and not isinstance(coordination_config, CoordinationConfig):
            kind = type(coordination_config).__name__  # not the value: a DSN holds a password
            raise ConfigError(
                f"coordination_config must be a CoordinationConfig, or None for a standalone job; got a {kind}. "
                "A DSN goes into CoordinationConfig(dsn=…)"
            )
        if address is not None:
            check_text("address", address)
        check_number("weight", weight)
        check_number("wait_on_enter", wait_on_enter)
        check_number("wait_on_exit", wait_on_exit)
        self.node_name = node_name
        self.date: dt.date | None = date_of(date)
        self._wait_on_enter = wait_on_enter
        self._wait_on_exit = wait_on_exit
        self._lock_provider = lock_provider
        self._clear_existing_locks = clear_existing_locks
        announcement = announce(float(weight), address)
        self._engine: Engine
        if coordination_config is None:
            from jobsync_async.standalone import Standalone  # noqa: PLC0415 - most workers have a cluster

            self._engine = Standalone(node_name, announcement, on_rebalance)
        else:
            self._engine = Coordinator(coordination_config, node_name, announcement, on_rebalance)
        self._worker = self._engine.worker
        self._token_of = token_hasher(self._worker.config.total_tokens, self._worker.config.hash_function)
        self._task_log = TaskLog(self._engine, self._token_of, self.date)
        self._body = Body()
        self._signals = Signals(self._told_to_leave, self._told_to_hurry) if handle_signals else None
        self._handing_on: asyncio.Task[None] | None = None
        self._state: State = "new"

    def __repr__(self) -> str:
        if self._state != "running":
            return f"<Job {self.node_name!r} {self._state}>"
        worker = self._worker
        tokens = f"{len(self.my_tokens)} of {worker.config.total_tokens} tokens"
        lease = f"lease for {worker.lease.remaining(worker.clock()):.1f} s"
        return f"<Job {self.node_name!r} running, {tokens}, {lease}{', leads' if self.am_i_leader() else ''}>"

    # -- starting and stopping ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Join the cluster; returns when the first tokens are here, after the first call of `on_rebalance`.

        Raises:
            UsageError: it was started before, or no asyncio event loop runs here.
            NodeNameTaken: another live worker has this name. ClusterNotFormed: `wait_on_enter` was too short.
            ConfigError: the settings disagree with the cluster, or the server is behind a pooler in transaction mode.
            StoreUnavailable, SchemaError: PostgreSQL cannot be reached, or its tables or rights are missing.
        """
        require_asyncio()
        if self._state != "new":
            raise UsageError("a Job can be started once; make a new one")
        self._state = "starting"
        try:
            await self._engine.open()
            await self._provide_locks()
            await self._engine.start(self._wait_on_enter)
        except BaseException:  # cleaned up, and raised again
            self._state = "stopped"
            await self._engine.stop()
            raise
        self._state = "running"

    async def _provide_locks(self) -> None:
        if self._lock_provider is None:
            return
        if self._clear_existing_locks:
            await self.clear_locks_by_creator(self.node_name)
        async with self._finishing():
            await call(self._lock_provider, self)

    async def stop(self) -> None:
        """Hand everything on and leave. Claims that are open may finish, up to ``handoff_timeout_sec``; if this call is
        cancelled, they are cancelled at once. Stopping again does nothing.

        Raises what ended the job before, if something did.
        """
        if self._state == "running":
            self._state = "stopping"
            if self._wait_on_exit and self._engine.failure is None and self.stop_signal is None:
                await asyncio.sleep(self._wait_on_exit)
        try:
            await self._engine.stop()
        finally:
            failed = self._state == "stopping" and self._engine.failure
            self._state = "stopped"
        if failed:
            raise failed

    async def __aenter__(self) -> Self:
        require_asyncio()
        if self._signals is not None:
            self._signals.install()
        self._body.enter()
        try:
            await self.start()
        except BaseException as error:  # cleaned up, and raised again
            interrupted = self._body.leave(error)
            if self._signals is not None:
                self._signals.restore()
                if interrupted:  # there is no block yet that could end, and nothing after it to go on with
                    raise self._signals.exit() from None
            raise
        self._engine.tell_failure_to(self._body.interrupt)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        interrupted = self._body.leave(error)
        not_written = None
        try:
            if self._handing_on is not None:
                self._handing_on.cancel()
                await asyncio.wait([self._handing_on])
            try:
                if error is None:
                    not_written = await self._write_last()
            finally:
                await self.stop()
        except Exception:  # whatever it is, an error of the body's own comes first
            if error is None or interrupted:
                raise  # what ended the job, in place of the cancellation that it caused
        finally:
            if self._signals is not None:
                self._signals.restore()
        if not_written is not None:
            raise not_written
        return interrupted  # here it was a signal that cancelled the body: the block has ended as it should

    # -- signals --------------------------------------------------------------------------------------------------------

    @property
    def stop_signal(self) -> signal.Signals | None:
        """The signal that made this worker leave, with ``handle_signals=True``; None if none did. No I/O."""
        return None if self._signals is None else self._signals.received

    def _told_to_leave(self) -> None:
        name, number = self.node_name, self.stop_signal
        assert number is not None, "that is why this is called"
        logger.info(
            "%s was told to end: it hands on and leaves; a second signal makes it leave at once",
            name,
            extra={"node": name, "signal": number.name},
        )
        if self._state == "running" and isinstance(self._engine, Coordinator):
            self._handing_on = asyncio.create_task(self._hand_on(), name=f"jobsync_async {name} hands on")
        else:
            self._body.interrupt()

    def _told_to_hurry(self) -> None:
        logger.warning("%s was told again: it leaves at once", self.node_name, extra={"node": self.node_name})
        self._engine.hurry()
        self._body.interrupt()

    async def _hand_on(self) -> None:
        """Let the work under way end while the body still runs, then cancel the body."""
        try:
            with anyio.move_on_after(self._worker.config.handoff_timeout_sec + 1):
                await self._engine.set_draining(True)
        except StoreError as error:  # leaving hands on what is left, or the lease runs out
            logger.info("%s could not hand on: %s", self.node_name, error, extra={"node": self.node_name})
        finally:
            self._body.interrupt()

    # -- beyond jobsync -------------------------------------------------------------------------------------------------

    def claim(self, task: TaskOrId) -> ClaimScope:
        """``async with job.claim(task) as claim``: the body runs while the task is this worker's, and alone in this worker.

        When somebody else in this worker works on the task, entering waits for its turn. When its token is revoked the body may
        finish, for up to ``handoff_timeout_sec``; nobody else gets the token before it has. When ownership is lost, the body is
        cancelled, and again after growing waits if it goes on. A token that `token_changes` has just told to be revoked can be
        claimed by the task that reads it, until it asks for the next change.

        Raises:
            NotOwner: on entering, when the task is not this worker's.
            OwnershipLost: on leaving, when it was not until the end.
            UsageError: on entering, when the scope was entered before, or by what works on the task already.
            ConfigError: the id cannot be one.
        """
        return ClaimScope(self._hold(task_id_of(task)))

    def _hold(self, task_id: Any, on_revoke: OnRevoke = "finish") -> Holding:
        self._require_started()
        text = id_text(task_id, self._engine.codec)
        return Holding(self._worker, task_id, text, self._token_of(task_id), self._engine.fence_table, on_revoke)

    async def fence(self, connection: psycopg.AsyncConnection[Any], claim: Claim | TaskOrId) -> None:
        """Make sure, inside your own transaction, that the claim holds until the commit: nobody can take the token before.

        One statement on `connection`. For other drivers see `Claim.fence_sql`.

        Args:
            claim: a claim; or a task or its id, for what is done without one, such as writing back what `token_changes`
                revokes: it holds as long as this worker has the token, also revoked, until that is acknowledged.

        Raises:
            OwnershipLost: it does not hold; let it pass, so that the transaction rolls back.
            NotOwner: the task of that id is not this worker's.
            UsageError: the connection is in autocommit and not in a transaction; or this is after a savepoint, and rolling back
                to that would undo the fence: fence first, in the outermost transaction.
        """
        if not isinstance(claim, Claim):
            self._require_started()
            task_id = task_id_of(claim)
            claim = claims.standing_claim(self._worker, task_id, self._token(task_id), self._engine.fence_table)
        await claims.fence(self._worker, connection, claim)

    async def run_owned(self, ids: Ids, handler: Handler, *, name: str = "default", refresh_sec: float = 5.0) -> NoReturn:
        """Run the handler once per owned id, cluster-wide, until the job ends or this call is cancelled.

        A handler starts when its id's token comes here. When the token is to go, it is cancelled once, and the next worker
        starts its own when the cleanup here has returned. Until then the claim is valid and its fence holds, for up to
        ``handoff_timeout_sec``; `Claim.leaving` says why. A plain function runs in a thread, which nothing can cancel: let it
        look at `Claim.leaving` now and then. A handler that raises starts again after growing waits; one that returns has ended
        until the token goes and comes back.

        Args:
            ids: the ids of the whole cluster: an iterable, or a callable (plain or async) that gives one and is called every
                `refresh_sec`. When that raises, it is logged and asked again, and what runs goes on.
            handler: a function that takes the `Claim`, async, or plain and run in a thread of its own.
            name: what this runs, the same at every worker that does. The ids on tokens of a worker that runs nothing of this
                name are served by nobody: that is logged, and ``jobsync-async status`` shows it.

        Raises:
            UsageError: the job has ended; what ended it is the cause.
            ConfigError: an id cannot be one.
        """
        from jobsync_async.handlers import check_handler, check_ids  # noqa: PLC0415 - many workers do without
        from jobsync_async.owned import OwnedRunner  # noqa: PLC0415

        self._require_started()
        check_handler(handler)
        check_number("refresh_sec", refresh_sec)
        codec = self._engine.codec
        if not callable(ids):
            check_ids(ids)
            ids = items_of(ids, self._token_of, codec)
        check_text("name", name)
        hold = partial(self._hold, on_revoke="cancel")
        await OwnedRunner(self._worker, hold, self._token_of, self._ended, ids, codec, handler, refresh_sec, name).run()

    async def run_batch(
        self,
        ids: Iterable[TaskOrId],
        handler: Handler,
        *,
        name: str | None = None,
        date: dt.date | None = None,
        concurrency: int = 8,
        attempts: int = 3,
        progress: ProgressCallback | None = None,
    ) -> BatchResult:
        """Complete every id once per date, together with all workers that run the same batch; returns when all are complete.

        Run again, it resumes: what is complete is not begun again, and what was given up is tried anew. An id at work on which
        `attempts` workers (two at least) have ended is set aside: it is in `failed` until ``jobsync-async release``.

        Args:
            ids: the ids of the whole cluster, the same at every worker.
            name: tells batches over the same ids apart; the same at every worker. Without one, a batch is told by its ids.
            date: the run's; None is that of the batch's unfinished run, else the job's, else the cluster's.
            handler: a function that takes the `Claim`, async, or plain and run in a thread of its own; it may be called again
                for an id if a worker dies or loses the token half-way, so make its effects repeatable, or commit them through
                `fence`. Each call is a task of its own, with the context variables of whoever calls this.
            concurrency: how many handlers run at once here.
            attempts: how often a handler fails here before the id is reported as failed (it raises, or it blocks the event loop
                until its lease is over), and how many workers an id may end before it is set aside.
            progress: called with a `BatchProgress`, plain or async: at the start, when something has changed, though not more
                than five times a second, and at the end. `jobsync_async.progress.RichProgress` is one that draws a bar. If it
                raises, so does this.

        Raises:
            UsageError: the job ended before the batch; what ended it is the cause.
            CoordinationError: open ids belong to workers that run this batch under another date, and will not do them.
            ConfigError: an id cannot be one, or two are equal and have different texts; or another argument cannot work.
        """
        from jobsync_async.batch import Batch  # noqa: PLC0415 - many workers do without
        from jobsync_async.handlers import check_handler, check_ids  # noqa: PLC0415

        self._require_started()
        check_handler(handler)
        check_ids(ids)
        if name is not None:
            check_text("name", name)
        for setting, value in (("concurrency", concurrency), ("attempts", attempts)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{setting} must be a whole number of at least 1; got {value!r}")
        batch = Batch(
            self._worker,
            self._engine.work,
            self._hold,
            self._ended,
            Asked(name, date_of(date), self.date),
            items_of(ids, self._token_of, self._engine.codec),
            handler,
            concurrency,
            attempts,
            progress,
        )
        return await batch.run()

    async def owner_of(self, task: TaskOrId) -> Owner | None:
        """Who owns the task now, None for nobody. One statement; StoreUnavailable."""
        self._require_started()
        return await self._engine.owner_of(self._token(task_id_of(task)))

    async def drain(self) -> None:
        """Hand every token on and stay in the cluster without any; returns when nothing is owned any more."""
        self._require_started()
        await self._engine.set_draining(True)

    async def undrain(self) -> None:
        """Take tokens again."""
        self._require_started()
        await self._engine.set_draining(False)

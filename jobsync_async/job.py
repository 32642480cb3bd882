"""`Job`: one worker of a cluster, as its user sees it."""

from __future__ import annotations

import datetime as dt
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, overload

import psycopg

from jobsync_async.api.base import check_number, check_text
from jobsync_async.api.batches import BatchCalls
from jobsync_async.api.health import Health
from jobsync_async.api.life import Life, OnEnd
from jobsync_async.api.ownership import OwnershipCalls
from jobsync_async.api.steering import SteeringCalls
from jobsync_async.config import CoordinationConfig
from jobsync_async.core.hashing import token_hasher
from jobsync_async.core.ids import id_text, items_of
from jobsync_async.core.runs import date_of
from jobsync_async.errors import ConfigError, UsageError
from jobsync_async.host.process import announce
from jobsync_async.runtime.coordinator import Coordinator
from jobsync_async.tasks.worker import Worker
from jobsync_async.types import Id, Owner, Task, TaskOrId, task_id_of
from jobsync_async.work import claims
from jobsync_async.work.callbacks import Callback
from jobsync_async.work.claims import Claim
from jobsync_async.work.engine import Engine
from jobsync_async.work.holding import ClaimScope, Holding, IfPaused, OnRevoke
from jobsync_async.work.task_log import TaskLog

if TYPE_CHECKING:
    from jobsync_async.work.handlers import Handler
    from jobsync_async.work.owned import Ids


class Job(Life, OwnershipCalls, BatchCalls, SteeringCalls, Health):
    """One worker. It joins on entering ``async with`` (or `start`) and hands everything on when
    leaving it (or `stop`).

    What asks without I/O may be called from any thread, everything else on the event loop that it
    was started on. A job that is made before a fork can be started in the child; one that is
    started before is void there.

    Args:
        node_name: this worker's name, unique in the cluster; pins match it.
        coordination_config: the cluster. None is standalone: everything is owned, nothing is
            connected to.
        date: the date that claims and completions are written under where a call gives none; None
            asks for the cluster's at each call, which the database's clock says in the
            configuration's ``time_zone``.
        wait_on_enter: how many seconds start waits at most for ``minimum_nodes`` and the first
            tokens.
        wait_on_exit: seconds to stay before leaving.
        lock_provider: called with this job before it joins, to register pins. A plain function may
            call `register_lock` and the like without ``await``: what it has called so is done when
            it returns, in order.
        clear_existing_locks: delete the pins that this worker's name has made before, ahead of
            `lock_provider`.
        on_rebalance: called on every change of the owned tokens, first when start ends, with a
            `RebalanceEvent` if it takes an argument. Revoked tokens are handed on when it returns.
            If it raises, the job leaves and raises that. The first call comes before
            ``async with … as job`` binds the name: write ``job = Job(…)`` first, and then
            ``async with job:``.
        weight: this worker's share relative to the others, 0 or more; 0 gets pinned tasks only.
        address: what `owner_of` tells others, to route requests here.
        handle_signals: in ``async with``, SIGTERM and SIGINT make this worker hand everything on,
            cancel the body, and leave; the program goes on after the block, with `stop_signal` set.
            A second signal makes it leave at once; if the block has not ended 2 s later, the
            process dies by that signal. A signal while it still joins ends the program, in order.
            Works in the main thread only.
        on_end: called once for every start that succeeded, when the job has ended, with `failure`.
            What it raises is logged.

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
        on_end: OnEnd | None = None,
    ) -> None:
        check_text("node_name", node_name)
        if coordination_config is not None and not isinstance(
            coordination_config, CoordinationConfig
        ):
            kind = type(coordination_config).__name__  # not the value: a DSN holds a password
            raise ConfigError(
                "coordination_config must be a CoordinationConfig, or None for a standalone job; "
                f"got a {kind}. A DSN goes into CoordinationConfig(dsn=…)"
            )
        if address is not None:
            check_text("address", address)
        check_number("weight", weight)
        check_number("wait_on_enter", wait_on_enter)
        check_number("wait_on_exit", wait_on_exit)
        self.node_name = node_name
        self.date: dt.date | None = date_of(date)
        self._config = coordination_config
        self._weight = float(weight)
        self._address = address
        self._on_rebalance = on_rebalance
        self._wait_on_enter = wait_on_enter
        self._wait_on_exit = wait_on_exit
        self._lock_provider = lock_provider
        self._clear_existing_locks = clear_existing_locks
        self._on_end = on_end
        self._handles_signals = handle_signals
        super().__init__()

    def _renew(self) -> None:
        before: Worker | None = getattr(self, "_worker", None)
        announcement = announce(self._weight, self._address)
        self._engine: Engine
        if self._config is None:
            # most workers have a cluster
            from jobsync_async.runtime.standalone import Standalone  # noqa: PLC0415

            self._engine = Standalone(self.node_name, announcement, self._on_rebalance)
        else:
            self._engine = Coordinator(
                self._config, self.node_name, announcement, self._on_rebalance
            )
        self._worker = self._engine.worker
        if before is not None:
            self._worker.shown_as(before)
        self._token_of = token_hasher(
            self._worker.config.total_tokens, self._worker.config.hash_function
        )
        self._task_log = TaskLog(self._engine, self._token_of, self.date)

    def __repr__(self) -> str:
        worker = self._worker
        if worker.home.forked:
            return (
                f"<Job {self.node_name!r} void: a copy, made by fork, of one that runs in the "
                "parent process>"
            )
        if self._state != "running":
            return f"<Job {self.node_name!r} {self._state}>"
        tokens = f"{len(worker.owned_now())} of {worker.config.total_tokens} tokens"
        lease = f"lease for {worker.lease.remaining(worker.clock()):.1f} s"
        return (
            f"<Job {self.node_name!r} running, {tokens}, "
            f"{lease}{', leads' if self.am_i_leader() else ''}>"
        )

    # -- beyond jobsync ----------------------------------------------------------------------------

    @overload
    def claim(self, task: Task[Id], *, if_paused: IfPaused = "raise") -> ClaimScope[Id]: ...

    @overload
    def claim(self, task: Id, *, if_paused: IfPaused = "raise") -> ClaimScope[Id]: ...

    def claim(self, task: TaskOrId, *, if_paused: IfPaused = "raise") -> ClaimScope:
        """``async with job.claim(task) as claim``: the body runs while the task is this worker's,
        and alone in this worker.

        When somebody else in this worker works on the task, entering waits for its turn. When its
        token is revoked the body may finish, for up to ``handoff_timeout_sec``; nobody else gets
        the token before it has. When ownership is lost, the body is cancelled, and again after
        growing waits if it goes on. A token that `token_changes` has just told to be revoked can be
        claimed by the task that reads it, until it asks for the next change, also while the cluster
        is paused.

        Args:
            if_paused: what entering does while the cluster is paused: ``"raise"``, or ``"wait"``
                for its end.

        Raises:
            NotOwner: on entering, when the task is not this worker's.
            CoordinationError: on entering, when the cluster is paused: by whom, and why.
            OwnershipLost: on leaving, when it was not until the end.
            UsageError: on entering, when the scope was entered before, or by what works on the task
                already.
            ConfigError: the id cannot be one, or `if_paused` is something else.
        """
        if if_paused not in ("raise", "wait"):
            raise ConfigError(f'if_paused must be "raise" or "wait"; got {if_paused!r:.100}')
        return ClaimScope(self._hold(task_id_of(task), if_paused=if_paused))

    def _hold(
        self, task_id: Id, on_revoke: OnRevoke = "finish", if_paused: IfPaused = "raise"
    ) -> Holding[Id]:
        self._require_started()
        text = id_text(task_id, self._engine.codec)
        return Holding(
            self._worker,
            task_id,
            text,
            self._token_of(task_id),
            self._engine.fence_table,
            on_revoke,
            if_paused,
        )

    async def fence(
        self, connection: psycopg.AsyncConnection[Any], claim: Claim[Any] | TaskOrId
    ) -> None:
        """Make sure, inside your own transaction, that the claim holds until the commit: nobody can
        take the token before.

        One statement on `connection`. For other drivers see `Claim.fence_sql`.

        Args:
            claim: a claim; or a task or its id, for what is done without one, such as writing back
                what `token_changes` revokes: it holds as long as this worker has the token, also
                revoked, until that is acknowledged.

        Raises:
            OwnershipLost: it does not hold; let it pass, so that the transaction rolls back.
            NotOwner: the task of that id is not this worker's.
            UsageError: the connection is in autocommit and not in a transaction; or this is after a
                savepoint, and rolling back to that would undo the fence: fence first, in the
                outermost transaction.
        """
        if not isinstance(claim, Claim):
            self._require_started()
            task_id = task_id_of(claim)
            claim = claims.standing_claim(
                self._worker, task_id, self._token(task_id), self._engine.fence_table
            )
        await claims.fence(self._worker, connection, claim)

    async def run_owned(
        self, ids: Ids[Id], handler: Handler[Id], *, name: str = "default", refresh_sec: float = 5.0
    ) -> NoReturn:
        """Run the handler once per owned id, cluster-wide, until the job ends or this call is
        cancelled.

        A handler starts when its id's token comes here. When the token is to go, it is cancelled
        once, and the next worker starts its own when the cleanup here has returned. Until then the
        claim is valid and its fence holds, for up to ``handoff_timeout_sec``; `Claim.leaving` says
        why. A plain function runs in a thread, which nothing can cancel: let it look at
        `Claim.leaving` now and then. A handler that raises starts again after growing waits; one
        that returns has ended until the token goes and comes back. None starts while the cluster is
        paused.

        Args:
            ids: the ids of the whole cluster: an iterable, or a callable (plain or async) that
                gives one and is called every `refresh_sec`. When that raises, it is logged and
                asked again, and what runs goes on.
            handler: a function that takes the `Claim`, async, or plain and run in a thread of its
                own.
            name: what this runs, the same at every worker that does. The ids on tokens of a worker
                that runs nothing of this name are served by nobody: that is logged, and
                ``jobsync-async status`` shows it.

        Raises:
            UsageError: the job has ended; what ended it is the cause.
            ConfigError: an id cannot be one.
        """
        # many workers do without
        from jobsync_async.work.handlers import check_handler, check_ids  # noqa: PLC0415
        from jobsync_async.work.owned import OwnedRunner  # noqa: PLC0415

        self._require_started()
        check_handler(handler)
        check_number("refresh_sec", refresh_sec)
        codec = self._engine.codec
        if not callable(ids):
            check_ids(ids)
        want = ids if callable(ids) else items_of(ids, self._token_of, codec)
        check_text("name", name)
        hold = partial(self._hold, on_revoke="cancel", if_paused="wait")
        await OwnedRunner(
            self._worker, hold, self._token_of, self._ended, want, codec, handler, refresh_sec, name
        ).run()

    async def owner_of(self, task: TaskOrId) -> Owner | None:
        """Who owns the task now, None for nobody. One statement; StoreUnavailable."""
        self._require_started()
        return await self._engine.owner_of(self._token(task_id_of(task)))

    async def drain(self) -> None:
        """Hand every token on and stay in the cluster without any; returns when nothing is owned
        any more.

        Standalone there is nobody to hand on to and nobody who waits: nothing is owned from now on,
        and work under way goes on.

        Raises:
            UsageError: it was called by one whose end it would wait for, or `undrain` was called
                before it was done.
            StoreUnavailable: PostgreSQL could not be told.
        """
        self._require_started()
        if self._config is not None:
            self._refuse_to_wait_for_oneself("drain")
        if not await self._engine.set_draining(True):
            raise UsageError(
                "the drain was called off before it was done, by undrain() here or on the "
                "command line"
            )

    async def undrain(self) -> None:
        """Take tokens again. Raises UsageError when the job is leaving, StoreUnavailable."""
        self._require_started()
        if self._state == "stopping":
            raise UsageError("the job is leaving, and takes no tokens any more")
        await self._engine.set_draining(False)

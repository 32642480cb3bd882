"""A job's life: it is started, runs, and ends; and what any call means at any moment of it.

Each start is a life of its own: an engine with an incarnation, connections and event-loop objects
of its own, and one task, which starts the engine, waits for its end, and tells of it. Nothing of it
is used again. So a job may be started again when a life is over, and one that was made before a
fork may be started in the child.

Who waits for whom:

* `start` waits for the life's task until the engine runs; meanwhile that task calls
  `lock_provider`.
* `stop`, and the end of the ``async with``, make the task end, whatever it is at, and wait for
  that.
* A job that runs ends when nobody uses a token any more: every claim is left, every handler and
  `on_rebalance` has returned. `drain` waits for the same.

Whoever is waited for cannot wait: `stop` and `drain` in `lock_provider`, in the body of a claim, in
a handler or in `on_rebalance` would wait for their own end, and are refused at once. With two
exceptions: a reader of `token_changes` is closed when its task stops the job, and the end of the
``async with`` is never refused.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio

from jobsync_async.api.base import State, require_asyncio
from jobsync_async.api.pins import PinCalls
from jobsync_async.api.records import RecordCalls
from jobsync_async.errors import StoreError, UsageError
from jobsync_async.host.finishing import finish_first
from jobsync_async.host.logs import WorkerLog
from jobsync_async.host.waiting import ended
from jobsync_async.runtime.body import Body
from jobsync_async.runtime.signals import Signals
from jobsync_async.work.callbacks import Callback, call, not_our_cancellation

if TYPE_CHECKING:
    from typing_extensions import Self

OnEnd = Callable[[BaseException | None], Awaitable[object] | object]


class Life(RecordCalls, PinCalls):
    """Starting, stopping, and what happens in between."""

    _wait_on_enter: float
    _wait_on_exit: float
    _lock_provider: Callback | None
    _clear_existing_locks: bool
    _on_end: OnEnd | None
    _handles_signals: bool

    def __init__(self) -> None:
        self._state: State = "new"
        self._task: asyncio.Task[None] | None = None
        self._untold: BaseException | None = (
            None  # what ended the job, until somebody is told of it
        )
        self._worker_log = WorkerLog(__name__, self.node_name)
        self._body = Body()
        self._signals: Signals | None = None
        self._handing_on: asyncio.Task[None] | None = None
        self._made_in = os.getpid()
        self._renew()

    def _renew(self) -> None:
        """Make what the next life is made of: the engine, the worker, and what keeps records."""
        raise NotImplementedError

    # -- starting ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Join the cluster; returns when the first tokens are here, after the first call of
        `on_rebalance`.

        A job that has stopped may be started again: it joins as if it were another process, under
        the same name, and what was got from it before (claims, readers) stays over.

        Raises:
            UsageError: it is started already, `stop` was called meanwhile, or no asyncio event loop
                runs here.
            CoordinationError: this name was evicted.
            NodeNameTaken: another live worker has this name. ClusterNotFormed: `wait_on_enter` was
                too short.
            ConfigError: the settings disagree with the cluster, or the server is behind a pooler in
                transaction mode.
            StoreUnavailable, SchemaError: PostgreSQL cannot be reached, or its tables or rights are
                missing.
        """
        self._check_startable()
        if self._state != "new" or self._made_in != os.getpid():
            self._made_in = os.getpid()
            self._renew()
        self._state, self._untold = "starting", None
        self._worker.home.settle()
        runs: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = self._task = asyncio.create_task(
            self._live(runs), name=f"jobsync_async {self.node_name} life"
        )
        task.add_done_callback(self._is_over)
        try:
            await asyncio.wait([task, runs], return_when=asyncio.FIRST_COMPLETED)
            if runs.done():
                return
            if task.cancelled():
                raise UsageError(
                    "stop() was called while the job was starting: it has not joined, and may be "
                    "started again"
                )
            task.result()  # raises
        except asyncio.CancelledError:
            self._engine.hurry()
            self._end(None)
            await finish_first(ended(task))
            self._untold = None
            if not task.cancelled():
                task.exception()  # retrieved: the cancellation is what the caller must see
            raise
        finally:
            # With the frames of its cancellation, which hold a connection that was being opened.
            del task

    def _check_startable(self) -> None:
        """Raise UsageError unless it may be started now."""
        require_asyncio()
        home = self._worker.home
        if not self._runs() or (
            home.loop is not None and home.loop.is_closed() and not home.forked
        ):
            return
        home.require_own_process()
        raise UsageError(
            f"the job is {self._state} already: `await job.stop()` first, or make another Job"
        )

    async def _live(self, runs: asyncio.Future[None]) -> None:
        """One life, from the start to the end, as a task."""
        engine = self._engine
        try:
            await engine.open()
            await self._provide_locks()
            await engine.start(self._wait_on_enter)
        except BaseException as error:  # cleaned up, and raised again
            if isinstance(error, Exception):
                engine.failure = engine.failure or error
            await finish_first(engine.stop())
            raise
        self._state = "running"
        runs.set_result(None)
        try:
            await finish_first(engine.ended())
        except asyncio.CancelledError:
            # Somebody cancels all tasks there are, in any order: the engine's may not know yet.
            await finish_first(engine.stop())
            raise
        finally:
            self._untold = engine.failure
            self._stopped()
            await self._tell_end(engine.failure)

    def _is_over(self, task: asyncio.Task[None]) -> None:
        if task is self._task:
            self._stopped()
            self._task = None

    def _stopped(self) -> None:
        self._state = "stopped"
        self._worker.home.leave()

    async def _provide_locks(self) -> None:
        if self._lock_provider is None:
            return
        if self._clear_existing_locks:
            await self.clear_locks_by_creator(self.node_name)
        try:
            async with self._finishing():
                await call(self._lock_provider, self)
        except asyncio.CancelledError as error:
            if self._state == "stopping":
                raise
            raise not_our_cancellation("lock_provider") from error

    async def _tell_end(self, failure: BaseException | None) -> None:
        if self._on_end is None:
            return
        try:
            await call(self._on_end, failure)
        # the user's own, whatever it is: the job has ended, and there is nobody else to tell
        except Exception as error:
            self._worker_log.error("on_end raised", exc_info=error)

    @property
    def failure(self) -> BaseException | None:
        """What ended the job; None while it runs, before, or when it ended in order. Known as soon
        as the job begins to end because of it, while `on_end` is called when it has ended. No
        I/O."""
        return self._engine.failure

    # -- stopping ----------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Hand everything on and leave. Claims that are open may finish, up to
        ``handoff_timeout_sec``; if this call is cancelled, they are cancelled at once. When this
        returns the job does not run, also if it was just being started: then `start` raises
        UsageError. Stopping a job that does not run does nothing.

        Raises:
            UsageError: this was called by one whose end it would wait for: a handler, the body of a
                claim, `on_rebalance` or `lock_provider`.

        Raises what ended the job before, if something did.
        """
        if self._runs():
            self._worker.home.require()
            self._refuse_to_wait_for_oneself("stop", readers=False)
        await self._leave()

    def _runs(self) -> bool:
        """Whether there is anything to stop."""
        return self._worker.home.forked or self._state in ("starting", "running", "stopping")

    def _refuse_to_wait_for_oneself(self, what: str, *, readers: bool = True) -> None:
        """Raise UsageError when the task that calls this is one for whose end a stop, or a drain,
        waits."""
        me = asyncio.current_task()
        where = (
            "lock_provider"
            if me is self._task
            else None
            if me is None
            else self._worker.use_by(me, readers=readers)
        )
        if where is not None:
            raise UsageError(
                f"{what}() was called in {where}, for whose end it would wait: let that end first, "
                "by returning or by raising an error, or call it in a task of its own: "
                f"`asyncio.create_task(job.{what}())`"
            )

    def _end(self, by: asyncio.Task[Any] | None) -> None:
        """Make the life end, whatever it is at."""
        starting, task = self._state == "starting", self._task
        if self._runs():
            self._state = "stopping"
        if starting and task is not None:
            task.cancel()
        elif self._state == "stopping":
            self._engine.begin_to_stop(by)

    async def _leave(self) -> None:
        """`stop`, whoever asks for it."""
        task, me = self._task, asyncio.current_task()
        self._task_log.let_go()
        if task is me:  # on_end, which is called when all is over
            return
        if task is not None and not task.done():
            try:
                if self._state == "running" and self._wait_on_exit:
                    self._state = "stopping"
                    await self._worker.until(self._stays_no_longer, self._wait_on_exit)
                self._end(me)
                await asyncio.wait([task])
            except asyncio.CancelledError:
                self._engine.hurry()
                self._end(me)
                await finish_first(ended(task))
                raise
        failure, self._untold = self._untold, None
        if failure is not None:
            raise failure

    def _stays_no_longer(self) -> bool:
        return (
            self._worker.ended or self._engine.failure is not None or self.stop_signal is not None
        )

    # -- async with --------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._check_startable()
        if self._handles_signals:
            self._signals = Signals(self._told_to_leave, self._told_to_hurry, self._at_work)
            self._signals.install()
        self._body.enter()
        try:
            await self.start()
        except BaseException as error:  # cleaned up, and raised again
            interrupted = self._body.leave(error)
            if self._signals is not None:
                self._signals.restore()
                # There is no block yet that could end, and nothing after it to go on with.
                if interrupted:
                    raise self._signals.exit() from None
            raise
        self._engine.tell_failure_to(self._body.interrupt)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        interrupted = self._body.leave(error)
        not_written = None
        try:
            self._worker.home.require()
            if self._handing_on is not None:
                self._handing_on.cancel()
                await asyncio.wait([self._handing_on])
            try:
                if error is None:
                    not_written = await self._write_last()
            finally:
                await self._leave()
        except Exception:  # whatever it is, an error of the body's own comes first
            if error is None or interrupted:
                raise  # what ended the job, in place of the cancellation that it caused
        finally:
            if self._signals is not None:
                self._signals.restore()
        if not_written is not None:
            raise not_written
        # here it was a signal that cancelled the body: the block has ended as it should
        return interrupted

    # -- signals -----------------------------------------------------------------------------------

    @property
    def stop_signal(self) -> signal.Signals | None:
        """The signal that made this worker leave, with ``handle_signals=True``; None if none did.
        No I/O."""
        return None if self._signals is None else self._signals.received

    def _told_to_leave(self) -> None:
        number = self.stop_signal
        assert number is not None, "that is why this is called"
        text = "was told to end, hands on and leaves; a second signal makes it leave at once"
        self._worker_log.info(text, signal=number.name)
        if self._state == "running":
            self._task_log.let_go()
            self._handing_on = asyncio.create_task(
                self._hand_on(), name=f"jobsync_async {self.node_name} hands on"
            )
        else:
            self._worker.wake_waiters()
            self._body.interrupt()

    def _told_to_hurry(self) -> None:
        self._worker_log.warning("was told again, and leaves at once")
        self._engine.hurry()
        self._body.insist()

    async def _hand_on(self) -> None:
        """Let the work under way end while the body still runs, then cancel the body."""
        try:
            with anyio.move_on_after(self._worker.config.handoff_timeout_sec + 1):
                await self._engine.set_draining(True)
        except (StoreError, UsageError) as error:
            # Leaving hands on what is left, or the lease runs out.
            self._worker_log.info("could not hand on: %s", error)
        finally:
            self._body.interrupt()

    def _at_work(self) -> list[str]:
        body = ["the body of `async with Job(…)`"] if self._body.running else []
        return [*body, *self._worker.at_work()]

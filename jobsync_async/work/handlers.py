"""How code of the user's is run that works on a claim: each call in a task of its own.

Always so, for `Job.run_batch` and `Job.run_owned` alike:

* A call sees the context variables of whoever called `run_batch` or `run_owned`; what it sets, it
  alone sees.
* The task is ours. A CancelledError that comes out of it without our having cancelled it is a
  failure like any other.
* Whoever runs a handler and is cancelled has the handler cancelled, and waits for its end.
* A plain function runs in a thread, and the call lasts until the thread has returned, whoever is
  cancelled meanwhile.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any, NamedTuple, TypeVar

import anyio
from anyio import to_thread

from jobsync_async.errors import ConfigError, UsageError, _OwnershipError
from jobsync_async.host.interruption import Interruption
from jobsync_async.host.logs import WorkerLog
from jobsync_async.host.task_groups import BaseExceptionGroup
from jobsync_async.tasks.traces import Span, Tracer
from jobsync_async.tasks.worker import Worker
from jobsync_async.types import Id, Runner
from jobsync_async.work.callbacks import not_our_cancellation
from jobsync_async.work.claims import Claim
from jobsync_async.work.holding import Holding, mark_held

T = TypeVar("T")

Handler = Callable[[Claim[Id]], Awaitable[object] | object]
"""An async function of a `Claim` of such an id, or a plain one, which is run in a thread."""

# A step that the end of the lease fell into is to blame for it if it took so long: the heartbeat
# could not be sent meanwhile.
_BLOCKS_SEC = 0.1


class CallOutcome(NamedTuple):
    """How a call of a handler ended.

    Attributes:
        error: what the handler raised, a CancelledError that nobody asked for included.
        cut: it was cancelled because its claim was to end.
        lost: it was told that its own claim is lost, by an error about that very claim, and raised
            that.
        blocked_sec: how long it had blocked the event loop when its lease ended because of that.
    """

    error: BaseException | None = None
    cut: bool = False
    lost: bool = False
    blocked_sec: float = 0.0

    @property
    def returned(self) -> bool:
        """Whether it came to its end by itself."""
        return self.error is None and not self.cut and not self.lost


class HandlerRunner:
    """Calls one handler, for any number of claims at a time.

    Args:
        runner: what it is called for.
    """

    def __init__(self, worker: Worker, handler: Handler, runner: Runner) -> None:
        self._worker = worker
        self._log = WorkerLog(__name__, worker.identity.name)
        self._handler = handler
        self._runner = runner
        self._in_thread = not _is_async(handler)
        self._context = copy_context()

    async def run(self, holding: Holding, attempt: int) -> CallOutcome:
        """Call it for a claim that is held, to its end: for the first time, or once more."""
        claim = holding.claim
        context = self._context.copy()
        context.run(mark_held, holding)
        tracer = self._worker.tracer
        span = None if tracer is None else context.run(self._begin_span, tracer, holding, attempt)
        steps = _Steps(self._call(claim), self._worker)
        task = _started(
            context,
            steps,
            f"jobsync_async {self._worker.identity.name} works on {holding.task:.100}",
        )
        interruption = Interruption(task, fresh=True)
        holding.works(interruption)

        def stop() -> None:
            holding.ask_to_end("stopping")
            interruption.once(self._worker.config.handoff_timeout_sec)

        try:
            await _to_its_end(task, steps.over, stop)
        except asyncio.CancelledError:
            outcome = self._outcome(task, claim, cut=True)
            if span is not None:
                _end_span(span, outcome, claim)
            raise
        finally:
            holding.rests()
        if steps.blocked_sec:
            self._tell_blocked(claim, steps.blocked_sec)
        outcome = self._outcome(task, claim, cut=interruption.count > 0)
        if steps.blocked_sec:
            outcome = outcome._replace(blocked_sec=steps.blocked_sec)
        if span is not None:
            _end_span(span, outcome, claim)
        return outcome

    def _begin_span(self, tracer: Tracer, holding: Holding, attempt: int) -> Span:
        claim, runner = holding.claim, self._runner
        return tracer.begin(
            "process",
            destination=runner.name or runner.kind,
            runner=runner.kind,
            task_id=holding.task,
            token_id=claim.token_id,
            epoch=claim.epoch,
            attempt=attempt,
        )

    async def _call(self, claim: Claim) -> None:
        result = await _in_thread(self._handler, claim) if self._in_thread else self._handler(claim)
        if inspect.isawaitable(result):
            await result

    def _outcome(self, task: asyncio.Task[Any], claim: Claim, *, cut: bool) -> CallOutcome:
        error = _error_of(task)
        if error is None:
            return CallOutcome(cut=cut)
        if _is_about(error, claim):
            return CallOutcome(cut=cut, lost=True)
        if not cut:
            return CallOutcome(error)
        if not isinstance(error, asyncio.CancelledError):
            self._tell_cleanup(claim, error)
        return CallOutcome(cut=True)

    def _tell_cleanup(self, claim: Claim, error: BaseException) -> None:
        task, token = str(claim.task_id), claim.token_id
        text = "the handler of task %r was cancelled (%s), and raised while it ended"
        self._log.error(
            text, claim.task_id, claim.leaving, exc_info=error, task_id=task, token_id=token
        )

    def _tell_blocked(self, claim: Claim, seconds: float) -> None:
        task, token = str(claim.task_id), claim.token_id
        text = "the handler of task %r %s"
        self._log.error(
            text,
            claim.task_id,
            blocked_text(seconds),
            task_id=task,
            token_id=token,
            seconds=seconds,
        )


def _end_span(span: Span, outcome: CallOutcome, claim: Claim) -> None:
    blocked_sec = outcome.blocked_sec or None
    if outcome.error is not None:
        span.end("failed", outcome.error, blocked_sec=blocked_sec)
    elif outcome.blocked_sec:
        span.end("failed", blocked_sec=blocked_sec)
    elif outcome.cut or outcome.lost:
        span.end("cancelled", leaving="lost" if outcome.lost else claim.leaving)
    else:
        span.end("completed")


def blocked_text(seconds: float) -> str:
    """What a handler did that blocked the event loop past its lease."""
    return (
        f"blocked the event loop for {seconds:.1f} s, so that no heartbeat was sent and its lease "
        "ended: make it a plain function, which runs in a thread, or call what blocks by `await "
        "anyio.to_thread.run_sync(…)`"
    )


def check_handler(handler: Any) -> None:
    """Raise UsageError unless it can be called."""
    bare = handler
    while isinstance(bare, functools.partial):
        bare = bare.func
    if (
        not callable(handler)
        or inspect.isgeneratorfunction(bare)
        or inspect.isasyncgenfunction(bare)
    ):
        raise UsageError(
            "the handler must be a function that takes a Claim, async or plain, and no "
            f"generator; got {handler!r}"
        )


def check_ids(ids: Any, name: str | None = None, *, streams: bool = False) -> bool:
    """Whether they come as a stream. Raise ConfigError unless it is several ids: a string would be
    taken for its characters.

    Args:
        name: of what they are for: a stream needs one.
        streams: whether they may come as a stream.
    """
    if isinstance(ids, Iterable) and not isinstance(ids, (str, bytes)):
        return False
    if not streams or not isinstance(ids, AsyncIterable):
        raise ConfigError(f"ids must be an iterable of task ids, such as a list; got {ids!r:.100}")
    if name is None:
        raise ConfigError(
            "a batch whose ids are an async iterable needs name=: without a name, a batch is told "
            "by all of its ids, and these are not known before the end"
        )
    return True


async def apart(what: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of the user's, plain or async, in a task of its own, on the event loop.
    Raises what it raises; UsageError in place of a CancelledError that nobody here asked for."""

    async def called() -> Any:
        result = function(*args)
        return await result if inspect.isawaitable(result) else result

    task = _started(copy_context(), called(), f"jobsync_async calls {what}")
    over = asyncio.get_running_loop().create_future()
    task.add_done_callback(lambda _: _end(over))
    interruption = Interruption(task, fresh=True)
    try:
        await _to_its_end(task, over, interruption.begin)
    finally:
        interruption.end()
    error = _error_of(task)
    if isinstance(error, asyncio.CancelledError):
        raise not_our_cancellation(what) from error
    return task.result()


def _is_async(handler: Any) -> bool:
    while isinstance(handler, functools.partial):
        handler = handler.func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        type(handler).__call__
    )


def _is_about(error: BaseException, claim: Claim) -> bool:
    """Whether it says no more than that this very claim is lost; in a group, all of it must."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_about(one, claim) for one in error.exceptions)
    return isinstance(error, _OwnershipError) and error._claim is claim


def _started(context: Context, coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    # In the context and named afterwards, without arguments: Python 3.10 has no such arguments, nor
    # do all task factories.
    task: asyncio.Task[T] = context.run(asyncio.get_running_loop().create_task, coroutine)
    task.set_name(name)
    return task


async def _to_its_end(
    task: asyncio.Task[Any], over: asyncio.Future[None], interrupt: Callable[[], object]
) -> None:
    """Wait for the task, at whose end `over` is done; a caller that is cancelled has it
    interrupted, waits all the same, and is cancelled then."""
    if task.done():
        return
    try:
        await over
    except asyncio.CancelledError:
        interrupt()
        with anyio.CancelScope(shield=True):
            while not task.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([task])
        raise


def _end(over: asyncio.Future[None]) -> None:
    if not over.done():  # whoever waited for it may have been cancelled
        over.set_result(None)


def _error_of(task: asyncio.Task[Any]) -> BaseException | None:
    """What came out of a task that is done. Raises what is meant to end the program."""
    try:
        task.result()
    except (Exception, asyncio.CancelledError) as error:
        # The user's, whatever it is: who asks for it decides.
        return error
    return None


class _Steps(Coroutine[Any, Any, Any]):
    """A coroutine, with a look at the clock before and after each of its steps.

    Attributes:
        blocked_sec: how long the step took that the lease ended in; 0 when none did.
        over: done with its last step, at the end of which its task is done too. Callbacks of the
            task come a turn of the event loop later.
    """

    def __init__(self, inner: Coroutine[Any, Any, Any], worker: Worker) -> None:
        self.blocked_sec = 0.0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._inner = inner
        self._worker = worker

    def __getattr__(self, name: str) -> Any:
        # What shows where it stands: cr_frame, cr_code, __qualname__.
        return getattr(self._inner, name)

    def __await__(self) -> Any:
        raise AssertionError("it is the coroutine of a task")

    def send(self, value: Any) -> Any:
        return self._step(self._inner.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._inner.throw, *error)

    def close(self) -> None:
        self._inner.close()

    def _step(self, go: Callable[..., Any], *args: Any) -> Any:
        clock, deadline = self._worker.clock, self._worker.lease.deadline
        began = clock()
        try:
            return go(*args)
        except BaseException:  # its return, too; raised again
            _end(self.over)
            raise
        finally:
            ended = clock()
            if began < deadline <= ended and ended - began >= _BLOCKS_SEC:
                self.blocked_sec = ended - began


async def _in_thread(function: Callable[..., T], *args: Any) -> T:
    """Call a function in a thread, and return when it has returned. A cancellation meanwhile, even
    one by `asyncio.Task.cancel`, which anyio alone would give up the thread for, goes on
    afterwards."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    # held by the thread, once it has begun, or by a caller that was cancelled before: then it never
    # does
    once = threading.Lock()

    def call() -> Any:
        if not once.acquire(blocking=False):
            return None
        try:
            return function(*args)
        finally:
            # The event loop was closed meanwhile: nobody waits any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(ended.set)

    try:
        # A limiter of its own: how many run at a time is said by `concurrency`, or by the ids.
        return await to_thread.run_sync(call, limiter=anyio.CapacityLimiter(1))
    except asyncio.CancelledError:
        if not once.acquire(blocking=False):
            with anyio.CancelScope(shield=True):
                while not ended.is_set():
                    with suppress(asyncio.CancelledError):
                        await ended.wait()
        raise

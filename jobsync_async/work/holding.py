"""Who holds a claim: one at a time in a worker, interrupted when its token goes; and the scope that
does so for the body of an ``async with``."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Generic, Literal

from jobsync_async.errors import CoordinationError, NotOwner, OwnershipLost, UsageError
from jobsync_async.host.interruption import Interruption, give_way
from jobsync_async.host.logs import WorkerLog
from jobsync_async.tasks.traces import Span
from jobsync_async.tasks.worker import Worker
from jobsync_async.types import Id_co
from jobsync_async.work.claims import Claim, Leaving

OnRevoke = Literal["finish", "cancel"]
IfPaused = Literal["raise", "wait"]

_LONG_WAIT_SEC = 10.0


class Holding(Generic[Id_co]):
    """A claim that is held: entered in its turn, told when its token goes, and left. It interrupts
    whoever works on it.

    Attributes:
        claim: what the user gets.
        task: the task, as text.
        waited: whether it had to wait for its turn.
    """

    def __init__(
        self,
        worker: Worker,
        task_id: Id_co,
        text: str,
        token_id: int,
        fence: str | None,
        on_revoke: OnRevoke = "finish",
        if_paused: IfPaused = "wait",
    ) -> None:
        self.claim: Claim[Id_co] = Claim(worker, task_id, token_id, fence)
        self.task: str = text
        self.waited: bool = False
        self._gone: asyncio.Event | None = None
        self._worker = worker
        self._on_revoke = on_revoke
        self._if_paused = if_paused
        self._interruption: Interruption | None = None
        self._used = False

    async def enter(self) -> Claim[Id_co]:
        """Wait until nobody else in this worker works on the task, and claim it. Does not suspend
        when nobody does, and the cluster is not paused.

        Raises:
            NotOwner: the task is not this worker's, or not any more.
            CoordinationError: the cluster is paused, and that is not to be waited for.
            UsageError: it was entered before; or whoever calls works on the task already, and would
                wait for itself.
        """
        self._check_caller()
        self._join()
        try:
            if (first := self._worker.turns.first(self.task)) is not self:
                self.waited = True
                if first is not None:
                    first.give_way()
                await self._turn()
            if self._if_paused == "wait" and self._held_up:
                await self._worker.until(lambda: not self._held_up)
            self._register()
        except BaseException:  # cleaned up, and raised again
            self._give_turn()
            raise
        return self.claim

    def enter_at_once(self) -> None:
        """The same for who works on nothing yet, where nobody else in this worker works on the
        task."""
        self._join()
        try:
            assert self._worker.turns.first(self.task) is self, "nobody is before it"
            self._register()
        except BaseException:  # cleaned up, and raised again
            self._give_turn()
            raise

    def _check_caller(self) -> None:
        self._worker.home.require()
        if self._used:
            raise UsageError(
                f"a claim can be entered once: call job.claim({self.claim.task_id!r:.200}) again"
            )
        if self._worker.turns.first(self.task) in _HELD.get():
            raise UsageError(
                f"task {self.claim.task_id!r:.200} is claimed already by what calls this, or by "
                "what started it, so it would wait for itself: use the claim that is there, or let "
                "it end first"
            )

    def _join(self) -> None:
        self._used = True
        self._worker.turns.join(self.task, self)

    async def __aenter__(self) -> Claim[Id_co]:
        return await self.enter()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()

    async def _turn(self) -> None:
        worker, task = self._worker, self.task

        def due() -> bool:
            return worker.turns.first(task) is self or not self._may_enter()

        if await worker.until(due, _LONG_WAIT_SEC):
            return
        WorkerLog(__name__, worker.identity.name).warning(
            "task %r has waited for %g s: somebody else in this worker works on it (another "
            "claim, run_owned or run_batch)",
            self.claim.task_id,
            _LONG_WAIT_SEC,
            task_id=task,
            token_id=self.claim.token_id,
            seconds=_LONG_WAIT_SEC,
        )
        await worker.until(due)

    def _register(self) -> None:
        worker, claim = self._worker, self.claim
        if self._held_up:
            raise CoordinationError(
                f"task {claim.task_id!r:.200} is not begun, for the cluster is {worker.paused}; "
                'try again when it goes on, or wait for that with job.claim(…, if_paused="wait")'
            )
        # From here to the registration nothing is awaited: a revocation comes before and is seen,
        # or after and sees us.
        epoch = (
            worker.ownership.enter(claim.token_id, self, revoked_too=True)
            if self._may_enter()
            else None
        )
        if epoch is None:
            raise NotOwner(
                f"task {claim.task_id!r:.200} (token {claim.token_id}) is not this worker's: leave "
                "it to its owner, and ask job.owns(…) first",
                task_id=claim.task_id,
                token_id=claim.token_id,
                owner=worker.owner_known(claim.token_id),
            )
        claim.epoch, claim._incarnation, claim._open = epoch, worker.identity.incarnation, True
        worker.metrics.claims += 1
        worker.metrics.claims_active += 1

    def _may_enter(self) -> bool:
        """Whether the token is owned; or was revoked, and the task that calls this was told so by
        its reader of changes, which has not come back yet."""
        worker, token = self._worker, self.claim.token_id
        if worker.owns(token):
            return True
        return worker.may_act() and any(
            stream.lets_go_of(token, asyncio.current_task()) for stream in tuple(worker.streams)
        )

    @property
    def _held_up(self) -> bool:
        """Whether nothing but a pause keeps it from being entered. Whoever writes back what is
        revoked begins nothing new."""
        return self._worker.paused is not None and self._worker.owns(self.claim.token_id)

    def leave(self) -> None:
        """The work has ended."""
        worker, claim = self._worker, self.claim
        if not claim.valid:
            worker.metrics.claims_lost += 1
            claim._why_lost = claim._why_lost or "the lease is over"
        claim._open = False
        self.rests()
        worker.metrics.claims_active -= 1
        if worker.ownership.leave(claim.token_id, self):
            worker.user_left()
        self._give_turn()

    def give_way(self) -> None:
        """Called when somebody waits behind this: work that has begun goes on."""

    def _give_turn(self) -> None:
        if self._worker.turns.leave(self.task, self):
            self._worker.wake_waiters()

    async def gone(self) -> None:
        """Return when the claim is lost."""
        if self._gone is None:
            self._gone = asyncio.Event()
        while self.claim._why_lost is None:
            await self._gone.wait()

    # -- who works on it ---------------------------------------------------------------------------

    @property
    def runs_in(self) -> asyncio.Task[Any] | None:
        """The task whose code works on it; None for none yet."""
        return None if self._interruption is None else self._interruption.task

    def works(self, interruption: Interruption) -> None:
        """From now on this is how to interrupt the work."""
        self._interruption = interruption
        if self.claim._why_lost is not None:
            interruption.begin()
        elif self._on_revoke == "cancel" and self.claim.leaving is not None:
            interruption.once()

    def rests(self) -> None:
        """Nobody works on it, or not any more."""
        if self._interruption is not None:
            self._interruption.end()
            # Its task's context knows this. In a circle, all of it would wait for the collector.
            self._interruption = None

    def ask_to_end(self, why: Leaving) -> None:
        """Let `Claim.leaving` say why whoever works on it is to end."""
        self.claim._asked_to_end = self.claim._asked_to_end or why

    def revoked(self) -> None:
        """Called by the worker's tasks: the token is to go."""
        if self._on_revoke == "cancel" and self._interruption is not None:
            self._interruption.once()

    def lost(self, why: str) -> None:
        """Called by the worker's tasks: stop now."""
        if self.claim._why_lost is None:
            self.claim._why_lost = why
            if self._gone is not None:
                self._gone.set()
            if self._interruption is not None:
                self._interruption.begin()


_HELD: ContextVar[tuple[Holding, ...]] = ContextVar("jobsync_async_held", default=())
"""What the task that asks works on, or was started by somebody who works on it."""


def mark_held(holding: Holding) -> None:
    """Whoever runs in this context works on it."""
    _HELD.set((*_HELD.get(), holding))


class ClaimScope(Generic[Id_co]):
    """``async with job.claim(id) as claim``: the body runs while the task is this worker's, and is
    cancelled when it is not.

    Raises NotOwner on entering, and OwnershipLost at the end of a body whose ownership did not last
    until there; an exception that the body itself raises passes as it is, and so does a
    cancellation by anybody else.
    """

    def __init__(self, holding: Holding[Id_co]) -> None:
        self._holding = holding
        self._interruption: Interruption | None = None
        self._span: Span | None = None

    def __repr__(self) -> str:
        return f"<ClaimScope of {self._holding.claim!r}>"

    async def __aenter__(self) -> Claim[Id_co]:
        claim = await (
            self._holding.enter() if self._holding._worker.tracer is None else self._enter_traced()
        )
        task = asyncio.current_task()
        assert task is not None, "a coroutine that can wait is run by a task"
        self._interruption = Interruption(task)
        self._holding.works(self._interruption)
        mark_held(self._holding)
        return claim

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        assert self._interruption is not None, "it was entered"
        claim = self._holding.claim
        _HELD.set(tuple(one for one in _HELD.get() if one is not self._holding))
        valid = claim.valid
        self._holding.leave()
        ours = self._interruption.ours(error)
        if self._span is not None:
            about = isinstance(error, OwnershipLost) and error._claim is claim
            self._end_span(self._span, error, lost=ours or not valid or about)
        if ours:
            await give_way()
        if ours or (error is None and not valid):
            raise claim.lost_error() from None
        return False

    async def _enter_traced(self) -> Claim[Id_co]:
        holding, tracer = self._holding, self._holding._worker.tracer
        assert tracer is not None, "that is why this is called"
        span = tracer.begin("claim", task_id=holding.task, token_id=holding.claim.token_id)
        try:
            claim = await holding.enter()
        except NotOwner:
            span.end("not_owner")
            raise
        except asyncio.CancelledError:
            span.end("cancelled")
            raise
        except BaseException as error:  # told, and raised again
            span.end("failed", error)
            raise
        self._span = span
        return claim

    def _end_span(self, span: Span, error: BaseException | None, *, lost: bool) -> None:
        epoch = self._holding.claim.epoch
        if lost and (error is None or isinstance(error, (asyncio.CancelledError, OwnershipLost))):
            span.end("cancelled", epoch=epoch, leaving="lost")
        elif error is None:
            span.end("completed", epoch=epoch)
        elif isinstance(error, asyncio.CancelledError):
            span.end("cancelled", epoch=epoch)
        else:
            span.end("failed", error, epoch=epoch)

"""Hand-offs that take too long: work is cancelled, what ignores that is shown, and, if so
configured, the worker leaves.

A token whose user never lets go waits, and only it: nobody else may have it while somebody here may
be at work on it. What ends the wait is the user's own end, or the end of this worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jobsync_async.core.rows import Stuck
from jobsync_async.errors import CoordinationError
from jobsync_async.host.logs import WorkerLog
from jobsync_async.tasks.worker import Worker

_MOST_SHOWN = 10


def revoked_before(worker: Worker, moment: float) -> list[int]:
    """Tokens that were revoked before, and are still in use here, in order."""
    revoking = worker.ownership.revoking
    return [token for token in worker.ownership.busy() if revoking[token].since <= moment]


def stuck_tokens(worker: Worker, now: float) -> list[int]:
    """Revoked tokens whose work has ignored its cancellation."""
    return revoked_before(worker, now - _stuck_after_sec(worker))


def _stuck_after_sec(worker: Worker) -> float:
    """How long after its revocation a token counts as stuck: its work was cancelled, and had a
    heartbeat's time to end."""
    return worker.config.handoff_timeout_sec + worker.config.heartbeat_interval_sec


class Overdue:
    """Looks after revoked tokens that are still in use here past the hand-off time-out.

    Args:
        leave: called with the reason when the worker is to leave because of one.
    """

    def __init__(self, worker: Worker, leave: Callable[[CoordinationError], object]) -> None:
        self._worker = worker
        self._log = WorkerLog(__name__, worker.identity.name)
        self._leave = leave
        self._shown: Sequence[Stuck] = ()
        self._left = False

    def check(self, now: float) -> Sequence[Stuck] | None:
        """Cancel what still works on tokens that were revoked too long ago. Readers cannot be
        cancelled: they are shown.

        Returns what the worker's row is to show of it, None when it shows that already; `shown`
        says that it does.
        """
        worker = self._worker
        tokens = revoked_before(worker, now - worker.config.handoff_timeout_sec)
        limit = worker.config.handoff_timeout_sec
        for _, user in worker.ownership.users_of(tokens):
            user.lost(f"still at work {limit:g} s after its token was revoked")
        ages = [now - worker.ownership.revoking[token].since for token in tokens]
        worker.metrics.handoffs_overdue = len(tokens)
        worker.metrics.handoff_overdue_sec = max(ages, default=0.0)
        stuck = [Stuck(token, self._task_of(token)) for token in tokens[:_MOST_SHOWN]]
        if tokens and stuck_tokens(worker, now):
            self._give_up(stuck[0], max(ages))
        return None if stuck == list(self._shown) else stuck

    def shown(self, stuck: Sequence[Stuck]) -> None:
        """The worker's row shows these now: time to say so in the log too."""
        known, self._shown = set(self._shown), stuck
        new = [one for one in stuck if one not in known]
        for one in new:
            if one.task_id is not None:
                self._warn(one)
        unread = [one for one in new if one.task_id is None]
        # One reader, however many tokens.
        if unread and not any(one.task_id is None for one in known):
            self._warn(unread[0])

    def next_check(self, now: float) -> float:
        """When to look again if nothing changes; infinity for never."""
        worker = self._worker
        waits = [worker.config.handoff_timeout_sec]
        if worker.config.on_handoff_timeout == "leave":
            waits.append(_stuck_after_sec(worker))
        dues = (
            revocation.since + wait
            for revocation in worker.ownership.revoking.values()
            for wait in waits
        )
        return min((due for due in dues if due > now), default=float("inf"))

    def _task_of(self, token: int) -> str | None:
        """The task that somebody works on; None when it is a reader of changes that has not come
        back."""
        return next((user.task for _, user in self._worker.ownership.users_of((token,))), None)

    def _warn(self, one: Stuck) -> None:
        token, limit = one.token_id, self._worker.config.handoff_timeout_sec
        text = "token %d waits to be handed on: %s for over %g s"
        self._log.warning(
            text, token, _whose(one), limit, token_id=token, task_id=one.task_id, seconds=limit
        )

    def _give_up(self, one: Stuck, seconds: float) -> None:
        if self._left or self._worker.config.on_handoff_timeout != "leave":
            return
        self._left = True
        name = self._worker.identity.name
        self._leave(
            CoordinationError(
                f"{name} leaves, as on_handoff_timeout='leave' says: token {one.token_id} was "
                f"revoked {seconds:.1f} s ago, and {_whose(one)} since; end this process, so that "
                "nothing works on it any more"
            )
        )


def _whose(one: Stuck) -> str:
    if one.task_id is None:
        return "a reader of token_changes() or an on_rebalance has not come back"
    return f"work on task {one.task_id!r} has gone on"

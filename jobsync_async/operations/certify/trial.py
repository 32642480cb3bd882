"""Three workers, and what happens to them."""

from __future__ import annotations

import time
from collections.abc import Container
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import anyio
import psycopg

from jobsync_async.config import CoordinationConfig
from jobsync_async.operations.certify.crew import CertifyFailed, Crew
from jobsync_async.operations.certify.figures import Fencing, Limits
from jobsync_async.operations.certify.probes import ProbeSession
from jobsync_async.operations.certify.worker import TrialOrders

FIRST = ("alpha", "beta", "gamma")
ADDED = "delta"
_MOST_TOKENS = 10_000
_MOST_DELAY_SEC = 0.1
_LASTING = 2  # sessions that a worker always has
_LOOK_SEC = 0.02
_WITHIN_SEC = 20.0
_ANSWER_WITHIN_SEC = 10.0


@dataclass
class Trial:
    """The steps. Each returns what it took in seconds, None where that was too long. They raise
    CertifyFailed, TimeoutError, or what the driver raises.

    Attributes:
        mark: what the names of the workers begin with.
        running: those that run, the oldest first.
    """

    config: CoordinationConfig
    limits: Limits
    mark: str
    crew: Crew
    session: ProbeSession
    running: list[str] = field(default_factory=list)

    def _name(self, worker: str) -> str:
        return f"{self.mark}-{worker}"

    async def _start(self, worker: str, minimum_nodes: int) -> None:
        config = replace(self.config, minimum_nodes=minimum_nodes)
        orders = TrialOrders(self._name(worker), asdict(config))
        await self.crew.start(orders)
        self.running.append(worker)

    async def _even(self, since: float, within_sec: float = _WITHIN_SEC) -> float | None:
        """Until those that run share all tokens evenly."""
        names = [self._name(worker) for worker in self.running]
        try:
            at = await self.crew.settled(names, self.config.total_tokens, within_sec)
        except TimeoutError:
            return None
        return max(0.0, at - since)

    # -- the steps ---------------------------------------------------------------------------------

    async def form(self) -> float | None:
        """Start three, which wait for each other."""
        for worker in FIRST:
            await self._start(worker, len(FIRST))
        starting = [
            await self.crew.heard(self._name(worker), "starting", _WITHIN_SEC) for worker in FIRST
        ]
        return await self._even(max(told["at"] for told in starting))

    async def leave(self) -> float | None:
        """The youngest leaves in order."""
        worker = self.running.pop()
        began = time.monotonic()
        await self.crew.order(self._name(worker), "leave")
        took = await self._even(began)
        await self._ended(worker)
        return took

    async def join(self) -> float | None:
        """Another one comes."""
        await self._start(ADDED, 1)
        told = await self.crew.heard(self._name(ADDED), "starting", _WITHIN_SEC)
        return await self._even(told["at"])

    async def change_unheard(self) -> float | None:
        """Drain the youngest, and let nobody hear of it."""
        worker = self.running.pop()
        values = self._context()
        connection = self.session.connection
        async with connection.transaction():
            await self.session.ask("change_unheard", **values)
            await self._drain(worker, "draining")
        took = await self._even(time.monotonic())
        async with connection.transaction():
            await connection.execute(self.session.queries["take_version"], values)
            await self._drain(worker, "active")
        self.running.append(worker)
        if await self._even(0) is None:
            raise CertifyFailed("a worker that was drained does not take tokens again")
        return took

    async def _drain(self, worker: str, state: str) -> None:
        values = {
            "name": self._name(worker),
            "state": state,
            "incarnation": None,
            "reason": "certify",
            **self._context(),
        }
        await self.session.connection.execute(self.session.queries["set_state"], values)

    def _context(self) -> dict[str, Any]:
        return self.session.context.values(self.session.connection.server)

    async def end_sessions(self) -> tuple[int, float | None, bool]:
        """Let the server end all sessions of the youngest; how many these were, when it had as many
        again, and whether it lost tokens."""
        name = self._name(self.running[-1])
        ended = await self.session.ask("sessions_of", name=name)
        lost = self.crew.lost[name]
        before = {row.pid for row in ended}
        began = time.monotonic()
        done = 0
        with suppress(psycopg.errors.InsufficientPrivilege):
            for pid in before:
                done += sum(row.ended for row in await self.session.ask("end_session", pid=pid))
        if not done:
            return 0, None, False
        took = None
        with anyio.move_on_after(_WITHIN_SEC):
            # heartbeat and listener: the others are opened when they are needed
            while await self._sessions(name, before) < _LASTING:  # noqa: ASYNC110
                await anyio.sleep(_LOOK_SEC)
            took = time.monotonic() - began
        return done, took, self.crew.lost[name] > lost

    async def _sessions(self, name: str, before: Container[int]) -> int:
        """How many a worker has that it did not have before."""
        rows = await self.session.ask("sessions_of", name=name)
        return sum(row.pid not in before for row in rows)

    async def stall(self) -> dict[str, Any]:
        """Let the second-oldest stand still, in the midst of two transactions; what it told of
        them."""
        name = self._name(FIRST[1])
        await self.crew.order(name, "hold")
        held = await self.crew.heard(name, "held", _ANSWER_WITHIN_SEC)
        await self.crew.order(name, "stall")
        stalling = await self.crew.heard(name, "stalling", _ANSWER_WITHIN_SEC)
        return {**held, "began": stalling["at"]}

    async def fence(self, held: dict[str, Any]) -> Fencing:
        """Wait until the others have all that they can get, and wake it."""
        worker, name = FIRST[1], self._name(FIRST[1])
        config, limits = self.config, self.limits
        self.running.remove(worker)
        self.crew.tokens.pop(name, None)
        others = [self._name(other) for other in self.running]
        fenced, late = held["tokens"]
        moved = None
        with suppress(TimeoutError):
            at = await self.crew.settled(
                others, config.total_tokens - 1, limits.longest_sec + _WITHIN_SEC / 2
            )
            moved = at - held["began"]
        incarnation, kept_epoch = await self._owner(fenced)
        _, late_epoch = await self._owner(late)
        await self.crew.order(name, "wake")
        told = await self.crew.heard(name, "committed", _ANSWER_WITHIN_SEC)
        passed, epoch = await self._passed(fenced, incarnation, told["at"])
        self.running.append(worker)
        back = await self._even(told["at"])
        effects = {row.by for row in await self.session.ask("read_effects")}
        return Fencing(
            moved,
            kept_epoch == held["epochs"][0],
            told["stale_rows"],
            tuple(sorted(effects | set(told["committed"]))),
            passed,
            late_epoch > held["epochs"][1] and epoch > held["epochs"][0],
            back,
        )

    async def _owner(self, token: int) -> tuple[Any, int]:
        (row,) = await self.session.ask("owner", token_id=token)
        return row.incarnation, row.epoch

    async def _passed(self, token: int, before: Any, since: float) -> tuple[float | None, int]:
        """Until a token has another owner, and its epoch then."""
        incarnation, epoch = await self._owner(token)
        with anyio.move_on_after(_WITHIN_SEC):
            while incarnation in (None, before):
                await anyio.sleep(_LOOK_SEC)
                incarnation, epoch = await self._owner(token)
            return time.monotonic() - since, epoch
        return None, epoch

    async def kill(self) -> float | None:
        """End the oldest, which leads, by SIGKILL."""
        worker = self.running.pop(0)
        await self.crew.order(self._name(worker), "tell")
        await self.crew.heard(self._name(worker), "times", _ANSWER_WITHIN_SEC)
        at = await self.crew.kill(self._name(worker))
        return await self._even(at, self.limits.longest_sec + _WITHIN_SEC / 2)

    async def end(self) -> None:
        """All that are left leave in order, and tell how long their statements took."""
        for worker in self.running:
            await self.crew.order(self._name(worker), "leave")
        for worker in self.running:
            await self._ended(worker)
        self.running.clear()

    async def _ended(self, worker: str) -> None:
        """Wait for the end of one that was told to leave, and has told how long statements took."""
        await self.crew.heard(self._name(worker), "left", _WITHIN_SEC)
        await self.crew.ended(self._name(worker))


def for_trial(config: CoordinationConfig, *, quick: bool) -> CoordinationConfig:
    """The configuration of the trial's workers: of what is asked for, the way to the server, and
    the times, if a trial with them is short enough. What else a cluster has is its own affair."""
    config = replace(
        config,
        total_tokens=min(config.total_tokens, _MOST_TOKENS),
        rebalance_delay_sec=min(config.rebalance_delay_sec, _MOST_DELAY_SEC),
        predecessor=None,
        failover="lease",
    )
    if quick:
        return replace(
            config, heartbeat_interval_sec=0.3, heartbeat_timeout_sec=1.5, poll_interval_sec=0.1
        )
    if config.heartbeat_timeout_sec > 15:
        return replace(config, heartbeat_interval_sec=5, heartbeat_timeout_sec=15)
    return config

"""A whole certification: prepares, tries, measures, and lets all of it be removed."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import replace
from os import urandom
from typing import Any

import anyio
import psycopg

from jobsync_async.errors import JobSyncError
from jobsync_async.host.process import announce, why_unwatchable
from jobsync_async.host.task_groups import task_group
from jobsync_async.operations.certify import reactions, verdicts
from jobsync_async.operations.certify.certificate import PREFIX, Certificate, Wish
from jobsync_async.operations.certify.crew import crew
from jobsync_async.operations.certify.failover import failover
from jobsync_async.operations.certify.figures import (
    ClockReading,
    Latency,
    Limits,
    Load,
    Room,
    Statement,
)
from jobsync_async.operations.certify.ground import Ground
from jobsync_async.operations.certify.hiring import Hired
from jobsync_async.operations.certify.probes import Probes, ProbeSession
from jobsync_async.operations.certify.trial import Trial, for_trial
from jobsync_async.operations.certify.verdicts import Verdict
from jobsync_async.operations.wording import count
from jobsync_async.postgres.driver_errors import first_line, translated

Found = Verdict | Iterable[Verdict]

_WORK_WITHIN_SEC = 55.0  # of a minute; what is left is for cleaning up
_PATIENCE_SEC = 10.0
_CLOCK_EVERY_SEC = 1.0
_SAMPLES, _QUICK_SAMPLES = 200, 30
_FEW_TRIPS = 10
_LEAST_SERVER_SEC = 0.0001
_LEAST_MOVED = 1_000  # a distribution of fewer tokens says little of how fast they move
_OWN_SESSIONS = 2  # this one and the janitor's, when connections are counted
_BEATS = ("heartbeat", "read_beats")


async def certify(wish: Wish, tell: Callable[[str], None]) -> Certificate:
    """Try on the server what workers need, in about a minute at most.

    Args:
        tell: is told how it goes on.

    Raises ConfigError, StoreUnavailable or CertifyFailed when it cannot begin; what goes wrong
    later is a verdict.
    """
    began = time.monotonic()
    run = Certification(wish, tell)
    try:
        with anyio.move_on_after(_WORK_WITHIN_SEC) as scope:
            await run.work()
        if scope.cancelled_caught:
            found = "took too long: what is not in this list was not measured"
            run.found(Verdict("time", "fail", found, f"{_WORK_WITHIN_SEC:g} s", _SLOW_SERVER))
    finally:
        with anyio.CancelScope(shield=True):
            await run.clean()
    run.certificate.seconds = time.monotonic() - began
    return run.certificate


_SLOW_SERVER = "look for what makes the server or the network slow"


class Certification:
    """One certification.

    Attributes:
        certificate: what was found so far.
    """

    def __init__(self, wish: Wish, tell: Callable[[str], None]) -> None:
        self._wish = wish
        self._tell = tell
        self._mark = urandom(6).hex()
        config = for_trial(wish.config, quick=wish.quick)
        own = f"{PREFIX}{self._mark}_"
        self._ground = Ground(
            replace(config, appname=wish.prefix or own),
            self._mark,
            wish.prefix is not None,
            self.found,
        )
        self._samples = _QUICK_SAMPLES if wish.quick else _SAMPLES
        self._rooms: tuple[Room, ...] = ()
        self._trips = Latency(0, 0, 0, 0)
        self._commit_sec: float | None = None
        self._clocks: list[ClockReading] = []
        self._janitor: Hired | None = None
        self.certificate = Certificate(
            interval_sec=config.heartbeat_interval_sec, timeout_sec=config.heartbeat_timeout_sec
        )

    def found(self, found: Found) -> None:
        """Add to the certificate."""
        self.certificate.checks += [found] if isinstance(found, Verdict) else found

    async def clean(self) -> None:
        """Nothing of it stays."""
        if self._janitor is not None:
            self._tell("removing what was made")
            left = await self._janitor.clean()
            self.found(reactions.left_behind(left, prefix_given=self._wish.prefix is not None))

    # -- in order ----------------------------------------------------------------------------------

    async def work(self) -> None:
        """All of it but the cleaning up."""
        ground = self._ground
        async with AsyncExitStack() as stack:
            connection = await ground.connect()
            stack.push_async_callback(connection.close)
            self.certificate.server = await ground.look(connection)
            self._tell(self.certificate.server)
            self._janitor = await Hired.start(ground.duty())
            tables = await ground.make_tables(connection)
            await ground.connector.prepare(connection)
            session = ProbeSession(connection, ground.queries, ground.connector)
            probes = Probes(ground.connector, ground.queries)
            self._trips = await probes.trips(session, _FEW_TRIPS)
            async with task_group() as group:
                group.start_soon(self._watch_clocks, probes)
                await self._step("durability", lambda: self._settings(probes, session))
                if tables:
                    await self._on_tables(probes, session)
                else:
                    await self._measure(probes, tables=False)
                group.cancel_scope.cancel()
            if self._clocks:
                self.found(verdicts.clocks(self._clocks))
        self.certificate.polling = not ground.config.notify

    async def _settings(self, probes: Probes, session: ProbeSession) -> Found:
        settings, row = await probes.settings(session)
        if not self._ground.shared:
            self._rooms = tuple(
                Room(of, getattr(row, f"{of}_most"), getattr(row, f"{of}_used") - _OWN_SESSIONS)
                for of in ("server", "role", "database")
            )
        durability = verdicts.durability(settings)
        if self._ground.connector.queries is None:
            return durability
        hosts = session.connection.info.get_parameters().get("host", "").count(",") + 1
        return [durability, failover(session.queries.readings, settings, hosts)]

    async def _on_tables(self, probes: Probes, session: ProbeSession) -> None:
        if self._ground.config.notify:
            await self._ground.require_push(probes)
        seen = why_unwatchable(announce(1, None)) is None
        limits = Limits(self._ground.config, self._trips.p50, seen)
        async with crew() as workers:
            trial = Trial(self._ground.config, limits, self._mark, workers, session)
            await self._try(trial, probes)
            self._judge_statements(workers.times)
            await self._step("capacity", lambda: self._capacity(session))

    async def _try(self, trial: Trial, probes: Probes) -> None:
        """What happens to three workers, and beside it what needs none of them."""
        steps: list[tuple[str, Callable[[], Awaitable[Found]]]] = [
            ("start", lambda: self._start(trial, probes)),
            ("leave", lambda: self._leave(trial)),
            ("join", lambda: self._join(trial)),
            ("lost notification", lambda: self._unheard(trial)),
            ("sessions ended", lambda: self._end_sessions(trial)),
            ("fence", lambda: self._fence(trial, probes)),
            ("kill", lambda: self._kill(trial)),
            ("end", lambda: self._end(trial)),
        ]
        for number, (name, step) in enumerate(steps):
            if not await self._step(name, step):
                rest = ", ".join(name for name, _ in steps[number + 1 :])
                if rest:
                    self.found(verdicts.unmeasured(rest, f"{name} went wrong"))
                return

    async def _start(self, trial: Trial, probes: Probes) -> Found:
        config = self._ground.config
        self._tell(f"three workers share {config.total_tokens:,} tokens")
        async with task_group() as group:
            group.start_soon(self._try_server, probes)
            took = await trial.form()
        what = f"{count(config.total_tokens, 'token')} shared by three"
        return reactions.reaction("start", took, 2 * trial.limits.join_sec, what)

    async def _leave(self, trial: Trial) -> Found:
        self._tell("one leaves")
        took = await trial.leave()
        return reactions.reaction("leave", took, trial.limits.leave_sec, "shared by two")

    async def _join(self, trial: Trial) -> Found:
        self._tell("another one joins")
        took = await trial.join()
        return reactions.reaction("join", took, trial.limits.join_sec, "shared by three")

    async def _unheard(self, trial: Trial) -> Found:
        self._tell("a change is made that nobody hears of")
        return reactions.unheard(await trial.change_unheard(), trial.limits)

    async def _end_sessions(self, trial: Trial) -> Found:
        if self._ground.shared:
            return verdicts.skipped("sessions ended", "the pooler's sessions are everybody's")
        self._tell("the sessions of one are ended")
        ended, took, lost = await trial.end_sessions()
        return reactions.ended_sessions(took, trial.limits, ended=ended, lost_tokens=lost)

    async def _fence(self, trial: Trial, probes: Probes) -> Found:
        timeout = self._ground.config.heartbeat_timeout_sec
        self._tell(f"one stands still until others have its tokens, {timeout:g} s")
        held = await trial.stall()
        async with task_group() as group:
            group.start_soon(self._measure, probes)
            seen = await trial.fence(held)
        return reactions.fencing(seen, trial.limits)

    async def _kill(self, trial: Trial) -> Found:
        self._tell("the leader is killed")
        took, limits = await trial.kill(), trial.limits
        return reactions.reaction(
            "kill", took, limits.kill_sec, "shared by two", longest_sec=limits.longest_sec
        )

    async def _end(self, trial: Trial) -> Found:
        self._tell("all leave")
        await trial.end()
        return ()

    # -- beside the workers ------------------------------------------------------------------------

    async def _try_server(self, probes: Probes) -> None:
        """What is done between two sessions, while workers start."""
        key = f"{self._ground.config.appname} certify"

        async def bounds() -> Found:
            return [verdicts.bound(one) for one in await probes.bounds()]

        async def one(judge: Callable[[Any], Verdict], work: Awaitable[Any]) -> Found:
            return judge(await work)

        await self._step("row locks", lambda: one(verdicts.row_locks, probes.row_locks()))
        await self._step("waiting for locks", lambda: one(verdicts.waits, probes.waits()))
        await self._step(
            "advisory locks", lambda: one(verdicts.advisory_locks, probes.advisory_locks(key))
        )
        await self._step("sequences", lambda: one(verdicts.sequence, probes.sequence()))
        await self._step("time-outs", bounds)

    async def _measure(self, probes: Probes, *, tables: bool = True) -> None:
        """What is measured while all is quiet."""

        async def trips() -> Found:
            self._trips = await probes.trips(session, self._samples)
            return verdicts.trips(self._trips, self._ground.config.statement_limit_sec)

        async def commits() -> Found:
            latency = await probes.commits(session, self._samples // 2)
            self._commit_sec = latency.p50
            return verdicts.commits(latency)

        async def pushes() -> Found:
            return verdicts.pushes(await probes.pushes(self._ground.channel, self._samples))

        async with probes.sessions() as (session, _):
            await self._step("round trip", trips)
            if tables:
                await self._step("commit", commits)
        if self._ground.config.notify:
            await self._step("notifications", pushes)

    async def _watch_clocks(self, probes: Probes) -> None:
        session = await probes.open()
        try:
            while True:
                self._clocks.append(await probes.clock(session))
                await anyio.sleep(_CLOCK_EVERY_SEC)
        except psycopg.Error:
            pass  # what was seen until then counts; what ended the session, other checks tell
        finally:
            await session.connection.close()

    def _judge_statements(self, times: dict[str, list[float]]) -> None:
        config = self._ground.config
        self.certificate.statements = [
            Statement(
                name,
                Latency.of(samples),
                config.statement_limit_sec if name in _BEATS else config.bulk_limit_sec,
            )
            for name, samples in sorted(times.items())
        ]
        self.found(reactions.statements(self.certificate.statements))

    async def _capacity(self, session: ProbeSession) -> Found:
        sent = {one.name: one.latency.p50 for one in self.certificate.statements}
        if "heartbeat" not in sent:
            return verdicts.unmeasured("capacity", "no heartbeat was measured")
        plans = [
            row.tokens_moved / row.duration_ms * 1000
            for row in await session.ask("plans")
            if row.tokens_moved >= _LEAST_MOVED
        ]
        heartbeat = max(_LEAST_SERVER_SEC, sent["heartbeat"] - self._trips.p50)
        load = Load(self._rooms, heartbeat, self._commit_sec, max(plans, default=None))
        return reactions.capacity(self._wish.config, load, self._wish.workers)

    async def _step(self, name: str, work: Callable[[], Awaitable[Found]]) -> bool:
        """Do something and add what it finds; False when it went wrong, which is found, too."""
        try:
            with translated():
                self.found(await work())
        except TimeoutError:
            self.found(verdicts.unmeasured(name, "no answer in time", failed=True))
        except JobSyncError as error:
            self.found(verdicts.unmeasured(name, str(error), failed=True))
        except psycopg.Error as error:
            self.found(verdicts.unmeasured(name, first_line(error), failed=True))
        else:
            return True
        return False

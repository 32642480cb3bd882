"""One run: processes come, go, and meet with faults for a while; then all is calm, and everything
must be well again."""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any
from uuid import UUID

from jobsync_async import (
    ConfigError,
    CoordinationConfig,
    CoordinationError,
    NodeNameTaken,
    StoreUnavailable,
)
from jobsync_async.core.lease import Times
from tests.simulation.faults import Faults, Profile
from tests.simulation.hosts import Hosts
from tests.simulation.invariants import Invariants, Violation, nothing_starts_while_paused
from tests.simulation.mixes import Mix
from tests.simulation.network import Network, Weather
from tests.simulation.process import Process
from tests.simulation.scheduler import Livelock, ProcessLoop, Scheduler
from tests.simulation.seams import installed
from tests.simulation.server import Server
from tests.simulation.statements import TABLE_OID
from tests.simulation.tables import Transaction, View
from tests.simulation.transcript import Transcript, logged
from tests.simulation.users import Users

# Two workers' clocks may differ by a ninth of their rate (core/lease.py).
_MOST_RATE_ERROR = 0.1
_ENDS_WITHIN_SEC = 15.0
_LEFT_BEHIND_SEC = 20.0
_LOOK_SEC = 0.25
_MOST_STATES = 100
START_FAILURES = (CoordinationError, StoreUnavailable, ConfigError)


@dataclass(frozen=True)
class Report:
    """How a run ended.

    Attributes:
        failure: what was broken, None for nothing.
        lines: the transcript, if it was wanted.
        settled_sec: how long it took after the last fault until all was well.
        steps, commits: callbacks that ran, and commits through the fence.
    """

    seed: int
    failure: str | None
    lines: list[str] = field(default_factory=list)
    settled_sec: float = 0.0
    steps: int = 0
    commits: int = 0
    counts: dict[str, int] = field(default_factory=dict)


class Simulation:
    """The world of one run. `run` does it all."""

    def __init__(
        self, seed: int, profile: Profile, *, broken: Iterable[str] = (), transcript: bool = False
    ) -> None:
        self.seed = seed
        self.profile = profile
        self.random = Random(seed)
        self.broken = frozenset(broken)
        self.scheduler = Scheduler(self.random)
        self.server = Server(
            self.scheduler, self.random, lambda rule: rule not in self.broken, profile.server
        )
        self.network = Network(self.scheduler, self.server, self.random)
        self.transcript = Transcript(lambda: self.scheduler.now, wanted=transcript)
        self.processes: list[Process] = []
        self.users: dict[Process, Users] = {}
        self.hosts = Hosts(self.scheduler, self.random)
        self.invariants = Invariants(self.processes, self.server, only_fenced=profile.by_session)
        # What a standby may know that has missed some commits: states of the tables, and of the
        # fences.
        self.states: deque[tuple[View, dict[int, tuple[int, UUID]]]] = deque(maxlen=_MOST_STATES)
        self.polling = self.random.choice(profile.polling)
        self.mix = Mix(profile, self.random)
        tables = self.server.tables
        tables.committed = replace(
            tables.committed, cluster=tables.committed.cluster._replace(**self.mix.first_bound())
        )
        self.config = CoordinationConfig(
            poll_interval_sec=0.5,
            total_tokens=profile.tokens,
            hash_function="modulo",
            heartbeat_interval_sec=1,
            heartbeat_timeout_sec=3,
            rebalance_check_interval_sec=1,
            handoff_timeout_sec=2,
            failover="session" if profile.by_session else "lease",
            keep_history_days=300 / 86_400,
        )
        self.faults = Faults(self)
        self._settled_sec = 0.0
        self.scheduler.after_step = self._after_step
        self.server.tables.on_commit = self._on_commit

    # -- watching ----------------------------------------------------------------------------------

    def _after_step(self, loop: ProcessLoop) -> None:
        process: Process = loop.process
        self.invariants.look_at(process)
        if self.invariants.violation is not None:
            raise self.invariants.violation
        if loop.errors or process.failures:
            self._unexpected(process)

    def _on_commit(self, tx: Transaction, before: View, after: View) -> None:
        self.transcript.committed(tx, before, after)
        self.invariants.committed(tx, before, after)
        if tx.written or tx.cluster is not None or tx.fenced:
            self.states.append((after, self.invariants.fences))

    @staticmethod
    def _unexpected(process: Process) -> None:
        if process.failures:
            raise Violation(f"{process.name}: {process.failures[0]!r}") from process.failures[0]
        context = process.loop.errors[0]
        raise Violation(
            f"{process.name}: asyncio reports {context.get('message')}: "
            f"{context.get('exception')!r}"
        )

    # -- processes ---------------------------------------------------------------------------------

    def process(self, name: str, times: Times | None = None) -> Process:
        """A new process, with nothing in it yet."""
        random = self.random
        rate = 1 + _MOST_RATE_ERROR * random.uniform(-1, 1)
        if self.profile.rates:
            rate = random.choice(self.profile.rates)
        loop = ProcessLoop(self.scheduler, name, offset=random.uniform(0, 1000), rate=rate)
        times = times or self.mix.of(name)
        process = Process(name, loop, self.network, times, self.transcript.note)
        self.hosts.begin(
            process,
            random.choice(self.profile.hosts) if self.profile.hosts else f"the host of {name}",
        )
        self.processes.append(process)
        self.users[process] = Users(process, random, self.config.total_tokens)
        process.trace(
            f"starts on {process.host} as {process.number.pid} (its clock runs at {rate:.3f}; "
            f"{times})"
        )
        return process

    def start(self, name: str, times: Times | None = None, *, old_library: bool = False) -> Process:
        """A new process, whose job starts at once."""
        process = self.process(name, times)
        process.old_library = old_library
        callback = self.users[process].on_rebalance if self.random.random() < 0.3 else None
        process.spawn("start", lambda: self.start_job(process, on_rebalance=callback))
        return process

    async def start_job(self, process: Process, **options: Any) -> None:
        """Make the job of a process, and start it. Runs in the process."""
        times = {
            "heartbeat_timeout_sec": process.times.timeout_sec,
            "heartbeat_interval_sec": process.times.interval_sec,
        }
        config = replace(self.config, notify=self.random.random() >= self.polling, **times)
        job = process.make_job(config, wait_on_enter=20, **options)
        try:
            await job.start()
            process.started = True
            process.trace("has started")
        except START_FAILURES as error:
            process.trace(f"could not start: {type(error).__name__}: {error}")
        finally:
            process.over = not process.started
            if process.over:
                self._ended(process)

    def leave(self, process: Process) -> None:
        """Stop the job in order."""
        if process.leaving or not process.started or process.loop.dead:
            return
        process.leaving = True
        process.trace("leaves")

        async def stop() -> None:
            assert process.job is not None
            try:
                await process.job.stop()
            except START_FAILURES as error:
                process.trace(f"ended with {type(error).__name__}")
            finally:
                process.over = True
                process.trace("has left")
                self._ended(process)

        process.spawn("stop", stop)

    def kill(self, process: Process) -> None:
        """End it without a word."""
        process.trace("is killed")
        process.loop.kill()
        for connection in list(process.connections):
            connection.hang_up()
        process.connections.clear()
        self._forget(process)

    def _forget(self, process: Process) -> None:
        self.hosts.ended(process)
        self.processes.remove(process)
        del self.users[process]
        self.invariants.forget(process)

    def _ended(self, process: Process) -> None:
        """The job is over. What its users still do ends by itself; then nothing may be left."""
        self.scheduler.after(_LEFT_BEHIND_SEC, self._look_for_leftovers, process)

    def _look_for_leftovers(self, process: Process) -> None:
        if process not in self.processes:
            return
        if process.loop.stopped and not process.loop.dead:
            self.scheduler.after(_LEFT_BEHIND_SEC, self._look_for_leftovers, process)
            return
        self.check_nothing_left(process)
        self._forget(process)

    def check_nothing_left(self, process: Process) -> None:
        """Raise Violation if an ended job left anything behind."""
        worker = process.worker
        left = [task.get_name() for task in process.loop.tasks()]
        if left:
            raise Violation(f"{process.name} has ended and left tasks: {left}")
        if process.connections:
            raise Violation(
                f"{process.name} has ended and left connections: "
                f"{[c.purpose[-12:] for c in process.connections]}"
            )
        if worker is not None and (worker.ownership._users or worker.ownership.holds_anything()):
            raise Violation(f"{process.name} has ended and still uses tokens")

    @property
    def running(self) -> list[Process]:
        """Processes that live, whose job has started and does not leave."""
        return [p for p in self.processes if p.started and not (p.leaving or p.over or p.loop.dead)]

    def end_failed_jobs(self) -> None:
        """A job that ended by itself is stopped, as an ``async with`` would."""
        for process in self.running:
            if process.job is not None and process.job._engine.failure is not None:
                failure = process.job._engine.failure
                # A server that was failed over to may not know yet that longer timeouts are
                # allowed.
                evicted = isinstance(failure, CoordinationError) and "was evicted" in str(failure)
                if not evicted and not isinstance(failure, (NodeNameTaken, ConfigError)):
                    raise Violation(f"{process.name} failed: {failure!r}") from failure
                self.leave(process)

    # -- the run -----------------------------------------------------------------------------------

    def run(self) -> Report:
        """Everything, from the first start to the last stop."""
        failure: str | None = None
        collecting = gc.isenabled()
        gc.disable()
        try:
            with ExitStack() as stack:
                stack.enter_context(logged(self.transcript))
                stack.enter_context(
                    installed(self.seed, lambda: self.scheduler.now, _own_clock, self.hosts)
                )
                stack.enter_context(nothing_starts_while_paused())
                try:
                    self._run()
                except (Violation, Livelock) as error:
                    failure = str(error)
                    self.transcript.note("FAILED", failure)
                finally:
                    for process in list(self.processes):
                        self.kill(process)
        finally:
            if collecting:
                gc.enable()
        scheduler, commits = self.scheduler, self.invariants.commits
        return Report(
            self.seed,
            failure,
            self.transcript.lines,
            self._settled_sec,
            scheduler.steps,
            commits,
            dict(self.faults.counts),
        )

    def _run(self) -> None:
        for name in self.profile.names[: self.random.randint(2, self.profile.first)]:
            self.start(name)
        if self.profile.script is not None:
            self._well()
            self.profile.script(self)
            self.calm()
        else:
            self.faults.begin()
            self.during_faults()
            self.faults.end()
        self._settle()
        if self.random.random() < 0.3:
            self._batch()
        self.stop_all()

    def _well(self) -> None:
        """Wait until all is well."""
        what = self._wait(self._unsettled, self.scheduler.now + self.profile.settles_within_sec)
        if what is not None:
            raise Violation(what)

    def during_faults(self) -> None:
        """Let things happen."""
        self.go(self.profile.fault_sec)

    def go(self, seconds: float) -> None:
        """Let time pass."""
        until = self.scheduler.now + seconds
        while self.scheduler.now < until:
            self.scheduler.run(min(until, self.scheduler.now + _LOOK_SEC))
            self.end_failed_jobs()

    def end_laggard(self) -> None:
        """Who kept the queue of notifications full is gone; it stays full until somebody asks."""
        self.server.laggard = False

    def calm(self) -> None:
        """No more faults: partitions heal, the server is up, messages arrive in time."""
        self.transcript.note("world", "is calm from now on")
        self.network.weather = Weather()
        self.scheduler.preemption = 0.0
        self.end_laggard()
        self.server.come_up()
        for process in self.processes:
            self.network.heal(process)

    def _settle(self) -> None:
        begun = max([self.scheduler.now, *(process.paused_until for process in self.processes)])
        self.go(begun - self.scheduler.now)
        self.go(1.0)  # what was held up arrives
        for process in self.running:
            users = self.users[process]
            process.spawn("clear", users.clear, public=False)
            if process.drained:
                process.spawn("undrain", users.undrain, public=False)
        what = self._wait(self._unsettled, begun + self.profile.settles_within_sec)
        self._settled_sec = self.scheduler.now - begun
        if what is not None:
            raise Violation(f"{self.profile.settles_within_sec:g} s after the last fault {what}")

    def _unsettled(self) -> str | None:
        """What is not well. Users end what they began: they clear their pins and take tokens
        again."""
        for process in self.running:
            users = self.users[process]
            view = self.server.tables.committed
            if view.lock:
                process.spawn("clear", users.clear, public=False)
            if view.cluster.paused_at is not None:
                process.spawn("resume", users.resume, public=False)
            for name in view.evicted:
                process.spawn("allow", partial(users.allow, name), public=False)
            if process.drained:
                process.drained = False
                process.spawn("undrain", users.undrain, public=False)
        if all(process.over or process.leaving for process in self.processes):
            self.start("z")
        return self.invariants.unsettled(self.config.total_tokens)

    def _wait(self, problem: Callable[[], str | None], until: float) -> str | None:
        """Go on until there is no problem; the problem that is left."""
        while (what := problem()) is not None and self.scheduler.now < until:
            self.go(_LOOK_SEC)
        return what

    def _batch(self) -> None:
        ids = [str(number) for number in range(2 * self.config.total_tokens)]
        busy = dict.fromkeys(self.running)
        for process in self.running:
            process.trace("runs a batch")

            async def batch(process: Process = process, users: Users = self.users[process]) -> None:
                await users.batch(ids)
                del busy[process]

            process.spawn("batch", batch, public=False)
        what = self._wait(
            lambda: f"{[p.name for p in busy]} are not done with their batch" if busy else None,
            self.scheduler.now + _ENDS_WITHIN_SEC,
        )
        done = {row[0] for row in self.server.tables.committed.audit.values()}
        if what is None and not done >= set(ids):
            what = f"the batch ended without {sorted(set(ids) - done)}"
        if what is not None:
            raise Violation(what)

    def stop_all(self) -> None:
        """Everybody leaves, in order; then nothing is left."""
        locked = {number for table, number in self.server.tables.locks if table == "token"}
        what = self._wait(self._not_over, self.scheduler.now + _ENDS_WITHIN_SEC)
        self.go(_LEFT_BEHIND_SEC + 1)
        view, server = self.server.tables.committed, self.server
        # Whoever left just after a failover could write nothing: the next to start waits, begins
        # anew, and frees all of it.
        begun_here = view.cluster.server_identity == f"{server.identity}/{TABLE_OID}"
        if what is None and begun_here and view.node:
            what = f"all have left, and the rows of {sorted(view.node)} are still there"
        # A token that a fence locked to the very end, be it on a connection that was cut off, keeps
        # the name of somebody who is gone: the next leader gives it away.
        fences = self.invariants.fences
        owned = [t for t in view.token.values() if t.node is not None and t.token_id not in locked]
        kept = [t for t in owned if fences.get(t.token_id) != (t.epoch, t.incarnation)]
        if what is None and begun_here and kept:
            what = "all have left, and tokens are still owned"
        if what is None and (server.sessions or server.tables.locks):
            what = (
                f"all have left, and {len(server.sessions)} sessions and "
                f"{len(server.tables.locks)} locks are still there"
            )
        if what is not None:
            raise Violation(what)

    def _not_over(self) -> str | None:
        for process in self.running:
            self.leave(process)
        return next(
            (f"{p.name} does not come to its end" for p in self.processes if not p.over), None
        )


def _own_clock() -> float:
    """The lease clock of the process that asks."""
    return asyncio.get_running_loop().time()


def run(
    seed: int, profile: Profile, *, broken: Iterable[str] = (), transcript: bool = False
) -> Report:
    """One run of one seed."""
    return Simulation(seed, profile, broken=broken, transcript=transcript).run()

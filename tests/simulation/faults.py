"""The faults: what goes wrong, how often, and for how long. All of it is the seed's choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from jobsync_async.core.lease import Times
from jobsync_async.core.server_profile import Profile as Kind
from tests.simulation.mixes import QUICK, SLOW, USUAL
from tests.simulation.network import Weather
from tests.simulation.statements import TABLE_OID
from tests.simulation.tables import CLUSTER, Cluster

if TYPE_CHECKING:
    from uuid import UUID

    from tests.simulation.process import Process
    from tests.simulation.simulation import Simulation
    from tests.simulation.tables import View

_WEIGHTS: Mapping[str, float] = {
    "use": 12,
    "pause": 2,
    "partition": 2,
    "kill": 0.7,
    "restart": 0.5,
    "impostor": 0.5,
    "leave": 1,
    "join": 6,
    "outage": 0.7,
    "failover": 0.5,
    "weather": 2,
    "session": 1,
    "cancel": 2,
    "drain": 1,
    "halt": 0.7,
    "evict": 0.7,
    "pin": 1,
    "forge": 0.7,
    "storm": 0.3,
    "bound": 0.5,
    "flood": 0.3,
}
GOOD = Weather()
ROUGH = Weather(0.003, 0.01, 0.03, 0.2, 0.05, 0.1, 0.1, 0.1, 0.05)
TERRIBLE = Weather(0.02, 0.04, 0.2, 0.3, 0.2, 0.2, 0.2, 0.3, 0.15)


@dataclass(frozen=True)
class Profile:
    """What a run is like.

    Attributes:
        fault_sec: for how many virtual seconds faults happen; every: the mean time between two.
        weights: how likely each fault is, relative to the others.
        spans: how long stops and partitions last, in timeouts; ways: which ways, out and in, a
            partition cuts.
        script: what happens, in place of chance; all is well when it begins.
        rates: what clocks run at; none for anything that is allowed.
        mixes: what times workers may have; a run takes one of them, and each of its processes one
            of that.
        times: those of processes of some names.
        settles_within_sec: after the last fault, all must be well within so long.
        weathers: what the network is like, in turn.
        hosts: where processes run, some of them together; none for each alone.
        polling: how likely a worker is not to listen but to poll; a run takes one of them.
        server: by what it is recognised, and so whether a failover loses commits.
        by_session: whether workers whose sessions are gone are taken for dead; then two may hold a
            token, and only what is fenced is safe.
        names: what processes may be called; first, most: how many there are at first at most, and
            ever.
    """

    tokens: int = 12
    fault_sec: float = 25.0
    every: float = 0.35
    names: tuple[str, ...] = ("a", "b", "c", "d", "e")
    first: int = 4
    most: int = 5
    hosts: tuple[str, ...] = ("here", "here", "there")
    polling: tuple[float, ...] = (0, 0, 0, 0.5, 1)
    server: Kind = "timeline"
    by_session: bool = False
    weights: Mapping[str, float] = field(default_factory=lambda: _WEIGHTS)
    weathers: tuple[Weather, ...] = (GOOD, ROUGH, ROUGH, TERRIBLE)
    spans: tuple[float, ...] = (0.1, 0.5, 0.6, 0.8, 1.0, 1.3, 2.5)
    script: Callable[[Simulation], None] | None = None
    ways: tuple[tuple[bool, bool], ...] = ((True, True), (True, True), (True, False), (False, True))
    rates: tuple[float, ...] = ()
    mixes: tuple[tuple[Times, ...], ...] = (
        (USUAL,),
        (USUAL,),
        (USUAL, QUICK),
        (USUAL, SLOW),
        (QUICK, SLOW),
    )
    times: Mapping[str, Times] = field(default_factory=dict)
    settles_within_sec: float = 30.0

    def but(self, **weights: float) -> Profile:
        """The same with other weights for some faults."""
        return replace(self, weights={**self.weights, **weights})


BY_SESSION = Profile(by_session=True, polling=(0,))


class Faults:
    """Lets one happen now and then. Each method `_name` is a fault, listed in `Profile.weights`."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._scheduler = simulation.scheduler
        self._random = simulation.random
        self._on = False
        self._ancestors: list[tuple[View, dict[int, tuple[int, UUID]]]] = []
        self.counts: Counter[str] = Counter()

    def begin(self) -> None:
        self._on = True
        self._scheduler.preemption = 0.01
        self._simulation.network.weather = self._random.choice(self._simulation.profile.weathers)
        self._next()

    def end(self) -> None:
        self._on = False
        self._simulation.calm()

    def _next(self) -> None:
        self._scheduler.after(
            self._random.expovariate(1 / self._simulation.profile.every), self._happen
        )

    def _happen(self) -> None:
        if not self._on:
            return
        weights = self._simulation.profile.weights
        (kind,) = self._random.choices(list(weights), list(weights.values()))
        process = self._random.choice(running) if (running := self._simulation.running) else None
        if getattr(self, f"_{kind}")(process) is not False:
            self.counts[kind] += 1
        self._next()

    def _trace(self, who: str, what: str) -> None:
        self._simulation.transcript.note(who, what)

    def _seconds(self) -> float:
        """A time that may be short, about a lease, about a timeout, or long."""
        timeout = self._simulation.config.heartbeat_timeout_sec
        return (
            self._random.choice(self._simulation.profile.spans)
            * timeout
            * self._random.uniform(0.8, 1.2)
        )

    # -- processes ---------------------------------------------------------------------------------

    def _use(self, process: Process | None) -> bool | None:
        if process is None:
            return False
        process.spawn(*self._simulation.users[process].some())
        return None

    def _pause(self, process: Process | None) -> bool | None:
        if process is None:
            return False
        seconds = self._seconds()
        process.trace(f"is stopped for {seconds:.2f} s")
        process.paused_until = self._scheduler.now + seconds
        process.loop.stop_for(seconds)
        return None

    def _kill(self, process: Process | None) -> bool | None:
        if process is None:
            return False
        self._simulation.kill(process)
        if self._random.random() < 0.5:
            self._start_later(process.name, self._random.choice((0.1, 2, 5)))
        return None

    def _restart(self, process: Process | None) -> bool | None:
        """Killed, and started again under its name at once."""
        if process is None:
            return False
        self._simulation.kill(process)
        self._start_later(process.name, 0.1)
        return None

    def _impostor(self, process: Process | None) -> bool | None:
        """It stands still, and somebody takes it for dead and starts another one under its name."""
        if process is None:
            return False
        timeout = self._simulation.config.heartbeat_timeout_sec
        seconds = timeout * self._random.uniform(0.9, 3)
        process.trace(f"is stopped for {seconds:.2f} s, and another one is started under its name")
        if self._random.random() < 0.5:
            process.paused_until = self._scheduler.now + seconds
            process.loop.stop_for(seconds)
        else:
            self._cut(process, seconds)
        self._start_later(process.name, self._random.uniform(0, 1))
        return None

    def _start_later(self, name: str, seconds: float) -> None:
        self._scheduler.after(seconds, lambda: self._simulation.start(name) if self._on else None)

    def _leave(self, process: Process | None) -> bool | None:
        if process is None or (len(self._simulation.running) == 1 and self._random.random() < 0.8):
            return False
        self._simulation.leave(process)
        if self._random.random() < 0.3:
            self._start_later(process.name, self._random.uniform(0, 1))
        return None

    def _join(self, _: Process | None) -> bool | None:
        there = {process.name for process in self._simulation.processes}
        free = [name for name in self._simulation.profile.names if name not in there]
        if not free or len(there) >= self._simulation.profile.most:
            return False
        self._simulation.start(self._random.choice(free))
        return None

    # -- network and server ------------------------------------------------------------------------

    def _partition(self, process: Process | None) -> bool | None:
        if process is None:
            return False
        self._cut(process, self._seconds())
        return None

    def _cut(self, process: Process, seconds: float) -> None:
        outwards, inwards = self._random.choice(self._simulation.profile.ways)
        process.trace(f"is cut off for {seconds:.2f} s (out {outwards}, in {inwards})")
        network = self._simulation.network
        network.cut(process, outwards=outwards, inwards=inwards)
        self._scheduler.after(seconds, network.heal, process)

    def _outage(self, _: Process | None) -> bool | None:
        server = self._simulation.server
        if not server.up:
            return False
        seconds = self._random.choice((0.1, 0.5, 1, 4)) * self._random.uniform(0.5, 1.5)
        self._trace("server", f"is down for {seconds:.2f} s")
        server.go_down()
        self._scheduler.after(seconds, server.come_up)
        return None

    def _failover(self, _: Process | None) -> bool | None:
        """A standby takes over that has missed some commits; sometimes another one of those that
        the last time there were, so that the two have one identity."""
        if not self._simulation.server.up or not self._simulation.states:
            return False
        crash = self._random.random() < 0.5
        seconds = self._random.choice((0, 0.3, 2)) * self._random.random()
        if self._simulation.server.kind == "shared-storage":
            self.fail_over(self._simulation.states[-1], seconds, crash=crash)
            return None
        if self._ancestors and self._random.random() < 0.4:
            self.fail_over(self._random.choice(self._ancestors), seconds, crash=crash, sibling=True)
        else:
            states = self._simulation.states
            lost = min(self._random.choice((0, 1, 2, 5, 20)), len(states) - 1)
            self.fail_over(states[-1 - lost], seconds, crash=crash)
        return None

    def fail_over(
        self,
        state: tuple[View, dict[int, tuple[int, UUID]]],
        seconds: float,
        *,
        crash: bool = False,
        sibling: bool = False,
    ) -> None:
        """A standby takes over that knows this state; a `sibling` is one that was promoted from the
        same server as the last."""
        simulation, server = self._simulation, self._simulation.server
        before = server.tables.committed.cluster.version
        self._trace(
            "server",
            f"fails over from version {before} to {state[0].cluster.version} in {seconds:.2f} s",
        )
        server.go_down(crash=crash)
        if not sibling:
            self._ancestors = list(simulation.states)
        simulation.states.clear()
        simulation.states.append(state)
        server.become(state[0], server.timeline + (not sibling))
        if server.kind != "shared-storage":
            simulation.invariants.failed_over(state[1])
        self._scheduler.after(seconds, server.come_up)

    def _bound(self, _: Process | None) -> bool | None:
        """An operator raises the bound on timeouts to what the longest needs, or lowers it to what
        is left of them."""
        longest, here = self._simulation.mix.longest, self._locked_cluster(None)
        if here is None:
            return False
        if here.longest_allowed is not None and here.longest_allowed < longest:
            self.raise_bound(longest, self._random.uniform(0, 3))
            return None
        left = max(
            (
                node.timeout_sec or longest
                for node in self._simulation.server.tables.committed.node.values()
            ),
            default=longest,
        )
        if left < longest:
            self._write_bound(longest_wait=left, longest_allowed=left)
        return None

    def raise_bound(self, longest: float, seconds: float = 0.0) -> None:
        """Raise it; the standbys know of that after so many seconds."""
        self._write_bound(longest_wait=longest)
        if self._simulation.server.keeps("the bound is raised in two steps"):
            self._scheduler.after(seconds, self._allow, longest)
        else:
            self._write_bound(longest_allowed=longest)

    def _allow(self, longest: float) -> None:
        """The standbys know of the raised bound: none is promoted any more that does not."""
        here = self._locked_cluster(longest)
        if here is None:
            return
        simulation = self._simulation
        known = [
            state for state in simulation.states if (state[0].cluster.longest_wait or 0) >= longest
        ]
        simulation.states.clear()
        simulation.states.extend(known)
        self._ancestors = [
            state for state in self._ancestors if (state[0].cluster.longest_wait or 0) >= longest
        ]
        self._write_bound(longest_allowed=longest)

    def _locked_cluster(self, longest_wait: float | None) -> Cluster | None:
        """The cluster's row, if it is sound, nobody has locked it, and it has this bound."""
        server = self._simulation.server
        cluster = server.tables.committed.cluster
        sound = (
            server.up
            and cluster.server_identity == f"{server.identity}/{TABLE_OID}"
            and CLUSTER not in server.tables.locks
        )
        return cluster if sound and longest_wait in (None, cluster.longest_wait) else None

    def _write_bound(self, **values: float) -> None:
        self._trace("operator", f"sets {values}")
        tx = self._simulation.server.tables.begin()
        assert tx.try_lock(CLUSTER, "update")
        tx.update(**values)
        tx.commit()

    def _weather(self, _: Process | None) -> None:
        network = self._simulation.network
        network.weather = self._random.choice(self._simulation.profile.weathers)
        self._trace("network", f"weather: {network.weather}")

    def _session(self, process: Process | None) -> bool | None:
        """The server ends a session."""
        sessions = [
            session
            for session in self._simulation.server.sessions
            if session.client.process is process
        ]
        if not sessions:
            return False
        session = self._random.choice(sessions)
        self._trace("server", f"ends a session of {session.client.process.name}")
        session.end()
        return None

    def _forge(self, process: Process | None) -> None:
        """Somebody else announces nonsense."""
        payload = self._random.choice(
            (
                "junk",
                "",
                "9" * 15,
                str(self._simulation.server.tables.committed.cluster.version + 3),
            )
        )
        self._trace("forger", f"announces {payload!r}")
        self._simulation.server.announce([payload] * 3)

    def _flood(self, _: Process | None) -> None:
        """Somebody listens, stays in a transaction, and lets the queue of notifications fill up."""
        server = self._simulation.server
        server.laggard = server.queue_full = True
        self._trace("server", "cannot announce anything")
        self._scheduler.after(self._random.uniform(0.2, 8), self._simulation.end_laggard)

    # -- users -------------------------------------------------------------------------------------

    def _cancel(self, process: Process | None) -> bool | None:
        """Cancel a public coroutine, wherever it is."""
        tasks = [
            (p, name, task) for p in self._simulation.processes for name, task in p.public.items()
        ]
        if not tasks:
            return False
        process, name, task = self._random.choice(tasks)
        process.trace(f"{name} is cancelled")
        process.loop.call_soon(task.cancel)
        return None

    def _drain(self, process: Process | None) -> bool | None:
        if process is None:
            return False
        process.spawn("drain", self._simulation.users[process].drain)
        return None

    def _halt(self, process: Process | None) -> bool | None:
        """Somebody pauses the cluster for a while."""
        if process is None:
            return False
        process.spawn("halt", self._simulation.users[process].halt)
        return None

    def _evict(self, process: Process | None) -> bool | None:
        """Somebody evicts a worker, and most often allows it again."""
        if process is None:
            return False
        name = self._random.choice(self._simulation.profile.names)
        process.spawn("evict", lambda: self._simulation.users[process].evict(name))
        return None

    def _pin(self, process: Process | None) -> bool | None:
        if process is None:
            return False
        process.spawn("pin", self._simulation.users[process].pin)
        return None

    def _storm(self, process: Process | None) -> None:
        """Many users at once."""
        for other in self._simulation.running:
            for _ in range(4):
                self._use(other)

"""A long run: random joins, leaves, kills and stops for hours, and a look now and then that nothing
piles up."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace

from jobsync_async.tasks.worker import Worker
from tests.simulation.driver import Connection
from tests.simulation.faults import GOOD, ROUGH, Profile
from tests.simulation.scheduler import NumberedTask
from tests.simulation.simulation import Report, Simulation

# Faults come more slowly than in short runs, so that the cluster is well in between, and every kind
# comes hundreds of times.
_EVERY_SEC = 4.0
_LOOKS = 8


@dataclass(frozen=True)
class Counts:
    """What is alive at one moment: objects of Python, workers, tasks and connections that are still
    referred to, open sessions, locks, and rows of workers."""

    at_sec: float
    objects: int
    workers: int
    tasks: int
    connections: int
    sessions: int
    locks: int

    def __str__(self) -> str:
        return (
            f"{self.at_sec / 3600:6.2f} h: {self.objects:,} objects, {self.workers} workers, "
            f"{self.tasks} tasks, {self.connections} connections, {self.sessions} sessions, "
            f"{self.locks} locks"
        )


class _Soak(Simulation):
    def __init__(self, seed: int, profile: Profile, tell: Callable[[str], object]) -> None:
        super().__init__(seed, profile)
        self.looks: list[Counts] = []
        self._tell = tell

    def during_faults(self) -> None:
        for _ in range(_LOOKS):
            self.go(self.profile.fault_sec / _LOOKS)
            self.looks.append(self._count())
            self._tell(str(self.looks[-1]))

    def _count(self) -> Counts:
        gc.collect()
        objects = gc.get_objects()

        def alive(kind: type) -> int:
            return sum(isinstance(thing, kind) for thing in objects)

        server = self.server
        return Counts(
            self.scheduler.now,
            len(objects),
            alive(Worker),
            alive(NumberedTask),
            alive(Connection),
            len(server.sessions),
            len(server.tables.locks),
        )


def soak(seed: int, hours: float, tell: Callable[[str], object]) -> str | None:
    """One long run; what was broken or piled up, None for nothing."""
    profile = replace(
        Profile(every=_EVERY_SEC, weathers=(GOOD, GOOD, ROUGH)), fault_sec=hours * 3600
    )
    simulation = _Soak(seed, profile, tell)
    report: Report = simulation.run()
    failure = report.failure or _piled_up(simulation.looks)
    tell(
        f"seed {seed}: {report.steps:,} steps, {report.commits:,} commits through the fence, "
        f"{report.counts}"
    )
    tell(f"seed {seed}: {failure or 'all promises were kept, and nothing piled up'}")
    return failure


def _piled_up(looks: list[Counts]) -> str | None:
    """The second half must not have more of anything than the first, but for what comes and
    goes."""
    half = len(looks) // 2
    for name in ("objects", "workers", "tasks", "connections", "sessions", "locks"):
        early = max(getattr(look, name) for look in looks[:half])
        late = min(getattr(look, name) for look in looks[half:])
        if late > 1.2 * early + 20:
            return (
                f"{name} pile up: at most {early} in the first half, at least {late} in the second"
            )
    return None

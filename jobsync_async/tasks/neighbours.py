"""The neighbours task: sees at once when the process of another worker on this host is dead, and
takes it out of the cluster.

Nothing is polled. Which workers there are comes with the readings of the own tokens; that a process
ended makes its descriptor readable. A death is a fact and needs no office: whoever sees it writes
it down, also when it is the leader that died.
"""

from __future__ import annotations

import asyncio
import os
import random
from functools import partial

from jobsync_async.core.neighbours import dead_workers, next_in_ring, visible
from jobsync_async.core.rows import Neighbour, Process
from jobsync_async.errors import StoreError
from jobsync_async.host.logs import WorkerLog
from jobsync_async.host.process import has_ended, open_process, why_unwatchable
from jobsync_async.host.waiting import signalled
from jobsync_async.postgres.deaths import Deaths
from jobsync_async.tasks.outages import DEATHS
from jobsync_async.tasks.worker import Worker

_MOST_SHOWN = 10


class NeighbourWatch:
    """The task's state. `run` is the task."""

    def __init__(self, worker: Worker, deaths: Deaths) -> None:
        self._worker = worker
        self._log = WorkerLog(__name__, worker.identity.name)
        self._deaths = deaths
        self._watched: dict[Process, int] = {}
        self._dead: set[Process] = set()
        self._reported: set[Neighbour] = set()
        self._said: set[str] = set()

    async def run(self) -> None:
        """Watch, for ever. Returns at once where processes cannot be watched: deaths are then
        noticed by their silence."""
        worker = self._worker
        why = why_unwatchable(worker.announcement)
        if why is not None:
            self._say_once(f"workers on this host cannot watch each other's processes: {why}")
            return
        failures = 0
        try:
            while True:
                patience = float("inf")
                try:
                    if dead := self._watch_ring():
                        await self._report(dead)
                    if failures:  # or somebody else has reported it
                        failures = 0
                        worker.outages.succeeded(DEATHS)
                except StoreError as error:
                    failures += 1
                    # a jitter
                    patience = worker.outages.wait_after(DEATHS, error, failures, random.random())  # noqa: S311
                await signalled(worker.neighbours_wanted, patience)
        finally:
            for process in tuple(self._watched):
                self._forget(process)

    def _watch_ring(self) -> list[Neighbour]:
        """Watch those that are next in the ring; the dead that are to be reported."""
        worker = self._worker
        ring = [
            neighbour for neighbour in worker.neighbours if visible(worker.announcement, neighbour)
        ]
        if len(ring) < len(worker.neighbours):
            self._say_once(
                "some workers on this machine have another namespace or host name and cannot be "
                "watched"
            )
        self._dead &= {neighbour.process for neighbour in ring if neighbour.process is not None}
        for process, descriptor in self._watched.items():
            if has_ended(descriptor):
                self._dead.add(process)
        own = (worker.announcement.pid, worker.announcement.process_started)
        blind: set[Process] = set()
        while True:
            wanted = {
                n.process
                for n in next_in_ring(ring, worker.identity.incarnation, self._dead | blind)
                if n.process
            }
            new = wanted - self._watched.keys() - {own}
            if not new:
                break
            for process in new:
                self._watch(process, blind)
        for process in self._watched.keys() - wanted:
            self._forget(process)
        self._reported &= set(ring)
        return [
            neighbour
            for neighbour in dead_workers(ring, self._dead)
            if neighbour not in self._reported
        ]

    def _watch(self, process: Process, blind: set[Process]) -> None:
        try:
            descriptor = open_process(process)
        except ProcessLookupError:
            self._dead.add(process)
        except OSError as error:
            blind.add(process)
            self._say_once(f"a process on this host cannot be watched: {error.strerror}")
        else:
            self._watched[process] = descriptor
            asyncio.get_running_loop().add_reader(descriptor, partial(self._ended, descriptor))

    def _ended(self, descriptor: int) -> None:
        # Or it would be called at every turn of the loop.
        asyncio.get_running_loop().remove_reader(descriptor)
        self._worker.neighbours_wanted.set()

    def _forget(self, process: Process) -> None:
        descriptor = self._watched.pop(process)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)

    async def _report(self, dead: list[Neighbour]) -> None:
        worker = self._worker
        deleted = await self._deaths.report(dead)
        self._reported |= set(dead)
        worker.metrics.deaths_reported += len(deleted)
        if deleted:
            shown = ", ".join(deleted[:_MOST_SHOWN]) + (
                " and others" if len(deleted) > _MOST_SHOWN else ""
            )
            self._log.warning(
                "dead, for the process on this host has ended: %s (%d)",
                shown,
                len(deleted),
                dead=deleted,
            )

    def _say_once(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            timeout = self._worker.config.heartbeat_timeout_sec
            self._log.info("%s; if one dies, that is noticed after %g s", what, timeout)

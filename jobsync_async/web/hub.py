"""Looks at the cluster for all viewers at once, and tells each what is new.

One observer listens, however many look on. A change is looked at when it is told of. What nothing
tells of, as heartbeats, is found by one small statement every two or three seconds. While nobody
looks on, there is no connection at all.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio

from jobsync_async.config import CoordinationConfig
from jobsync_async.errors import ConfigError, JobSyncError, StoreError, StoreUnavailable
from jobsync_async.host.task_groups import task_group
from jobsync_async.observer import Observer, store_of
from jobsync_async.operations.history import history
from jobsync_async.operations.survey import survey
from jobsync_async.postgres.status import Pulse
from jobsync_async.postgres.store import Store
from jobsync_async.web import view as views
from jobsync_async.web.changes import Frame, Render
from jobsync_async.web.channel import HERE, RELOAD, Channel
from jobsync_async.web.picture import Picture
from jobsync_async.web.runs import RunLooks

PULSE_SEC = 2.4
_GAP_SEC = 0.1  # between two looks, while much happens
_PATIENCE_SEC = 5.0  # for the first look
_LINGER_SEC = 15.0  # after the last viewer
_AWAY_SEC = 0.5  # between two looks whether the server is back
_AWAY = "PostgreSQL cannot be reached; this page goes on by itself when it can"
_ANEW_SEC = (0.5, 5.0)
_ALIVE_SEC = 2.0  # viewers hear at least so often
MOST_EVENTS = 100


class Hub:
    """Everything that viewers share. Used in one event loop.

    Args:
        renders: for each channel, how its parts become HTML.
        linger_sec: for so long it goes on after the last viewer.
    """

    def __init__(
        self,
        config: CoordinationConfig,
        renders: Mapping[str, Render],
        *,
        linger_sec: float = _LINGER_SEC,
    ) -> None:
        self.boot: str = os.urandom(4).hex()
        self.channels: dict[str, Channel] = {
            name: Channel(render) for name, render in renders.items()
        }
        self.picture: Picture = Picture()
        self.overview: views.Overview | None = None
        self.away: str | None = None
        self._config = config
        self._linger_sec = linger_sec
        self._moves: deque[views.Move] = deque(maxlen=views.MOST_MOVES)
        self.runs: RunLooks = RunLooks()
        self._cluster: Observer | None = None
        self._task: asyncio.Task[None] | None = None
        self._looking = asyncio.Lock()
        self._wake = asyncio.Event()
        self._first = asyncio.Event()
        self._wanted = True
        self._digest: int | None = None
        self._asked = 0.0
        self.closing: bool = False

    # -- for those who ask -------------------------------------------------------------------------

    async def store(self) -> Store:
        """The cluster's statements. Raises StoreUnavailable, SchemaError or ConfigError."""
        await self.ready()
        if self._cluster is None or self.away is not None:
            raise StoreUnavailable(self.away or _AWAY)
        return store_of(self._cluster)

    async def look(self) -> None:
        """Look now, so that the overview shows what somebody did a moment ago. Where the server is
        away it stays as it was."""
        await self.ready()
        if self._cluster is not None and self.away is None:
            try:
                await self._look(store_of(self._cluster))
            except StoreError as error:
                self._is_away(error)

    async def ready(self) -> None:
        """Go on looking for a while, and wait for the first look, or for why there is none."""
        self._asked = time.monotonic()
        if self._task is None or self._task.done():
            self._first.clear()
            self._wanted = True
            self._task = asyncio.create_task(self._run(), name="jobsync_async page")
        with anyio.move_on_after(_PATIENCE_SEC):
            await self._first.wait()

    def beat(self, number: int) -> float | None:
        """When the last heartbeat of a worker was, as far as is known. No I/O."""
        return None if self.overview is None else self.overview.beats.get(number)

    async def follow(self, name: str, since: str | None) -> AsyncIterator[bytes]:
        """The events of a channel after message `since`, as they come."""
        channel = self.channels[name]
        await self.ready()
        boot, _, number = (since or "").partition(".")
        at = int(number) if boot == self.boot and number.isdigit() else -1
        channel.viewers += 1
        try:
            yield b"retry: 1000\n\n"
            while not (self.closing or _server_stops()):
                messages = channel.after(at)
                if messages is None:
                    yield RELOAD
                    return
                for at, data in messages:  # noqa: B007 - kept for the next turn
                    yield data
                if messages:
                    continue
                told = channel.changed
                with anyio.move_on_after(_ALIVE_SEC):
                    await told.wait()
                    continue
                yield HERE
        finally:
            channel.viewers -= 1
            self._asked = time.monotonic()

    async def close(self) -> None:
        """End all streams and every connection."""
        self.closing = True
        for channel in self.channels.values():
            channel.tell()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    # -- looking -----------------------------------------------------------------------------------

    async def _run(self) -> None:
        failures = 0
        while self._is_wanted():
            try:
                async with Observer(self._config, name="page") as cluster:
                    self._cluster, failures = cluster, 0
                    try:
                        await self._watch(cluster, store_of(cluster))
                    finally:
                        self._cluster = None
            except (StoreError, ConfigError) as error:
                self._is_away(error)
                self._first.set()
                failures += 1
                await asyncio.sleep(min(_ANEW_SEC[0] * 2**failures, _ANEW_SEC[1]))

    def _is_wanted(self) -> bool:
        viewers = any(channel.viewers for channel in self.channels.values())
        return viewers or time.monotonic() < self._asked + self._linger_sec

    async def _watch(self, cluster: Observer, store: Store) -> None:
        async with task_group() as group:
            group.start_soon(self._listen, cluster)
            while self._is_wanted():
                try:
                    if not cluster.connected:  # it notices sooner than a statement would fail
                        raise StoreUnavailable(_AWAY)
                    await self._look(store)
                    self._show_banner(None)
                except StoreError as error:
                    self._is_away(error)
                self._first.set()
                await asyncio.sleep(_GAP_SEC)
                with anyio.move_on_after(PULSE_SEC if self.away is None else _AWAY_SEC):
                    await self._wake.wait()
                self._wake.clear()
            group.cancel_scope.cancel()

    async def _look(self, store: Store) -> None:
        """A small look, and if something happened a whole one."""
        async with self._looking:
            pulse = await store.status.pulse()
            view = self.overview
            whole = (
                self._wanted
                or view is None
                or (pulse.version, pulse.digest) != (view.facts.version, self._digest)
            )
            self._wanted, self._digest = False, pulse.digest
            if self.runs.due(time.monotonic(), whole=whole):
                await self.look_at_runs(store)
            if whole:
                seen, now = await survey(store, known=self.runs.known), time.time()
                self.overview = views.overview(seen, now, self.picture.colour)
                self._show_overview(now)
                if self.channels["history"].viewers:
                    await self.look_at_history(store)
            else:
                self._show_beats(pulse)

    async def _listen(self, cluster: Observer) -> None:
        async for change in cluster.changes():
            before = self.picture.total
            told = self.picture.apply(change.moved, change.workers)
            now = time.time()
            if before and (move := views.move(now, told.moves)):
                self._moves.appendleft(move)
            self._wanted = True
            if self.overview is not None:
                more: dict[str, Any] = {"cells": told.cells} if told.cells else {}
                if self.picture.total != before:
                    more = {"reload": True}  # a picture of another size
                self._show_overview(now, more)
            self._wake.set()

    # -- showing -----------------------------------------------------------------------------------

    def _show_overview(self, now: float, more: Mapping[str, Any] = {}) -> None:
        view = self.overview
        assert view is not None
        parts = {
            "banner": self.away,
            "problems": view.problems,
            "facts": view.facts,
            "moves": tuple(self._moves),
            "handoffs": view.handoffs,
            "steering": (view.facts.paused, view.evicted),
        }
        lists = {"workers": {str(number): one for number, one in view.workers.items()}}
        channel = self.channels["overview"]
        channel.show(Frame(parts, lists), now, self.boot, more)

    def _show_beats(self, pulse: Pulse) -> None:
        assert self.overview is not None
        now = time.time()
        ages = views.ages(pulse.numbers, pulse.ages)
        self.overview = views.beaten(self.overview, ages, now, self.runs.known)
        tenths = [round(10 * ages.get(number, 0.0)) for number in self.overview.workers]
        viewers = self.channels["overview"].viewers
        self._show_overview(now, {"beats": tenths} if viewers else {})

    async def look_at_runs(self, store: Store) -> None:
        """Show how far the runs of batches are."""
        await self.runs.look(store, time.monotonic())
        runs = {run.key: run for run in self.runs.shown}
        frame = Frame({"banner": self.away}, {"runs": runs})
        self.channels["batches"].show(frame, time.time(), self.boot)

    async def look_at_history(self, store: Store) -> None:
        """Show what happened last."""
        events = views.history(await history(store, MOST_EVENTS), MOST_EVENTS)
        frame = Frame({"banner": self.away}, {"events": {event.key: event for event in events}})
        self.channels["history"].show(frame, time.time(), self.boot)

    def _is_away(self, error: JobSyncError) -> None:
        self._wanted = True
        self._show_banner(str(error))

    def _show_banner(self, text: str | None) -> None:
        if self.away == text:
            return
        self.away = text
        now = time.time()
        for channel in self.channels.values():
            frame = channel.frame
            parts = {**frame.parts, "banner": text}
            channel.show(Frame(parts, frame.lists), now, self.boot)


def _server_stops() -> bool:
    """Whether uvicorn, if this runs in it, was told to end: it waits for streams, and tells them
    nothing."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return bool(getattr(server, "should_exit", False))

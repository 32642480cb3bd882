"""Whose database session is gone for good, as a watcher can tell. Pure: time is an argument.

A lock that is absent counts as a death only if all of this holds:

* the watcher has seen this worker's lock held, in the session and on the server that it has now;
* the lock was seen absent for the whole grace, at the same beat, with no gap between the watcher's
  own readings;
* its own session, and the server, are the very same all the time. A server that restarted has
  ended all sessions, and one that failed over has none of them: then nobody is missed.

A worker holds a lock in the session that carries its heartbeats. That the lock is gone says that
the session is gone, and that the worker is probably dead: a worker that lives connects again at
once and takes the lock anew. It is no proof.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from jobsync_async.core.lease import Beat


class WatcherSession(NamedTuple):
    """What a reading of sessions stands on: the start of the server, and the watcher's own session
    there."""

    server_started: dt.datetime
    pid: int
    backend_start: dt.datetime


class Session(NamedTuple):
    """A worker, the tag of its sessions, and whether its lock is held."""

    beat: Beat
    session_tag: str | None
    held: bool


@dataclass(frozen=True, slots=True)
class SessionReading:
    """All workers and their locks at one moment."""

    watcher: WatcherSession
    sessions: Sequence[Session]


class SessionWatch:
    """What one watcher has seen.

    Args:
        grace_sec: how long a lock must be absent.
        gap_sec: a watcher that read nothing for longer than this begins the grace anew.
    """

    def __init__(self, grace_sec: float, gap_sec: float) -> None:
        self.grace_sec = grace_sec
        self.gap_sec = gap_sec
        self.watcher: WatcherSession | None = None
        self._held: set[UUID] = set()
        self._absent: dict[Session, float] = {}
        self._read_at = float("-inf")

    @property
    def watched(self) -> int:
        """How many workers would be missed."""
        return len(self._held)

    def observe(self, reading: SessionReading, now: float) -> None:
        """Take in a reading; `now` is when it arrived."""
        if reading.watcher != self.watcher:
            self.forget()
            self.watcher = reading.watcher
        known = self._absent if now - self._read_at <= self.gap_sec else {}
        sessions = reading.sessions
        held = {session.beat.incarnation for session in sessions if session.held}
        there = {session.beat.incarnation for session in sessions}
        self._held = held | (self._held & there)
        absent = [
            session
            for session in sessions
            if not session.held and session.beat.incarnation in self._held
        ]
        self._absent = {session: known.get(session, now) for session in absent}
        self._read_at = now

    def forget(self) -> None:
        """Start anew: nobody is missed who was not seen before."""
        self.watcher = None
        self._held, self._absent = set(), {}

    def gone(self, now: float) -> list[Session]:
        """Workers whose lock has been absent for the grace. Ask right after `observe`, with the
        same `now`."""
        return [session for session, since in self._absent.items() if now - since >= self.grace_sec]

    def next_due(self) -> float:
        """When the first absent one reaches the grace; infinity when none is."""
        return min(self._absent.values(), default=float("inf")) + self.grace_sec

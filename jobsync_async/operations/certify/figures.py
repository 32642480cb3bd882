"""What certify measures, as plain values. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from jobsync_async.config import CoordinationConfig

STRENGTHS = ("KEY SHARE", "SHARE", "NO KEY UPDATE", "UPDATE")
"""Of a row's lock, the weakest first."""
_TRIPS = 20
"""As many round trips a reaction takes at most."""


class Latency(NamedTuple):
    """How long something took that was done many times; seconds."""

    times: int
    p50: float
    p99: float
    most: float

    @classmethod
    def of(cls, samples: Collection[float]) -> Latency:
        """Of one sample or more. Of fewer than a hundred, `p99` is the longest."""
        ordered = sorted(samples)

        def rank(part: float) -> float:
            return ordered[math.ceil(part * len(ordered)) - 1]

        return cls(len(ordered), rank(0.5), rank(0.99), ordered[-1])

    def plain(self) -> dict[str, float | int]:
        """As JSON can hold it."""
        return {
            "times": self.times,
            "p50_ms": round(1000 * self.p50, 3),
            "p99_ms": round(1000 * self.p99, 3),
            "most_ms": round(1000 * self.most, 3),
        }


class ClockReading(NamedTuple):
    """One look at three clocks: ours that is never set, ours that shows the time of day, and the
    server's, in the middle of a round trip."""

    steady: float
    wall: float
    server: float
    trip_sec: float


@dataclass(frozen=True)
class Pushes:
    """Notifications, there and back. `latency` is None if none came.

    Attributes:
        lost: how many of those that were sent did not come.
        undone: how many came of a transaction that was rolled back.
    """

    latency: Latency | None
    lost: int = 0
    undone: int = 0


@dataclass(frozen=True)
class Waits:
    """What a statement does that meets another's lock.

    Attributes:
        waited: the second one waited for the first's commit.
        deleted: rows that it deleted by a condition that held before that commit, and not after.
        reread: a row that was waited for was shown as it was after the commit.
        seen: the next statement saw what had been committed meanwhile.
        skipped: SKIP LOCKED passed over the row that was locked, and over no other.
        steady: in one snapshot, a row that was changed meanwhile was shown unchanged.
    """

    waited: bool
    deleted: int
    reread: bool
    seen: bool
    skipped: bool
    steady: bool


@dataclass(frozen=True)
class Keys:
    """Advisory locks.

    Attributes:
        exclusive: one holder keeps others out, those that share too.
        shared: holders that share keep out only whoever wants it alone.
        ended: the end of the transaction gives it back.
        session: one of a session is given back when that ends; None where that was not tried.
    """

    exclusive: bool
    shared: bool
    ended: bool
    session: bool | None


@dataclass(frozen=True)
class TimeOut:
    """A time-out that was set, and after how long the server acted on it; None: not at all."""

    setting: str
    set_sec: float
    took_sec: float | None


@dataclass(frozen=True)
class Fencing:
    """A worker that stood still in the midst of two transactions, one with a fence and one without,
    until others had its tokens.

    Attributes:
        moved_sec: until these had all tokens but the fenced one; None: never.
        kept: the fenced token stayed the worker's, as long as its transaction was open.
        stale_rows: rows that the other's fence found in the end: none, if it is refused.
        committed: which of the two transactions were committed.
        passed_sec: from the first's commit until others had its token too; None: never.
        epochs_rose: both tokens have higher epochs than the worker had.
        back_sec: until the worker had its share again; None: never.
    """

    moved_sec: float | None
    kept: bool
    stale_rows: int
    committed: tuple[str, ...]
    passed_sec: float | None
    epochs_rose: bool
    back_sec: float | None


@dataclass(frozen=True)
class Settings:
    """What the server says of itself; None where it does not."""

    version: str
    fsync: str | None
    full_page_writes: str | None
    synchronous_commit: str | None
    synchronous_standby_names: str | None
    replicas: int | None = None
    synchronous: int | None = None


class Room(NamedTuple):
    """A bound on connections, and how many there are without ours; `most` is negative for none."""

    of: str
    most: int
    used: int

    @property
    def free(self) -> float:
        return math.inf if self.most < 0 else max(0, self.most - self.used)


@dataclass(frozen=True)
class Load:
    """What decides how many workers a server carries.

    Attributes:
        rooms: bounds on connections; none where a pooler shares them.
        heartbeat_sec: what the server needs for one, without the way there.
        commit_sec: what the smallest transaction takes that writes; None: not measured.
        tokens_per_sec: how fast a distribution writes them.
    """

    rooms: tuple[Room, ...]
    heartbeat_sec: float
    commit_sec: float | None
    tokens_per_sec: float | None


@dataclass(frozen=True)
class Statement:
    """What workers sent, how long it took, and the bound after which it is given up."""

    name: str
    latency: Latency
    bound_sec: float

    @property
    def share(self) -> float:
        return self.latency.p99 / self.bound_sec

    def plain(self) -> dict[str, float | int | str]:
        """As JSON can hold it."""
        return {
            "name": self.name,
            **self.latency.plain(),
            "bound_ms": round(1000 * self.bound_sec),
        }


@dataclass(frozen=True)
class Left:
    """What the run left behind; names of tables of earlier runs that this role may not drop."""

    tables: int
    rows: int
    sessions: int
    others: tuple[str, ...] = ()
    removed: int = 0


@dataclass(frozen=True)
class Limits:
    """How soon the cluster of the trial has to react over this network. What is promised holds on
    one machine: each round trip that it takes is added.

    Attributes:
        trip_sec: a round trip.
        seen: whether workers of this host see each other's processes end.
    """

    config: CoordinationConfig
    trip_sec: float
    seen: bool = True

    def _of(self, seconds: float) -> float:
        polled = 0.0 if self.config.notify else 3 * self.config.poll_interval_sec
        return seconds + _TRIPS * self.trip_sec + polled

    @property
    def join_sec(self) -> float:
        return self._of(1)

    @property
    def leave_sec(self) -> float:
        return self._of(0.5)

    @property
    def silence_sec(self) -> float:
        """Until a worker that died unseen is replaced."""
        return self._of(self.config.heartbeat_timeout_sec + 1)

    @property
    def kill_sec(self) -> float:
        return self._of(0.5) if self.seen else self.silence_sec

    @property
    def longest_sec(self) -> float:
        """Until a worker is replaced, in the few cases in which that takes longer."""
        return self.silence_sec + 2 * self.config.heartbeat_interval_sec

    @property
    def unheard_sec(self) -> float:
        """Until a change is found that nobody heard of."""
        return self._of(1 + (self.config.heartbeat_interval_sec if self.config.notify else 0))

    @property
    def again_sec(self) -> float:
        """Until sessions that were ended are there again, or a token that is free has an owner."""
        return self._of(1)


Conflicts = Mapping[tuple[str, str], "bool | str"]
"""For each strength that is held, and each that is wanted beside it: whether they conflict, or the
error that came instead."""

"""Lease arithmetic: how long a worker may act, and when others may say that it is dead. Time is an argument.

A worker may act until its lease ends, `lease_sec` after it *sent* the last heartbeat that was acknowledged. Others may
expire it once its beat has stood still for `timeout_sec` after they *saw* it. Between the two moments lies the margin:
the beat was seen after it was sent, so with clocks that run wrong by up to a fraction ``r`` no two workers ever hold one
token as long as ``lease_sec * (1 + r) < timeout_sec * (1 - r)``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

# A fifth of the timeout covers clocks whose rates differ by 11 %; real ones differ by less than 0.1 %.
SAFETY_MARGIN = 0.2


def lease_sec(timeout_sec: float) -> float:
    """Length of a lease for a heartbeat timeout: the timeout less the safety margin (12 s of 15 s)."""
    return timeout_sec * (1 - SAFETY_MARGIN)


class Lease:
    """The right to act until `deadline` (seconds on the worker's own monotonic clock), extended by heartbeats alone."""

    __slots__ = ("deadline", "length")

    def __init__(self, length: float) -> None:
        self.length: float = length
        self.deadline: float = float("-inf")

    def extend(self, sent_at: float) -> None:
        """A heartbeat sent at `sent_at` was acknowledged. An older one, acknowledged late, takes nothing back."""
        self.deadline = max(self.deadline, sent_at + self.length)

    def end(self) -> None:
        """Stop acting now: the worker was expired, or is about to join under a new incarnation."""
        self.deadline = float("-inf")

    def void(self) -> None:
        """Stop acting for good: no heartbeat extends this lease any more."""
        self.length = self.deadline = float("-inf")

    def valid(self, now: float) -> bool:
        return now < self.deadline

    def remaining(self, now: float) -> float:
        """Seconds left, 0 when it is over."""
        return max(0.0, self.deadline - now)


class Beat(NamedTuple):
    """One worker's heartbeat counter as it was read: what an expiry must find unchanged."""

    name: str
    incarnation: UUID
    beat: int


class Watch:
    """Since when each worker's beat has stood still, by the watcher's own clock.

    Args:
        timeout_sec: how long a beat must stand still before its worker may be expired.
        gap_sec: when the watcher itself read nothing for longer than this, it starts anew: whatever stopped it (an
            outage, a pause) may have stopped the others too, and they get their chance to send a heartbeat first.
    """

    def __init__(self, timeout_sec: float, gap_sec: float) -> None:
        self.timeout_sec = timeout_sec
        self.gap_sec = gap_sec
        self._since: dict[Beat, float] = {}
        self._read_at = float("-inf")

    def observe(self, beats: Iterable[Beat], now: float) -> None:
        """Take in what one answer showed, oldest first; `now` is when it *arrived*. Workers that it does not show are
        forgotten."""
        known = self._since if now - self._read_at <= self.gap_sec else {}
        self._since = {beat: known.get(beat, now) for beat in beats}
        self._read_at = now

    def forget(self) -> None:
        """Start anew: nobody is expired before a full timeout of new observation."""
        self._since = {}

    def stalled(self, now: float) -> list[Beat]:
        """Workers whose beat has stood still for the timeout."""
        return [beat for beat, since in self._since.items() if now - since >= self.timeout_sec]

    @property
    def beats(self) -> Collection[Beat]:
        """The beats that are watched, oldest worker first."""
        return self._since.keys()

    def since(self, beat: Beat) -> float | None:
        """When this very beat was first seen, None when it was not."""
        return self._since.get(beat)

    def stalled_for(self, beat: Beat, now: float) -> float:
        """Seconds that this very beat has been observed to stand still; 0 when it was not seen."""
        return now - self._since.get(beat, now)

    def next_due(self) -> float:
        """When the first worker would reach the timeout if nothing moved; infinity when nobody is watched."""
        return min(self._since.values(), default=float("inf")) + self.timeout_sec


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between tries: doubling from `first_sec` up to `most_sec`, spread by a factor of 0.5 to 1 taken from `chance`."""

    first_sec: float = 0.05
    most_sec: float = 2.0

    def wait_sec(self, failures: int, chance: float) -> float:
        """Seconds to wait after the given number of failures in a row (1 or more); `chance` is in [0, 1)."""
        return min(self.most_sec, self.first_sec * 2.0 ** min(failures - 1, 30)) * (0.5 + 0.5 * chance)

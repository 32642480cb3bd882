"""Which history a worker has adopted, and when another one may be begun. Pure: time is an argument.

* A history is adopted only where the cluster's row was begun on the very server that answers.
* Nobody goes back: not to an earlier generation, not to its own on another server, and not to one
  that is older than what was seen of it.
* The next generation is begun only when every lease from before is over.

A history is the identity of a server and a generation. A server that was failed over, restored or
replaced may have lost commits. It is recognised by its *identity* (`core/server_profile.py`). The
cluster row records the identity that its `generation` was begun on. Where
the two differ, or the row is older than what was seen before, nobody may act. That lasts until
somebody who has waited so long that every lease from before is over begins the next generation.

How long that is cannot be read off the workers' rows, for some may be lost. So the cluster row has
a bound on everybody's heartbeat timeout, and no worker joins above it.
"""

from __future__ import annotations

from typing import NamedTuple


class AdoptedHistory(NamedTuple):
    """What a worker has adopted: the identity of the server, and the generation that was begun
    there."""

    server: str
    generation: int


class ServerReading(NamedTuple):
    """What one look at the server showed.

    Attributes:
        recorded: the identity in the cluster row; None when it holds none, or when there is no row.
        actual: the identity of the server that answered; None when there is no row.
        generation, version: the row's; 0 when there is no row.
        running_since: when the server that answered was started: two that were promoted from one
            state may have one identity.
        longest_wait: the bound on heartbeat timeouts; None when the row has none, or when there is
            no row.
    """

    recorded: str | None
    actual: str | None
    generation: int
    version: int
    running_since: str
    longest_wait: float | None = None

    @property
    def agreed(self) -> bool:
        """Whether the row was begun on this very server: then others may act on it, and extend
        their leases."""
        return self.recorded is not None and self.recorded == self.actual

    def why_anew(self, *, readable: bool = True) -> str:
        """Why a generation is begun on this server, for people.

        Args:
            readable: False where the server refuses what the row was begun with.
        """
        if self.actual is None:
            return "the cluster's row was missing"
        if not readable:
            return "the server refuses what it was recognised by before"
        if self.recorded is None:
            return "the cluster's tables are a copy, or older than what a worker had seen of them"
        return "PostgreSQL was failed over, restored or replaced"

    def adoptable(self, known: AdoptedHistory | None, version: int) -> AdoptedHistory | None:
        """The history to adopt, None when none may be: the row was begun on another server, or is
        older than what is known.

        Args:
            known: the history adopted before, with the highest `version` seen under it.
        """
        if self.recorded is None or self.recorded != self.actual:
            return None
        history = AdoptedHistory(self.recorded, self.generation)
        if known is None or self.generation > known.generation:
            return history
        return history if history == known and self.version >= version else None


UNSAID_TIMEOUT_SEC = 15.0
"""A library that writes no bound (0.1.0) lets its workers have this timeout, if they choose none
themselves."""


class OldLeasesWait:
    """How long the same unfit reading has been seen.

    Nothing else needs to be watched in between: while the row stays as it is on a server that goes
    on running, nobody has begun anything there.

    Args:
        timeout_sec: the own heartbeat timeout.
        bound: the last bound known of the cluster before, None for none.
    """

    def __init__(self, timeout_sec: float, bound: float | None = None) -> None:
        self._timeout_sec = timeout_sec
        self._bound = bound
        self._seen: tuple[object, ...] = ()
        self._since = 0.0
        self.wait_sec: float = timeout_sec

    def observe(self, reading: ServerReading, now: float) -> bool:
        """One look; `now` is when its answer arrived. True when the wait begins with it."""
        seen = (
            reading.recorded,
            reading.actual,
            reading.generation,
            reading.running_since,
            reading.longest_wait,
        )
        if seen == self._seen:
            return False
        self._seen, self._since = seen, now
        bounds = [bound for bound in (self._bound, reading.longest_wait) if bound is not None]
        self.wait_sec = max(self._timeout_sec, *(bounds or [UNSAID_TIMEOUT_SEC]))
        return True

    def remaining(self, now: float) -> float:
        """Seconds until every lease that somebody may still hold is over; 0 or less when it is."""
        return self._since + self.wait_sec - now

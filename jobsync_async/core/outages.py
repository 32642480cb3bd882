"""Whether PostgreSQL is out of reach, and for what: who tries tells it, and it says once that an
outage begins and once that it is over. Pure: time is an argument.

* The *pulse* is what a worker lives by: its heartbeats. While these fail, whatever else fails is a
  part of that, also what was tried before they were answered again.
* What fails by itself is an outage of its own. That is known when the pulse is answered that was
  sent after a failure.
* A failure that is over with the next try is no outage. Two are one at once: a pulse that was tried
  for long, and a refusal, which no new connection mends.
* An outage of another kind is another outage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["away", "read-only", "refused"]
"""Nobody answers; the server takes no writes; tables or rights are missing."""

_TRIES = 2
_LONG_SEC = 1.0


class OutageNews(NamedTuple):
    """An outage begins, or is over.

    Attributes:
        what: that which failed.
        over: whether it is over.
        error: what was raised last.
        seconds: since the first try that failed began.
        failures: how many tries have failed.
    """

    what: str
    over: bool
    error: Exception
    seconds: float
    failures: int


@dataclass(slots=True)
class _Trouble:
    kind: Kind
    since: float
    error: Exception
    failed_at: float
    failures: int = 0
    said: bool = False

    def news(self, what: str, now: float, *, over: bool) -> OutageNews:
        return OutageNews(what, over, self.error, now - self.since, self.failures)


class Outages:
    """What fails now.

    Args:
        pulse: the name of the pulse.
    """

    def __init__(self, pulse: str) -> None:
        self._pulse = pulse
        self._troubles: dict[str, _Trouble] = {}
        # When the last pulse was sent that was answered; and when one was answered after a failure.
        self._answered: float | None = None
        self._back_at = float("-inf")

    def failed(
        self, what: str, kind: Kind, error: Exception, failures: int, began: float, now: float
    ) -> list[OutageNews]:
        """A try of this failed.

        Args:
            failures: how many have, in a row.
            began: when this one began.
        """
        if what != self._pulse and began <= self._back_at:
            return []
        trouble, news = self._troubles.get(what), list[OutageNews]()
        if trouble is not None and trouble.kind != kind:
            news, trouble = self._end(what, now), None
        if trouble is None:
            trouble = self._troubles[what] = _Trouble(kind, began, error, now)
        trouble.error, trouble.failed_at = error, now
        trouble.failures = max(trouble.failures, failures)
        return news + self._begin(now)

    def succeeded(self, what: str, began: float, now: float) -> list[OutageNews]:
        """A try of this, which began then, succeeded."""
        pulse = what == self._pulse
        if pulse:
            self._answered = began
        if what in self._troubles and pulse:
            self._back_at = now
            self._troubles = {
                name: each for name, each in self._troubles.items() if each.said or name == what
            }
        return self._end(what, now) + self._begin(now) if self._troubles else []

    def forget(self, what: str) -> None:
        """Nobody tries this any more."""
        self._troubles.pop(what, None)

    def _end(self, what: str, now: float) -> list[OutageNews]:
        trouble = self._troubles.pop(what, None)
        if trouble is None or not trouble.said:
            return []
        return [trouble.news(what, now, over=True)]

    def _begin(self, now: float) -> list[OutageNews]:
        """What is certain by now, and was not said."""
        news = []
        for what, trouble in self._troubles.items():
            if not trouble.said and self._certain(what, trouble, now):
                trouble.said = True
                news.append(trouble.news(what, now, over=False))
        return news

    def _certain(self, what: str, trouble: _Trouble, now: float) -> bool:
        lasts = trouble.failures >= _TRIES or trouble.kind == "refused"
        if what == self._pulse:
            return lasts or now - trouble.since >= _LONG_SEC
        answered = self._answered is None or self._answered > trouble.failed_at
        return lasts and answered and self._pulse not in self._troubles

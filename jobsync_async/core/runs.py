"""Runs: under which date, and in which batch, tasks are begun and completed. Pure.

* What is recorded of a task is kept by the *task key* and the date. So two named batches over the
  same ids on one date are two.
* A run is a batch and a date. A batch is a name, or, without one, the set of its ids.
* An id is never set aside at its first loss.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from jobsync_async.core.hashing import ids_key, name_key, task_key, task_sum
from jobsync_async.core.rows import TaskProgress
from jobsync_async.errors import ConfigError

LEAST_LOST = 2
"""An id is never set aside at its first loss: any id that was open then may be the one that ended
its worker."""


class Run(NamedTuple):
    """What tasks are recorded under: a date and, in a batch that has one, its name.

    Attributes:
        batch_key: the key of the batch, under which is counted what becomes of its ids; empty for
            what is recorded by hand.
    """

    date: dt.date
    batch: str | None = None
    batch_key: bytes = b""

    def key(self, text: str) -> bytes:
        """The key under which a task is stored in this run."""
        return task_key(text, self.batch)

    def __str__(self) -> str:
        return f"{'the batch' if self.batch is None else f'batch {self.batch!r}'} of {self.date}"


class Asked(NamedTuple):
    """Which run of a batch is wanted.

    Attributes:
        name: the batch's, None for none.
        date: the call's; None continues the open run, else takes `default_date`, else the
            cluster's.
    """

    name: str | None = None
    date: dt.date | None = None
    default_date: dt.date | None = None


class Opened(NamedTuple):
    """A run of a batch that was begun or continued, as its row says.

    Attributes:
        date: the run's.
        started_at, started_by: when it was opened, and the worker that did it.
        fresh: the date that a run begun now would have had.
        at: when it was asked for. Both moments are the server's.
        clean: nothing of it was complete when it was begun, for certain, nor given up or set aside
            by now.
    """

    date: dt.date
    started_at: dt.datetime
    started_by: str
    fresh: dt.date
    at: dt.datetime
    clean: bool = False

    @property
    def is_fresh(self) -> bool:
        """Whether a run that is begun now would have the same date."""
        return self.date == self.fresh


class Place(NamedTuple):
    """Where a worker is in a stream of ids: at one portion of it.

    Attributes:
        before_key: the key of all ids before the portion.
        ids_key: the key of all ids up to its end. taken: how many these are.
    """

    before_key: bytes
    ids_key: bytes
    taken: int


class Before(NamedTuple):
    """What came before a portion of a stream.

    Attributes:
        ids: how many ids. failed: how many of them have failed, as far as is known.
    """

    ids: int = 0
    failed: int = 0


NOTHING_BEFORE = Before()


class Parts(NamedTuple):
    """How far a run is, as all workers have counted it together.

    Attributes:
        completed: how many of its ids were completed in it, each counted once, with its record.
        otherwise: about how many are done with in another way: given up, set aside, or found
            complete.
        finished: somebody saw that nothing was left of this very opening.
        other_dates: there are open runs of the batch on other dates.
        other_ids: somebody has begun it over other ids, which are counted too.
        uncounted: a worker there is of a library that counts nothing.
        moved_on: the run is at the portion after this one: nothing is left of this one.
    """

    completed: int
    otherwise: int
    finished: bool
    other_dates: bool = False
    other_ids: bool = False
    uncounted: bool = False
    moved_on: bool = False


class Complete(NamedTuple):
    """Tasks of a run that are complete.

    Attributes:
        date: the run's.
        tasks: how many they are.
        ends: the sum of the ends of their keys, see `core.hashing.key_ends`.
    """

    date: dt.date
    tasks: int
    ends: int


class Tally:
    """How many ids of a run are done with, by what all workers have counted.

    * At least the ids that were known to be complete, and those counted since that was known.
    * At most the ids that were known, those counted since before it was asked, and those that are
      done with in another way than by being completed in the run.

    So nobody has to look at the ids before the end. `asked` and `known` are the counts right before
    and right after somebody looked which ids are complete, which found `complete` of them.

    What was given up may be completed yet, and is counted then. So it is never taken for known.

    Args:
        total: how many ids there are.
        before: what came before them in the same run.
    """

    def __init__(self, total: int, before: Before = NOTHING_BEFORE) -> None:
        self._total = total
        self._failed_before = before.failed
        # Until somebody looks, all that was counted is known, and none of it was of these.
        self._complete = -before.ids
        self._asked = self._known = 0

    def looked(self, asked: Parts, known: Parts, complete: int) -> None:
        """Somebody has looked at all open ids."""
        self._asked, self._known = asked.completed, known.completed
        self._complete = complete - self._failed_before

    def counted(self, parts: Parts) -> int:
        """How many are complete for certain."""
        return self._complete + parts.completed - self._known

    def all_done(self, parts: Parts) -> bool:
        """Whether all are complete for certain."""
        return not parts.moved_on and self.counted(parts) >= self._total

    def may_be_done(self, parts: Parts) -> bool:
        """Whether all may be done with, so that it is worth a look at those that are open."""
        return self._complete + parts.completed - self._asked + parts.otherwise >= self._total


class Begun(NamedTuple):
    """What came of beginning a task.

    Attributes:
        begun: it may be worked on now. If it is not, and none of the others holds, it has lost more
            owners than was allowed for.
        lost: how many owners have ended while they were at work on it.
        complete: it was complete before.
        set_aside: why it is not begun any more until it is released; None for one that is not set
            aside.
    """

    begun: bool
    complete: bool = False
    set_aside: str | None = None
    lost: int = 0


class Elsewhere(NamedTuple):
    """A worker that owns tasks of a run, and works on them under another date."""

    node: str
    date: dt.date


def date_of(value: object) -> dt.date | None:
    """The date that a user gave: None, a date, or a datetime, which counts by its date. Raises
    ConfigError for others."""
    if isinstance(value, dt.datetime):
        return value.date()
    if value is None or isinstance(value, dt.date):
        return value
    raise ConfigError(f"date must be a datetime.date or None; got {value!r:.100}")


def batch_key(name: str | None, texts: Iterable[str]) -> bytes:
    """The key of a batch: by its name, or by the set of its ids' texts, of which each is given
    once, in any order."""
    return ids_key(sum(map(task_sum, texts))) if name is None else name_key(name)


def lost_limit(attempts: int) -> int:
    """How many workers an id may take with it before it is set aside."""
    return max(attempts, LEAST_LOST)


def given_up_before(
    progress: Mapping[str, TaskProgress], moment: dt.datetime
) -> dict[str, TaskProgress]:
    """What was given up, of the tasks that were begun before this moment."""
    return {
        text: entry
        for text, entry in progress.items()
        if entry.error is not None and (entry.claimed_at is None or entry.claimed_at < moment)
    }


def elsewhere(seen: Iterable[tuple[str, dt.date]], date: dt.date) -> list[Elsewhere]:
    """Of workers that are at work under dates, those that are so under another date and not under
    this one."""
    pairs = set(seen)
    return [
        Elsewhere(node, other)
        for node, other in sorted(pairs)
        if other != date and (node, date) not in pairs
    ]


def is_done(texts: Iterable[str], progress: Mapping[str, TaskProgress]) -> bool:
    """Whether a run has nothing left to do: each id is complete, or was given up."""
    return all(text in progress for text in texts)

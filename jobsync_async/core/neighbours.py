"""Whom of the workers on its host a worker watches, and which of them are dead. Pure.

* Workers watch each other only if they can see each other's processes.
* A worker is dead only if its process is known to be dead.
* Every death is noticed as long as one of them lives, however many die at once.
* A death is noticed by few: at most by as many as each worker watches (`MOST_WATCHED`).

The workers that can see each other's processes form a ring, in order of age. Each watches the next
few after it, and passes over those that it knows to be dead. Why every death is noticed: go back
from a dead worker to the nearest one that lives. All between the two are dead, so that one passes
over them, one by one and at once, and comes to it. As each watches several, one of them may be
stopped or blocked.

With hundreds of workers on a host, each is told of the next `MOST_TOLD` alone, and of none in its
own process. If all that it is told of are dead, it reports them. Their end is the change that tells
it of the next. So many deaths at once are found that many at a time.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from uuid import UUID

from jobsync_async.core.rows import Announcement, Neighbour, Process

MOST_WATCHED = 2
"""How many living workers each watches."""
MOST_TOLD = 33
"""How many workers each is told of, itself included."""


def visible(announcement: Announcement, neighbour: Neighbour) -> bool:
    """Whether a worker with this announcement can see the neighbour's process."""
    own = (announcement.boot_id, announcement.pid_namespace, announcement.host)
    return (
        None not in own
        and own == (neighbour.boot_id, neighbour.namespace, neighbour.host)
        and neighbour.process is not None
    )


def next_in_ring(
    ring: Sequence[Neighbour], me: UUID, dead: Set[Process], most: int = MOST_WATCHED
) -> list[Neighbour]:
    """The next living workers after `me`, those in its own process included; none when `me` is not
    in the ring.

    Args:
        ring: visible workers in order of age.
        dead: processes that are known to be dead.
    """
    own = next((place for place, worker in enumerate(ring) if worker.incarnation == me), None)
    if own is None:
        return []
    others = [*ring[own + 1 :], *ring[:own]]
    return [worker for worker in others if worker.process not in dead][:most]


def dead_workers(ring: Sequence[Neighbour], dead: Set[Process]) -> list[Neighbour]:
    """The workers of dead processes: all that ran in one die with it."""
    return [worker for worker in ring if worker.process in dead]

"""What is read from the tables, as plain values: the inputs of every decision.

* Ownership is by incarnation, the random id of one start of a worker. A name alone owns nothing.
* A process is told by its number and when it started. Two processes of one boot never share both.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple
from uuid import UUID

from jobsync_async.core.lease import Beat, Times
from jobsync_async.types import Pause

NO_TIMES = Times.said(None, None)
PART = 20_000
"""Of many tokens, one statement moves so many: it is bounded in time, however many there are."""
NOBODY = ""
"""The receiver of a token that is to have no owner: no node has this name."""


class Identity(NamedTuple):
    """A worker as the tables know it. Ownership is by incarnation, the random id of this start; a
    name alone owns nothing."""

    name: str
    incarnation: UUID


class Process(NamedTuple):
    """A process for ever: its number, and when it started, in clock ticks since boot. Numbers come
    again, the two together do not."""

    pid: int
    started: int


class Announcement(NamedTuple):
    """What a worker says of itself when it joins. `state` is ``"active"``, or ``"draining"`` for
    one that drained before; `session_tag` is in the ``application_name`` of each of its
    sessions. `reason` is for the history: why it joins, None for a start."""

    weight: float = 1.0
    address: str | None = None
    host: str | None = None
    pid: int | None = None
    boot_id: str | None = None
    pid_namespace: str | None = None
    process_started: int | None = None
    state: str = "active"
    session_tag: str | None = None
    reason: str | None = None


class Neighbour(NamedTuple):
    """A worker on a machine that booted when ours did, as its row says.

    Attributes:
        boot_id, namespace, host: processes see each other only where all three are the same.
        process: where it runs, None when it could not tell.
        session_tag: what its database sessions are known by.
    """

    name: str
    incarnation: UUID
    boot_id: str
    namespace: str | None
    host: str | None
    process: Process | None
    session_tag: str | None


class NameInUse(NamedTuple):
    """A join that was refused: another incarnation has the name.

    Attributes:
        beat, times: its beat, and by which it is judged.
        holder: where it runs, for people.
        neighbour: the same as facts, when it runs on this host.
    """

    beat: Beat
    times: Times
    holder: str
    neighbour: Neighbour | None = None


class HeartbeatAnswer(NamedTuple):
    """What every heartbeat brings back: enough to notice a change that no notification told of.

    Attributes:
        version, term: the cluster's.
        leader: incarnation of the leader; None before the first.
        rank: workers older than this one, the leader not counted; 0 is the next in age.
        beats: the leader's, or everybody's when that was asked for, oldest first, with their times;
            without the leader's when its row is gone.
        leader_age_sec: how long before this heartbeat the leader's last one was, by the server's
            clock; None when its row is gone. Only when to send the next one follows from it.
        announced: the version that was announced last.
        timeout_sec: the timeout that this heartbeat left in the own row, by which others judge this
            worker.
        longest_wait: the cluster's bound on timeouts.
    """

    version: int
    term: int
    leader: UUID | None
    rank: int
    beats: Mapping[Beat, Times]
    leader_age_sec: float | None = None
    announced: int = -1
    timeout_sec: float = float("inf")
    longest_wait: float | None = None


class TokenRow(NamedTuple):
    """A token of this worker, as its row says. `version` is that of the row's last change."""

    token_id: int
    epoch: int
    version: int
    revoking: bool


class Alike(NamedTuple):
    """Tokens of this worker whose rows differ in their number alone."""

    epoch: int
    version: int
    revoking: bool
    token_ids: Sequence[int]


class TokenRows:
    """Rows made as they are looked at, from tokens that are alike."""

    def __init__(self, groups: Sequence[Sequence[Any]]) -> None:
        self.groups = list(map(Alike._make, groups))

    def __iter__(self) -> Iterator[TokenRow]:
        for epoch, version, revoking, token_ids in self.groups:
            for token_id in token_ids:
                yield TokenRow(token_id, epoch, version, revoking)


def alike(rows: Iterable[TokenRow]) -> Iterable[Alike]:
    """Rows in groups of tokens that are alike."""
    if isinstance(rows, TokenRows):
        return rows.groups
    by_what = groupby(rows, lambda row: (row.epoch, row.version, row.revoking))
    return (Alike(*what, [row.token_id for row in some]) for what, some in by_what)


class Snapshot(NamedTuple):
    """One worker's atomic read: cluster row, own node row, and the tokens that changed after
    `since`.

    Attributes:
        incarnation: whose read it is.
        since: tokens whose version is above this are shown; -1 shows all.
        version, term: the cluster's at that moment.
        leader: incarnation of the leader.
        state: the own node row's (``"active"``, ``"draining"``), None when the row is gone.
        settled: the last plan counted this worker in, and nothing is on its way here.
        coming: something is on its way here.
        mine: changed tokens that are this worker's.
        others: changed tokens that are not.
        crowd: how many workers there are.
        neighbours: the workers of this host, this one included, in order of age; None when they are
            as they were.
        pause: the one that holds then.
    """

    incarnation: UUID
    since: int
    version: int
    term: int
    leader: UUID | None
    state: str | None
    settled: bool
    mine: Iterable[TokenRow]
    others: Sequence[int]
    crowd: int = 1
    coming: bool = False
    neighbours: Sequence[Neighbour] | None = None
    pause: Pause | None = None


class Member(NamedTuple):
    """A node row, as the leader needs it. `age`: its number in the order of joining."""

    name: str
    incarnation: UUID
    beat: int
    weight: float
    active: bool
    age: int = 0
    times: Times = NO_TIMES


class TokenGroup(NamedTuple):
    """Tokens that are alike to the leader: same owner, same receiver."""

    node: str | None
    incarnation: UUID | None
    next_node: str | None
    token_ids: Sequence[int]


class Event(NamedTuple):
    """A row of the history, as the leader needs it: what happened, and to which start of which
    worker; None for no single one."""

    id: int
    kind: str
    node: str | None
    incarnation: UUID | None


class ClusterRow(NamedTuple):
    """The one row about the cluster."""

    version: int
    term: int
    leader: UUID | None
    generation: int
    pin_version: int
    planned_joined: int


class Steered(NamedTuple):
    """What came of a pause, or of its end.

    Attributes:
        changed: False when it was so already.
        version: the cluster's, under which it was written.
        pause: the one that holds now, or that is over now.
    """

    changed: bool
    version: int
    pause: Pause | None


class Stuck(NamedTuple):
    """A revoked token that somebody here does not let go of: with the task, or None for a reader of
    changes."""

    token_id: int
    task_id: str | None


class Work(NamedTuple):
    """A task and the ownership under which it is done: its text, its token, and the token's
    epoch."""

    task_id: str
    token_id: int
    epoch: int


class TaskProgress(NamedTuple):
    """A task that is done with: by which worker, and, if it was given up, the error and when that
    try was begun."""

    node: str
    error: str | None
    claimed_at: dt.datetime | None = None

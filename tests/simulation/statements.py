"""What the statements of ``queries.sql`` about membership and a worker's own tokens do, each under
its name there.

A statement is a generator: it yields the rows that it must lock, or seconds that it takes, and
returns its rows. `keeps` asks whether a rule of safety is in force: it always is, but where a test
switches it off to see that it is missed.
"""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.simulation.tables import (
    CLUSTER,
    Cluster,
    Event,
    Key,
    Mode,
    Node,
    Token,
    Transaction,
    in_order,
)

if TYPE_CHECKING:
    from uuid import UUID

    from tests.simulation.server import Session

# The cluster's table has this number, on every copy of the server.
TABLE_OID = "16384"
DEPARTURES = ("left", "died", "expired", "evicted")


class Locked(NamedTuple):
    """Ask for a row's lock, and wait for it."""

    key: Key
    mode: Mode = "exclusive"


class Take(NamedTuple):
    """Let time pass."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """What a statement gives back."""

    rows: Sequence[Any] = ()
    count: int = 0


class Asked:
    """A statement's transaction and parameters.

    Attributes:
        session: whose statement it is.
        keeps: whether a rule of safety is in force.
        now: the server's clock; chance: a number from 0 to 1.
    """

    def __init__(self, session: Session, tx: Transaction, values: Any) -> None:
        server = session.server
        self.session = session
        self.tx = tx
        self.values = values
        self.keeps = server.keeps
        self.now = server.scheduler.now
        self.chance = server.random.random

    def __getattr__(self, name: str) -> Any:
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(name) from None


Statement = Callable[[Asked], "Generator[Locked | Take, None, Result]"]
STATEMENTS: dict[str, Statement] = {}


def statement(function: Statement) -> Statement:
    """Enter a statement under its name in ``queries.sql``."""
    STATEMENTS[function.__name__] = function
    return function


def numbers(array: str) -> list[int]:
    """The numbers of an array literal."""
    return [int(part) for part in array[1:-1].split(",") if part]


def texts(array: str) -> list[str]:
    """The texts of an array literal."""
    quoted = re.findall(r'"((?:[^"\\]|\\.)*)"', array, re.DOTALL)
    return [re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL) for text in quoted]


def keys(array: str) -> list[bytes]:
    """The bytes of an array literal."""
    return [bytes.fromhex(text[2:]) for text in texts(array)]


@cache
def _kind(names: str) -> Any:
    return namedtuple("row", names)  # type: ignore[misc]


def rows(names: str, values: Any) -> list[Any]:
    return [_kind(names)(*value) for value in values]


def announce(q: Asked, cluster: Cluster, concerned: str = "") -> None:
    if q.channel is not None:
        q.tx.notices.append(f"{cluster.version}{concerned}")


def announced(q: Asked, version: int) -> int:
    """What the cluster's row says of it: with nobody to tell, it stays as it is."""
    return version if q.channel is not None else q.tx.view().cluster.announced


def tell(q: Asked, version: int, kind: str, **told: Any) -> None:
    """Write a row of the history."""
    if q.session.client.process.old_library:
        q.tx.untold = True
    elif kind not in DEPARTURES or q.keeps("whoever goes is written down"):
        number = next(q.session.server.events)
        q.tx.write("history", number, Event(version, kind, **told, at=q.now))


def tell_gone(q: Asked, node: Node, kind: str, reason: str | None = None) -> None:
    """``{tell_gone}``, for one worker."""
    tell(
        q,
        q.tx.view().cluster.version + (not q.taken),
        kind,
        node=node.name,
        incarnation=node.incarnation,
        by=q.by,
        reason=reason,
        silent=kind != "left",
    )


def tell_who_leads(q: Asked, before: Cluster) -> None:
    """``{tell_who_leads}``; the cluster's row says already who does."""
    view = q.tx.view()
    now, was = view.cluster, before.leader_incarnation
    ended = [
        "restarted" if event.kind == "joined" else event.kind
        for _, event in sorted(view.history.items())
        if was is not None
        and (
            (event.incarnation == was and event.kind in DEPARTURES)
            or (event.version == now.version and (event.details or {}).get("replaced") == str(was))
        )
    ]
    how = ended[-1] if ended else None
    tell(
        q,
        now.version,
        "took over",
        node=now.leader,
        incarnation=now.leader_incarnation,
        by=q.by,
        term=now.term,
        reason="nobody led" if before.leader is None else f"{before.leader} {how or 'is gone'}",
        details={"before": before.leader, "how": how},
    )


def actual(q: Asked) -> str:
    """The identity of the server that answers, and of the table there."""
    return f"{q.here or q.session.server.identity}/{TABLE_OID}"


def sound(q: Asked, cluster: Cluster) -> bool:
    """``{sound}``: the row was begun on this server, and it is what the worker has adopted."""
    begun_here = cluster.server_identity == actual(q) or not q.keeps(
        "the row's identity is the server's"
    )
    adopted = (cluster.server_identity, cluster.generation) == (
        q.adopted_server,
        q.adopted_generation,
    )
    return begun_here and (
        q.adopted_server is None or adopted or not q.keeps("the history is the adopted one")
    )


def times(q: Asked, cluster: Cluster, node: Node) -> tuple[float | None, float | None]:
    """``{timeout}`` and ``{interval}``: what the row says, if its incarnation has written that."""
    if node.said_by != node.incarnation and q.keeps(
        "a row that an older library made counts as the bound"
    ):
        return cluster.longest_wait, None
    return node.timeout_sec, node.interval_sec


# A statement waits only for a row that matches when it begins, and looks at that again when it has
# the lock.


def locked_cluster(
    q: Asked, matches: Callable[[Cluster], bool]
) -> Generator[Locked, None, Cluster | None]:
    """The cluster's row, locked; None where it does not match."""
    if not matches(q.tx.view().cluster):
        return None
    yield Locked(CLUSTER)
    cluster = q.tx.view().cluster
    return cluster if matches(cluster) else None


def written_node(
    q: Asked,
    matches: Callable[[Node], bool],
    to: Callable[[Node], Node | None],
    told: Callable[[Node], None] = lambda node: None,
) -> Any:
    """The row of the worker `q.name` becomes another, or, for None, goes; the history is told."""
    row = q.tx.view().node.get(q.name)
    if row is None or not matches(row):
        return Result()
    yield Locked(("node", q.name))
    row = q.tx.row("node", q.name)
    if row is None or not matches(row):
        return Result()
    q.tx.write("node", q.name, to(row))
    told(row)
    return Result((), 1)


# == membership ====================================================================================

_Taken = namedtuple("_Taken", "version leader_incarnation generation")


@statement
def take_version(q: Asked) -> Any:
    now = yield from locked_cluster(q, partial(sound, q))
    if now is None:
        return Result()
    cluster = q.tx.update(version=now.version + 1, announced=announced(q, now.version + 1))
    announce(q, cluster)
    return Result([_Taken(cluster.version, cluster.leader_incarnation, cluster.generation)], 1)


@statement
def lock_cluster(q: Asked) -> Any:
    cluster = yield from locked_cluster(q, partial(sound, q))
    return Result(rows("version", [(cluster.version,)]) if cluster is not None else ())


def in_turn(names: Sequence[str]) -> Statement:
    """Statements that come in one message: the result of each."""

    def together(q: Asked) -> Any:
        results = []
        for name in names:
            results.append((yield from STATEMENTS[name](q)))
        return Result(results)

    return together


_WHERE = ("host", "pid", "boot_id", "pid_namespace", "process_started", "session_tag")
_Holder = namedtuple(
    "_Holder",
    (
        "incarnation", "beat", "holder", *_WHERE, "timeout_sec", "interval_sec", "longest_allowed",
        "evicted_at", "evicted_by", "evicted_reason",
    ),
)  # fmt: skip


@statement
def read_node(q: Asked) -> Any:
    yield Take(0)
    view = q.tx.view()
    cluster, row = view.cluster, view.node.get(q.name)
    allowed = (
        cluster.longest_allowed
        if sound(q, cluster) and q.keeps("no worker joins above the bound")
        else None
    )
    evicted = view.evicted.get(q.name) if sound(q, cluster) and not _may_return(q) else None
    told = (None, None, None) if evicted is None else (evicted.at, evicted.by, evicted.reason)
    if row is None:
        where = (None for _ in _WHERE)
        unheld = (None, None, "", *where, cluster.longest_wait, None, allowed, *told)
        return Result([_Holder(*unheld)])
    where = (getattr(row, name) for name in _WHERE)
    holder = f"on host {row.host} with pid {row.pid}"
    return Result(
        [
            _Holder(
                row.incarnation, row.beat, holder, *where, *times(q, cluster, row), allowed, *told
            )
        ]
    )


@statement
def take_version_to_join(q: Asked) -> Any:
    taken = yield from take_version(q)
    if not taken.rows:
        return Result()
    before = q.tx.view().cluster
    first = q.timeout_sec if before.last_joined == 0 else q.unsaid_bound
    wait = first if before.longest_wait is None else before.longest_wait
    allowed = wait if before.longest_allowed is None else before.longest_allowed
    cluster = q.tx.update(
        last_joined=before.last_joined + 1, longest_wait=wait, longest_allowed=allowed
    )
    return Result(rows("version last_joined", [(cluster.version, cluster.last_joined)]), 1)


@statement
def insert_node(q: Asked) -> Any:
    cluster = q.tx.view().cluster
    if not (sound(q, cluster) and _allowed(q, cluster)) or _is_evicted(q):
        return Result()
    yield Locked(("node", q.name))
    if q.tx.row("node", q.name) is not None:
        return Result()
    q.tx.write("node", q.name, _joining(q, cluster.last_joined))
    _tell_of_join(q, cluster.version, q.reason)
    return Result(rows("joined", [(cluster.last_joined,)]), 1)


def _may_return(q: Asked) -> bool:
    """Whether it joins under a name that was evicted."""
    return q.session.client.process.old_library or not q.keeps("who was evicted does not come back")


def _is_evicted(q: Asked) -> bool:
    return q.name in q.tx.view().evicted and not _may_return(q)


def _tell_of_join(q: Asked, version: int, reason: str | None, replaced: UUID | None = None) -> None:
    about = {
        "host": q.host,
        "pid": q.pid,
        "library": q.library,
        "weight": q.weight,
        "state": q.state,
        "replaced": replaced and str(replaced),
    }
    tell(
        q,
        version,
        "joined",
        node=q.name,
        incarnation=q.incarnation,
        by=q.by,
        reason=reason,
        silent=replaced is not None,
        details={name: value for name, value in about.items() if value is not None},
    )


def _allowed(q: Asked, cluster: Cluster) -> bool:
    allowed = cluster.longest_allowed
    return (allowed is not None and allowed >= q.timeout_sec) or not q.keeps(
        "no worker joins above the bound"
    )


def _joining(q: Asked, joined: int, old: Node | None = None) -> Node:
    where = (q.host, q.pid, q.boot_id, q.pid_namespace, q.process_started, q.session_tag)
    said: tuple[Any, ...] = ([], q.timeout_sec, q.interval_sec, q.incarnation)
    if q.session.client.process.old_library:
        said = (
            (None,) * 4
            if old is None
            else (old.runs, old.timeout_sec, old.interval_sec, old.said_by)
        )
    return Node(
        q.name, q.incarnation, joined, 0, q.weight, q.state, q.address, *where, q.now, *said
    )


@statement
def replace_node(q: Asked) -> Any:
    yield Locked(("node", q.name))
    row = q.tx.row("node", q.name)
    if (
        row is None
        or (row.incarnation, row.beat) != (q.old_incarnation, q.old_beat)
        or not _allowed(q, q.tx.view().cluster)
        or _is_evicted(q)
    ):
        return Result()
    q.tx.write("node", q.name, _joining(q, q.joined, row)._replace(beat=row.beat + 1))
    why = "started again: the start before ended without leaving"
    _tell_of_join(q, q.version, why, row.incarnation)
    return Result((), 1)


@statement
def inherit_tokens(q: Asked) -> Any:
    yield Take(0)
    raised = 1 if q.keeps("epoch raised by take-over") else 0
    return change(
        q,
        lambda token: token.incarnation == q.old_incarnation,
        lambda token: token._replace(
            incarnation=q.incarnation, epoch=token.epoch + raised, version=q.version
        ),
    )


def change(
    q: Asked,
    which: Callable[[Token], bool],
    how: Callable[[Token], Token],
    mode: Mode = "exclusive",
) -> Result:
    """UPDATE of the tokens that nobody has locked: FOR UPDATE SKIP LOCKED where the owner
    changes."""
    changed = []
    for token in list(q.tx.view().token.values()):
        if which(token) and _pass_over(q, token, mode):
            q.tx.write("token", token.token_id, how(token))
            changed.append(token)
    return Result(rows("token_id", ((token.token_id,) for token in changed)), len(changed))


def _pass_over(q: Asked, token: Token, mode: Mode) -> bool:
    """SKIP LOCKED: whether the row was free, and is this transaction's now."""
    return q.tx.try_lock(("token", token.token_id), mode) or not q.keeps(
        "reassignment respects the fence"
    )


@statement
def lead_if_nobody_does(q: Asked) -> Any:
    yield Locked(CLUSTER)
    view = q.tx.view()
    oldest = in_order(view.node.values())
    if not oldest or view.alive(view.cluster.leader_incarnation) or not sound(q, view.cluster):
        return Result()
    q.tx.update(
        leader=oldest[0].name, leader_incarnation=oldest[0].incarnation, term=view.cluster.term + 1
    )
    tell_who_leads(q, view.cluster)
    return Result((), 1)


_Answer = namedtuple(
    "_Answer",
    "version announced term leader_incarnation longest_wait timeout_sec rank "
    "names incarnations beats timeouts intervals leader_age",
)


@statement
def heartbeat(q: Asked) -> Any:
    # What is told of others is what the statement saw when it began, even if it had to wait for the
    # own row.
    view = q.tx.view()
    old = view.cluster.version < q.version and q.keeps(
        "the cluster is no older than what was seen of it"
    )
    if old or not sound(q, view.cluster) or not _mine(q, view.node.get(q.name)):
        return Result()
    yield Locked(("node", q.name))
    row = q.tx.row("node", q.name)
    if not _mine(q, row):
        return Result()
    q.tx.write("node", q.name, row._replace(beat=row.beat + 1, last_heartbeat=q.now))
    cluster = view.cluster
    rank = sum(
        n.joined < row.joined and n.incarnation != cluster.leader_incarnation
        for n in view.node.values()
    )
    watched = [
        n
        for n in in_order(view.node.values())
        if q.watch_all or n.incarnation == cluster.leader_incarnation
    ]
    shown = [(n.name, n.incarnation, n.beat, *times(q, cluster, n)) for n in watched]
    # Array_agg of no rows is null.
    arrays = map(list, zip(*shown, strict=True)) if shown else [None] * 5
    ages = [
        q.now - n.last_heartbeat for n in watched if n.incarnation == cluster.leader_incarnation
    ]
    age = max(ages, default=None)
    told = (
        cluster.version,
        cluster.announced,
        cluster.term,
        cluster.leader_incarnation,
        cluster.longest_wait,
    )
    left = None if q.session.client.process.old_library else times(q, cluster, row)[0]
    return Result([_Answer(*told, left, rank, *arrays, age)], 1)


def _mine(q: Asked, node: Node | None) -> bool:
    return node is not None and (
        node.incarnation == q.incarnation or not q.keeps("incarnation in the heartbeat")
    )


@statement
def set_state(q: Asked) -> Any:
    def matches(node: Node) -> bool:
        return node.state != q.state and q.incarnation in (None, node.incarnation)

    def told(node: Node) -> None:
        tell(
            q,
            q.tx.view().cluster.version,
            "drained" if q.state == "draining" else "undrained",
            node=node.name,
            incarnation=node.incarnation,
            by=q.by,
            reason=q.reason,
        )

    return written_node(q, matches, lambda node: node._replace(state=q.state), told)


@statement
def free_tokens_of(q: Asked) -> Any:
    yield Take(0)
    return change(
        q,
        lambda token: token.incarnation == q.incarnation,
        lambda token: token._replace(
            node=None, incarnation=None, epoch=token.epoch + 1, next_node=None, version=q.version
        ),
    )


@statement
def delete_node(q: Asked) -> Any:
    nodes = q.tx.view().node.values()
    name = next((node.name for node in nodes if node.incarnation == q.incarnation), None)
    if name is None:
        return Result()
    yield Locked(("node", name))
    row = q.tx.row("node", name)
    if row is None or row.incarnation != q.incarnation:
        return Result()
    q.tx.write("node", name, None)
    tell_gone(q, row, "left", q.reason)
    return Result((), 1)

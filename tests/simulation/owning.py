"""What the statements of ``queries.sql`` about a worker's own tokens do."""

from __future__ import annotations

import json
from collections import namedtuple
from typing import Any

from tests.simulation.statements import (
    Asked,
    Locked,
    Result,
    Take,
    announce,
    announced,
    change,
    numbers,
    rows,
    sound,
    statement,
    written_node,
)
from tests.simulation.tables import Node, Token, View, in_order

_COLUMNS = ("boot_id", "pid_namespace", "host", "pid", "process_started", "session_tag")
_Changes = namedtuple(
    "_Changes",
    "version term leader_incarnation paused_at paused_by pause_reason state settled joined coming "
    "mine others crowd members youngest neighbours",
)


def changed_since(view: View, since: int) -> list[Token]:
    """Rows of version 0 are as the first distribution made them, and changed when it did."""
    made = view.cluster.tokens_since
    initial = made is not None and 0 <= since < made
    return [
        token
        for token in view.token.values()
        if token.version > since or (initial and token.version == 0)
    ]


@statement
def read_version(q: Asked) -> Any:
    yield Take(0)
    usage = q.session.server.queue_usage() if q.channel is None else None
    return Result(rows("version queue_usage", [(q.tx.view().cluster.version, usage)]))


@statement
def read_changes(q: Asked) -> Any:
    view = q.tx.view()
    if not sound(q, view.cluster):
        return Result()
    changed = changed_since(view, q.since)
    if not q.keeps("one atomic read"):
        yield Take(0.3 * q.chance())
        view = q.tx.view()
    by_name = not q.keeps("owner by incarnation")
    node: Node | None = view.node.get(q.name)
    if node is not None and node.incarnation != q.incarnation and not by_name:
        node = None
    mine = [t for t in changed if (t.node == q.name if by_name else t.incarnation == q.incarnation)]
    groups: dict[tuple[int, int, bool], list[int]] = {}
    for token in mine:
        groups.setdefault((token.epoch, token.version, token.next_node is not None), []).append(
            token.token_id
        )
    others = [token.token_id for token in changed if token not in mine] if q.since >= 0 else []
    coming = any(token.next_node == q.name for token in view.token.values())
    cluster = view.cluster
    row = _Changes(
        cluster.version,
        cluster.term,
        cluster.leader_incarnation,
        cluster.paused_at,
        cluster.paused_by,
        cluster.pause_reason,
        node.state if node else None,
        False if coming else node.joined <= cluster.planned_joined if node else None,
        node.joined if node else None,
        coming,
        [[*alike, ids] for alike, ids in groups.items()] or None,
        others or None,
        *_near(q, view, node),
    )
    return Result([row], 1)


def _near(q: Asked, view: View, node: Node | None) -> list[Any]:
    """The workers of this host: how many, how old the youngest is, and, if that is news, who comes
    next in the ring."""
    crowd = len(view.node)
    if node is None or node.boot_id is None:
        return [crowd, 0, 0, None]
    near = [other for other in view.node.values() if other.boot_id == node.boot_id]
    members, youngest = len(near), max(other.joined for other in near)
    if (members, youngest) == (q.members, q.youngest):
        return [crowd, members, youngest, None]

    def distance(other: Node) -> tuple[Any, ...]:
        hidden = (other.pid_namespace, other.host) != (node.pid_namespace, node.host)
        return (other.joined != node.joined, hidden, other.joined < node.joined, other.joined)

    apart = [
        other
        for other in near
        if other.joined == node.joined or _process_of(other) != _process_of(node)
    ]
    told = in_order(sorted(apart, key=distance)[: q.most_told])
    shown = [
        [n.name, str(n.incarnation), *(getattr(n, column) for column in _COLUMNS)] for n in told
    ]
    return [crowd, members, youngest, shown]


def _process_of(node: Node) -> tuple[Any, ...]:
    return (node.pid_namespace, node.host, node.pid, node.process_started)


@statement
def acknowledge(q: Asked) -> Any:
    yield Take(0)
    asked = dict(zip(numbers(q.token_ids), numbers(q.versions), strict=True))
    any_version = not q.keeps("the revocation's version in the acknowledgement")
    view = q.tx.view()
    if not sound(q, view.cluster):
        return Result()

    def answered(token: Token) -> bool:
        ours = token.incarnation == q.incarnation and token.next_node is not None
        return ours and (
            asked.get(token.token_id) == token.version or (any_version and token.token_id in asked)
        )

    version = view.cluster.version + q.keeps("a version for every acknowledgement")
    received: dict[str | None, int | None] = {}

    def handed_on(token: Token) -> Token:
        receiver = view.receiver(token.next_node)
        received[receiver.name if receiver else None] = receiver.joined if receiver else None
        return Token(
            token.token_id,
            receiver.name if receiver else None,
            receiver.incarnation if receiver else None,
            token.epoch + 1,
            None,
            version,
        )

    gone = [row.token_id for row in change(q, answered, handed_on).rows]
    if not gone:
        return Result()
    coming = {token.next_node for token in q.tx.view().token.values()}
    complete = sorted(
        age for name, age in received.items() if age is not None and name not in coming
    )
    everybody = None in received or len(complete) > q.most_named
    if version == view.cluster.version:
        return Result(rows("token_ids version", [(gone, version)]))
    if everybody or complete:
        cluster = q.tx.update(version=version, announced=announced(q, version))
        announce(q, cluster, "" if everybody else "".join(f" {age}" for age in complete))
    else:
        q.tx.update(version=version)
    return Result(rows("token_ids version", [(gone, version)]), 1)


@statement
def show_stuck(q: Asked) -> Any:
    yield Locked(("node", q.name))
    row = q.tx.row("node", q.name)
    if row is None or row.incarnation != q.incarnation:
        return Result()
    q.tx.write("node", q.name, row)
    return Result((), 1)


@statement
def announce_runs(q: Asked) -> Any:
    return written_node(
        q,
        lambda node: node.incarnation == q.incarnation,
        lambda node: node._replace(runs=json.loads(q.runs)),
    )


@statement
def read_idlers(q: Asked) -> Any:
    yield Take(0)
    asked = json.loads(q.runs)
    idle = [
        (n.name, n.incarnation, n.runs)
        for n in in_order(q.tx.view().node.values())
        if n.incarnation != q.incarnation
        and n.said_by == n.incarnation
        and n.runs is not None
        and not all(run in n.runs for run in asked)
    ]
    return Result(rows("name incarnation runs", idle))


@statement
def tokens_of(q: Asked) -> Any:
    yield Take(0)
    tokens: dict[Any, list[int]] = {}
    for token in q.tx.view().token.values():
        if token.incarnation in q.incarnations:
            tokens.setdefault(token.incarnation, []).append(token.token_id)
    return Result(rows("incarnation token_ids", tokens.items()))


@statement
def owner_of(q: Asked) -> Any:
    yield Take(0)
    view = q.tx.view()
    token = view.token.get(q.token_id)
    owners = [
        n for n in view.node.values() if token is not None and n.incarnation == token.incarnation
    ]
    return Result(rows("name address epoch", ((n.name, n.address, token.epoch) for n in owners)))

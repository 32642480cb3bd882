"""What the leader's statements in ``queries.sql`` do."""

from __future__ import annotations

from typing import Any

import psycopg

from tests.simulation.owning import changed_since
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
    tell_gone,
    tell_who_leads,
    times,
)
from tests.simulation.tables import CLUSTER, Node, Token, View, in_order

_CLUSTER = "version term leader_incarnation generation pin_version planned_joined"


def _cluster_row(q: Asked) -> list[Any]:
    cluster = q.tx.view().cluster
    return [getattr(cluster, name) for name in _CLUSTER.split()]


@statement
def lock_as_leader(q: Asked) -> Any:
    # A row that does not match when the statement begins is not waited for; the node's existence is
    # not looked at again.
    view = q.tx.view()
    if not (_leads(q, view) and view.alive(q.incarnation)):
        return Result()
    yield Locked(CLUSTER)
    if not _leads(q, q.tx.view()):
        return Result()
    return Result(rows(_CLUSTER, [_cluster_row(q)]))


def _leads(q: Asked, view: View) -> bool:
    cluster = view.cluster
    return (
        cluster.term == q.term and cluster.leader_incarnation == q.incarnation and sound(q, cluster)
    )


@statement
def one_snapshot(q: Asked) -> Any:
    yield Take(0)
    q.tx.snapshot = q.tx.view()
    return Result()


@statement
def read_cluster(q: Asked) -> Any:
    yield Take(0)
    return Result(rows(_CLUSTER, [_cluster_row(q)] if sound(q, q.tx.view().cluster) else ()))


@statement
def read_beats(q: Asked) -> Any:
    yield Take(0)
    view = q.tx.view()
    nodes = in_order(view.node.values()) if sound(q, view.cluster) else ()
    shown = ((n.name, n.incarnation, n.beat, *times(q, view.cluster, n)) for n in nodes)
    return Result(rows("name incarnation beat timeout_sec interval_sec", shown))


@statement
def read_members(q: Asked) -> Any:
    yield Take(0)
    view = q.tx.view()
    nodes = in_order(view.node.values())
    values = (
        (
            n.name,
            n.incarnation,
            n.beat,
            n.weight,
            n.state == "active",
            n.joined,
            *times(q, view.cluster, n),
        )
        for n in nodes
    )
    return Result(
        rows("name incarnation beat weight active joined timeout_sec interval_sec", values)
    )


@statement
def read_token_groups(q: Asked) -> Any:
    yield Take(0)
    groups: dict[tuple[Any, ...], list[int]] = {}
    for token in changed_since(q.tx.view(), q.since):
        groups.setdefault((token.node, token.incarnation, token.next_node), []).append(
            token.token_id
        )
    return Result(
        rows(
            "node incarnation next_node token_ids",
            ((*key, sorted(ids)) for key, ids in groups.items()),
        )
    )


@statement
def read_events(q: Asked) -> Any:
    yield Take(0)
    view = q.tx.view()
    planned = [row[0] for row in view.rebalance.values() if row[0] <= view.cluster.version]
    since = max(planned, default=0)
    events = [
        (number, event)
        for number, event in sorted(view.history.items())
        if event.version > since and event.kind in q.kinds
    ]
    return Result(
        rows("id kind node incarnation", ((n, e.kind, e.node, e.incarnation) for n, e in events))
    )


@statement
def forget_events(q: Asked) -> Any:
    yield Take(0)
    events = sorted(q.tx.view().history.items(), key=lambda item: item[1].at)
    _, last = max(((e.term, n) for n, e in events if e.term is not None), default=(None, None))
    old = [n for n, e in events if e.at < q.now - q.days * 86_400 and n != last][: q.most]
    for number in old:
        q.tx.write("history", number, None)
    return Result((), len(old))


@statement
def forget_rebalances(q: Asked) -> Any:
    yield Take(0)
    return Result()  # there is only the last one


@statement
def expire_nodes(q: Asked) -> Any:
    gone = []
    for name, incarnation, beat in zip(q.names, q.incarnations, q.beats, strict=True):
        if not _stands_still(q, q.tx.view().node.get(name), incarnation, beat):
            continue
        yield Locked(("node", name))
        row = q.tx.row("node", name)
        if _stands_still(q, row, incarnation, beat):
            q.tx.write("node", name, None)
            tell_gone(q, row, "expired")
            gone.append((name, incarnation))
    return Result(rows("name incarnation", gone), len(gone))


def _stands_still(q: Asked, node: Node | None, incarnation: Any, beat: int) -> bool:
    if node is None or node.incarnation != incarnation:
        return False
    return node.beat == beat or not q.keeps("the beat is read again under the lock")


@statement
def take_over(q: Asked) -> Any:
    yield Locked(CLUSTER)
    view = q.tx.view()
    if (
        view.cluster.term != q.term
        or view.alive(view.cluster.leader_incarnation)
        or not view.alive(q.incarnation)
    ):
        return Result()
    q.tx.update(leader=q.name, leader_incarnation=q.incarnation, term=view.cluster.term + 1)
    tell_who_leads(q, view.cluster)
    return Result((), 1)


def _moves(q: Asked) -> Any:
    names: list[str] = q.names
    pairs = zip(numbers(q.token_ids), numbers(q.receivers), strict=True)
    return [(token, names[receiver - 1] if receiver else None) for token, receiver in pairs]


@statement
def copy_tokens(q: Asked) -> Any:
    yield Take(0)
    for token_id, name, incarnation, epoch, version in q.rows:
        if token_id in q.tx.view().token:
            raise psycopg.errors.UniqueViolation(f"there is a token {token_id} already")
        q.tx.write("token", token_id, Token(token_id, name, incarnation, epoch, None, version))
    return Result((), len(q.rows))


@statement
def assign_tokens(q: Asked) -> Any:
    yield Take(0)
    view, moves = q.tx.view(), dict(_moves(q))
    raised = 1 if q.keeps("epoch raised by expiry") else 0

    def free(token: Token) -> bool:
        return (
            token.token_id in moves
            and token.version <= q.planned_version
            and (token.incarnation == q.incarnation or not view.alive(token.incarnation))
        )

    def assigned(token: Token) -> Token:
        node = view.receiver(moves[token.token_id])
        owner = (node.name, node.incarnation) if node else (None, None)
        return Token(
            token.token_id, *owner, max(token.epoch, q.generation << 32) + raised, None, q.version
        )

    return change(q, free, assigned)


@statement
def revoke_tokens(q: Asked) -> Any:
    yield Take(0)
    moves = dict(_moves(q))
    return change(
        q,
        lambda t: (
            t.token_id in moves and t.version <= q.planned_version and t.incarnation is not None
        ),
        lambda t: t._replace(next_node=moves[t.token_id], version=q.version),
        "update",
    )


@statement
def finish_plan(q: Asked) -> Any:
    yield Locked(CLUSTER)
    since = q.version if q.first else q.tx.view().cluster.tokens_since
    said = announced(q, q.version)
    q.tx.update(
        version=q.version, announced=said, planned_joined=q.planned_joined, tokens_since=since
    )
    return Result((), 1)


@statement
def record_plan(q: Asked) -> Any:
    yield Take(0)
    # The rest tells nobody anything.
    q.tx.write("rebalance", "last", (q.version, q.reason, q.leader, q.term, q.tokens_moved))
    return Result((), 1)


@statement
def announce_plan(q: Asked) -> Any:
    yield Take(0)
    announce(q, q.tx.view().cluster, q.concerned)
    return Result()

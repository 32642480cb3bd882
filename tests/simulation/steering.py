"""What the statements do by which people pause, resume, evict and allow."""

from __future__ import annotations

from typing import Any

from tests.simulation.records import moment, quick
from tests.simulation.statements import (
    Asked,
    Locked,
    Result,
    rows,
    statement,
    tell,
    tell_who_leads,
)
from tests.simulation.tables import CLUSTER, Evicted, in_order


@quick
def read_pause(q: Asked) -> Result:
    cluster = q.tx.view().cluster
    pause = (cluster.pause_reason, cluster.paused_by, cluster.paused_at)
    return Result(rows("reason by since", [pause] if cluster.paused_at else ()))


@quick
def list_evicted(q: Asked) -> Result:
    evicted = q.tx.view().evicted
    told = [(name, one.at, one.by, one.reason) for name, one in evicted.items()]
    return Result(rows("name at by reason", told))


def _announce_now(q: Asked) -> Result:
    if q.channel is not None:
        q.tx.notices.append("now")
    return Result(rows("pg_notify", [(None,)]), 1)


@statement
def pause(q: Asked) -> Any:
    yield Locked(CLUSTER)
    q.tx.update(paused_at=moment(q.now), paused_by=q.by, pause_reason=q.reason)
    return _announce_now(q)


@statement
def resume(q: Asked) -> Any:
    yield Locked(CLUSTER)
    q.tx.update(paused_at=None, paused_by=None, pause_reason=None)
    return _announce_now(q)


@quick
def find_evicted(q: Asked) -> Result:
    view = q.tx.view()
    found = view.evicted.get(q.name)
    if found is None:
        return Result()
    nodes = view.node.values()
    row = next((node.name for node in nodes if node.incarnation == found.incarnation), None)
    return Result(rows("at by reason row", [(found.at, found.by, found.reason, row)]))


@statement
def evict_node(q: Asked) -> Any:
    if q.name not in q.tx.view().node:
        return Result()
    yield Locked(("node", q.name))
    node = q.tx.row("node", q.name)
    if node is None:
        return Result()
    number = q.tx.view().cluster.last_joined + 1
    q.tx.update(last_joined=number)
    changed = node._replace(
        name=f"{node.name} (evicted, {number})",
        joined=number,
        state="draining",
        address=None,
        runs=None,
    )
    if not q.keeps("no heartbeat of an evicted worker counts"):
        changed = changed._replace(name=node.name)
    q.tx.try_lock(("node", changed.name), "exclusive")
    q.tx.write("node", node.name, None)
    if q.keeps("an evicted worker's tokens wait for its lease"):
        q.tx.write("node", changed.name, changed)
    else:  # its end is told, so that only this is wrong
        version = q.tx.view().cluster.version
        tell(q, version, "expired", node=node.name, incarnation=node.incarnation, silent=True)
    older = node.said_by != node.incarnation
    return Result(rows("name incarnation older", [(changed.name, node.incarnation, older)]), 1)


@statement
def record_eviction(q: Asked) -> Any:
    yield Locked(("evicted", q.name))
    q.tx.write("evicted", q.name, Evicted(q.by, q.reason, q.incarnation, moment(q.now)))
    return Result((), 1)


@statement
def lead_in_place_of(q: Asked) -> Any:
    yield Locked(CLUSTER)
    view = q.tx.view()
    others = [n for n in in_order(view.node.values()) if n.incarnation != q.incarnation]
    cluster = view.cluster
    if not others or q.incarnation is None or cluster.leader_incarnation != q.incarnation:
        return Result()
    first = others[0]
    q.tx.update(leader=first.name, leader_incarnation=first.incarnation, term=cluster.term + 1)
    tell_who_leads(q, cluster)
    return Result((), 1)


@statement
def allow_again(q: Asked) -> Any:
    if q.name not in q.tx.view().evicted:
        return Result()
    yield Locked(("evicted", q.name))
    q.tx.write("evicted", q.name, None)
    return Result((), 1)


@quick
def record_event(q: Asked) -> Result:
    version = q.tx.view().cluster.version
    about = {"node": q.node, "incarnation": q.incarnation, "by": q.by, "reason": q.reason}
    tell(q, version, q.kind, **about)
    return Result(rows("id", [(version,)]), 1)

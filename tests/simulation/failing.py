"""What the statements of ``queries.sql`` about the dead and about the server itself do."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from tests.simulation.statements import (
    Asked,
    Locked,
    Result,
    Take,
    actual,
    announce,
    announced,
    change,
    locked_cluster,
    rows,
    statement,
    tell,
    tell_gone,
)
from tests.simulation.tables import Cluster, Node, in_order

if TYPE_CHECKING:
    from tests.simulation.server import Session

_MOST_JUMP = 65536


# == known deaths ==================================================================================


@statement
def end_sessions(q: Asked) -> Any:
    yield Take(0)
    if not q.keeps("ending the sessions of the dead"):
        return Result()
    ended = [
        other
        for other in q.session.server.sessions
        if other is not q.session and _tagged(other, q.tags)
    ]
    for session in ended:
        session.terminate()
    return Result((), len(ended))


def _tagged(session: Session, tags: list[str]) -> bool:
    return any(tag in session.client.purpose for tag in tags)


@statement
def delete_dead(q: Asked) -> Any:
    gone = []
    who = zip(q.names, q.incarnations, q.boot_ids, q.namespaces, q.pids, q.started, strict=True)
    for name, *seen in who:
        if not _is_dead(q, q.tx.view().node.get(name), seen):
            continue
        yield Locked(("node", name))
        row = q.tx.row("node", name)
        if _is_dead(q, row, seen):
            q.tx.write("node", name, None)
            tell_gone(q, row, "died", "its process has ended")
            gone.append((name,))
    return Result(rows("name", gone), len(gone))


def _is_dead(q: Asked, node: Node | None, seen: list[Any]) -> bool:
    if node is None or not q.keeps("a death is that of one start in one process"):
        return node is not None
    own = [node.incarnation, node.boot_id, node.pid_namespace, node.pid, node.process_started]
    return None not in own and own == seen  # what is null equals nothing


# == failover by session ===========================================================================


@statement
def hold_session(q: Asked) -> Any:
    yield Take(0)
    q.session.holds = q.incarnation
    return Result([(True,)], 1)


@statement
def read_sessions(q: Asked) -> Any:
    yield Take(0)
    nodes = [
        (n.name, n.incarnation, n.beat, n.session_tag, _held(q, n))
        for n in q.tx.view().node.values()
    ]
    columns = "server_started pid backend_start name incarnation beat session_tag held"
    return Result(rows(columns, [(*_watchers_ground(q), *node) for node in nodes or [(None,) * 5]]))


@statement
def expire_sessionless(q: Asked) -> Any:
    gone = []
    for name, *seen in zip(q.names, q.incarnations, q.beats, strict=True):
        if not _sessionless(q, name, seen):
            continue
        yield Locked(("node", name))
        if _sessionless(q, name, seen):
            tell_gone(q, q.tx.row("node", name), "died", "its session has ended")
            q.tx.write("node", name, None)
            gone.append((name,))
    return Result(rows("name", gone), len(gone))


def _sessionless(q: Asked, name: str, seen: list[Any]) -> bool:
    node = q.tx.row("node", name)
    as_seen = node is not None and [node.incarnation, node.beat] == seen and not _held(q, node)
    return as_seen and _watchers_ground(q) == (q.server_started, q.pid, q.backend_start)


def _held(q: Asked, node: Node) -> bool:
    return any(session.holds == node.incarnation for session in q.session.server.sessions)


def _watchers_ground(q: Asked) -> tuple[float, int, float]:
    return q.session.server.started, q.session.number, q.session.started


# == failover of the server ========================================================================


@statement
def read_server(q: Asked) -> Any:
    yield Take(0)
    cluster = q.tx.view().cluster
    values = (
        cluster.server_identity,
        actual(q),
        cluster.generation,
        cluster.version,
        str(q.session.server.started),
    )
    names = (
        "recorded actual generation version running_since longest_wait total_tokens hash_function"
    )
    # Settings are not in the model.
    return Result(rows(names, [(*values, cluster.longest_wait, None, None)]))


@statement
def restore_cluster(q: Asked) -> Any:
    yield Take(0)
    return Result()  # the row is always there


@statement
def condemn_history(q: Asked) -> Any:
    def matches(cluster: Cluster) -> bool:
        return (
            cluster.server_identity == q.recorded
            and (q.unreadable or q.recorded == actual(q))
            and cluster.generation == q.seen_generation
        )

    cluster = yield from locked_cluster(q, matches)
    if cluster is None:
        return Result()
    q.tx.update(server_identity=None, generation=max(cluster.generation, q.known_generation))
    return Result((), 1)


@statement
def begin_generation(q: Asked) -> Any:
    cluster = yield from locked_cluster(q, partial(_as_seen, q))
    if cluster is None:
        return Result()
    generation = max(cluster.generation, q.known_generation) + 1 + int(q.chance() * _MOST_JUMP)
    version = max(cluster.version, q.known_version) + 1
    begun = q.tx.update(
        generation=generation if q.keeps("raising the generation") else cluster.generation,
        server_identity=actual(q) if q.keeps("recording the identity") else cluster.server_identity,
        version=version,
        announced=announced(q, version),
        pin_version=version,
        leader=None,
        leader_incarnation=None,
        term=cluster.term + 1,
        longest_wait=q.waited,
    )
    announce(q, begun)
    details = {
        "generation": begun.generation,
        "server": begun.server_identity,
        "server_before": q.recorded,
        "workers": [node.name for node in in_order(q.tx.view().node.values())] or None,
    }
    told = {"by": q.by, "term": begun.term, "reason": q.reason, "details": details}
    tell(q, version, "generation", **told)
    return Result(rows("version generation", [(begun.version, begun.generation)]), 1)


def _as_seen(q: Asked, cluster: Cluster) -> bool:
    if cluster.server_identity != q.recorded:
        return False
    if q.actual is None:
        return True
    as_waited = cluster.longest_wait == q.seen_wait or not q.keeps(
        "the bound is the one that was waited on"
    )
    return cluster.generation == q.seen_generation and as_waited and q.actual == actual(q)


@statement
def free_all_tokens(q: Asked) -> Any:
    yield Take(0)
    free = {
        "node": None,
        "incarnation": None,
        "next_node": None,
        "epoch": q.generation << 32,
        "version": q.version,
    }
    return change(q, lambda token: True, lambda token: token._replace(**free))


@statement
def delete_all_nodes(q: Asked) -> Any:
    names = list(q.tx.view().node)
    for name in names:
        yield Locked(("node", name))
        q.tx.write("node", name, None)
    return Result((), len(names))

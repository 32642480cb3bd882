"""What the statements of ``queries.sql`` about pins, claims, completions, status and the session do, and the fence."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from tests.simulation.statements import STATEMENTS, Asked, Locked, Result, numbers, rows, statement, times
from tests.simulation.tables import CLUSTER, in_order

_EPOCH = dt.datetime(2024, 2, 29, tzinfo=dt.timezone.utc)


def moment(seconds: float) -> dt.datetime:
    """The server's wall clock, for people."""
    return _EPOCH + dt.timedelta(seconds=seconds)


def _quick(function: Any) -> Any:
    """A statement that locks nothing."""

    def generator(q: Asked) -> Any:
        return function(q)
        yield

    STATEMENTS[function.__name__] = generator
    return generator


# == the session ========================================================================================================


@_quick
def prepare_session(q: Asked) -> Result:
    return Result(rows("count server", [(7, q.session.server.identity)]))


@_quick
def say_something(q: Asked) -> Result:
    return Result([()])


@_quick
def bound_transaction(q: Asked) -> Result:
    return Result(rows("count", [(5,)]))


@_quick
def read_committed(q: Asked) -> Result:
    return Result()


@_quick
def read_settings(q: Asked) -> Result:
    return Result()


# == pins ===============================================================================================================


@statement
def touch_pins(q: Asked) -> Any:
    yield Locked(CLUSTER)
    q.tx.update(pin_version=q.tx.view().cluster.version)
    return Result((), 1)


def _in_force(q: Asked) -> list[dict[str, Any]]:
    pins = [pin for pin in q.tx.view().lock.values() if pin["expires_at"] is None or pin["expires_at"] > q.now]
    return sorted(pins, key=lambda pin: (pin["created_at"], pin["task_id"]))


@_quick
def read_pins(q: Asked) -> Result:
    def left(pin: dict[str, Any]) -> float | None:
        return None if pin["expires_at"] is None else pin["expires_at"] - q.now

    return Result(rows("task_id node_patterns expires_in", ((p["task_id"], p["node_patterns"], left(p)) for p in _in_force(q))))


@_quick
def pins_of_tokens(q: Asked) -> Result:
    wanted = set(numbers(q.token_ids))
    pins = ((p["task_id"], p["token_id"], p["node_patterns"]) for p in _in_force(q) if p["token_id"] in wanted)
    return Result(rows("task_id token_id node_patterns", pins))


@_quick
def upsert_pins(q: Asked) -> Result:
    expires = None if q.expires_in_days is None else q.now + q.expires_in_days * 86400
    for key, task, token, patterns, reason in zip(
        q.task_keys, q.task_ids, numbers(q.token_ids), q.node_patterns, q.reasons, strict=True
    ):
        pin = {"task_id": task, "token_id": token, "node_patterns": json.loads(patterns), "reason": reason}
        q.tx.write("lock", key, {**pin, "created_at": q.now, "created_by": q.created_by, "expires_at": expires})
    return Result((), len(q.task_keys))


def _delete_pins(q: Asked, which: Any) -> Result:
    keys = [key for key, pin in q.tx.view().lock.items() if which(pin)]
    for key in keys:
        q.tx.write("lock", key, None)
    return Result((), len(keys))


@_quick
def delete_pins_by_creator(q: Asked) -> Result:
    return _delete_pins(q, lambda pin: pin["created_by"] == q.created_by)


@_quick
def delete_all_pins(q: Asked) -> Result:
    return _delete_pins(q, lambda pin: True)


@_quick
def delete_expired_pins(q: Asked) -> Result:
    return _delete_pins(q, lambda pin: pin["expires_at"] is not None and pin["expires_at"] <= q.now)


@_quick
def list_pins(q: Asked) -> Result:
    names = ("task_id", "token_id", "node_patterns", "reason", "created_at", "created_by", "expires_at")
    pins = [{**pin, "created_at": moment(pin["created_at"])} for pin in _in_force(q)]
    for pin in pins:
        pin["expires_at"] = None if pin["expires_at"] is None else moment(pin["expires_at"])
    return Result(rows(" ".join(names), ([pin[name] for name in names] for pin in pins)))


# == the fence, claims and audit ========================================================================================


def _fence(q: Asked, token_id: int, epoch: int) -> Any:
    """FOR KEY SHARE of the token's row, if it is this incarnation's under this epoch; whether it is, and was before waiting."""
    by_epoch = q.keeps("the fence's epoch")

    def holds(token: Any) -> bool:
        return token is not None and token.incarnation == q.incarnation and (token.epoch == epoch or not by_epoch)

    if not holds(q.tx.view().token.get(token_id)):
        return False
    if q.keeps("the fence's lock"):
        yield Locked(("token", token_id), "key share")
        if not holds(q.tx.row("token", token_id)):
            return False
    q.tx.fenced.append((token_id, q.incarnation, epoch))
    return True


@statement
def fence(q: Asked) -> Any:
    """What `Claim.fence_sql` gives."""
    held = yield from _fence(q, q.token_id, q.epoch)
    return Result(rows("epoch", [(q.epoch,)])) if held else Result()


def _fenced(q: Asked) -> Any:
    held = []
    for key, task, token, epoch in zip(q.task_keys, q.task_ids, numbers(q.token_ids), numbers(q.epochs), strict=True):
        if (yield from _fence(q, token, epoch)):
            held.append((key, task, token, epoch))
    return held


@statement
def record_claims(q: Asked) -> Any:
    audit = q.tx.view().audit  # as the statement saw it when it began
    held = yield from _fenced(q)
    writes = not q.all_or_none or len(held) == len(q.task_keys)
    for key, task, token, epoch in held:
        if writes and (q.date, key) not in audit:
            q.tx.write("claim", (q.date, key), (task, token, q.node, epoch, None, q.now))
    return Result(rows("task_key complete", ((key, (q.date, key) in audit) for key, *_ in held)))


@statement
def record_claim(q: Asked) -> Any:
    complete = (q.date, q.task_key) in q.tx.view().audit
    if not (yield from _fence(q, q.token_id, q.epoch)):
        return Result()
    if not complete:
        q.tx.write("claim", (q.date, q.task_key), (q.task_id, q.token_id, q.node, q.epoch, None, q.now))
    return Result(rows("complete", [(complete,)]))


@statement
def record_completions(q: Asked) -> Any:
    held = yield from _fenced(q)
    done = []
    for key, task, token, epoch in held:
        fresh = q.tx.row("audit", (q.date, key)) is None
        if fresh:
            q.tx.write("audit", (q.date, key), (task, token, q.node, epoch, q.now))
        done.append((key, fresh))
    return Result(rows("task_key completed", done))


@_quick
def write_audit(q: Asked) -> Result:
    written = 0
    for key, task, token, epoch in zip(q.task_keys, q.task_ids, numbers(q.token_ids), numbers(q.epochs), strict=True):
        if q.tx.row("audit", (q.date, key)) is None:
            q.tx.write("audit", (q.date, key), (task, token, q.node, epoch, q.now))
            written += 1
    return Result((), written)


@_quick
def read_audit(q: Asked) -> Result:
    entries = [(d, *row[:4], moment(row[4])) for (d, _), row in q.tx.view().audit.items() if d == q.date]
    return Result(rows("date task_id token_id node epoch completed_at", sorted(entries, key=lambda e: (e[5], e[1]))))


@_quick
def record_failures(q: Asked) -> Result:
    recorded = 0
    for key, error, epoch in zip(q.task_keys, q.errors, numbers(q.epochs), strict=True):
        row = q.tx.row("claim", (q.date, key))
        if row is not None and row[3] == epoch:
            q.tx.write("claim", (q.date, key), (*row[:4], error, row[5]))
            recorded += 1
    return Result(count=recorded)


@_quick
def forget_failures(q: Asked) -> Result:
    for key in q.task_keys:
        row = q.tx.row("claim", (q.date, key))
        if row is not None and row[4] is not None:
            q.tx.write("claim", (q.date, key), (*row[:4], None, row[5]))
    return Result()


@_quick
def read_progress(q: Asked) -> Result:
    view, found = q.tx.view(), []
    for key in q.task_keys:
        done, begun = view.audit.get((q.date, key)), view.claim.get((q.date, key))
        if done is not None:
            found.append((key, done[2], None, None))
        elif begun is not None and begun[4] is not None:
            found.append((key, begun[2], begun[4], moment(begun[5])))
    return Result(rows("task_key node error claimed_at", found))


# == for people =========================================================================================================


@_quick
def list_nodes(q: Asked) -> Result:
    view = q.tx.view()
    nodes = [
        {
            "name": n.name,
            "state": n.state,
            "weight": n.weight,
            "tokens": sum(token.incarnation == n.incarnation for token in view.token.values()),
            "is_leader": n.incarnation == view.cluster.leader_incarnation,
            "address": n.address,
            "host": n.host,
            "pid": n.pid,
            "joined": n.joined,
            "created_on": moment(0),
            "age_sec": q.now,
            "last_heartbeat": moment(n.last_heartbeat),
            "heartbeat_age_sec": q.now - n.last_heartbeat,
            "beat": n.beat,
            "runs": n.runs,
            **dict(zip(("timeout_sec", "interval_sec"), times(q, view.cluster, n), strict=True)),
        }
        for n in in_order(view.node.values())
    ]
    return Result(rows(" ".join(nodes[0]), (node.values() for node in nodes)) if nodes else ())


@_quick
def read_status(q: Asked) -> Result:
    view = q.tx.view()
    unowned = sum(not view.alive(token.incarnation) for token in view.token.values())
    cluster = view.cluster
    values = (cluster.version, cluster.term, cluster.leader, cluster.generation, 0, "modulo", 1, 2, unowned, len(view.token))
    names = "version term leader generation total_tokens hash_function schema_version layout unowned distributed"
    return Result(rows(names, [values]))


@_quick
def list_handoffs(q: Asked) -> Result:
    going: dict[tuple[Any, Any], int] = {}
    for token in q.tx.view().token.values():
        if token.next_node is not None:
            going[token.node, token.next_node or None] = going.get((token.node, token.next_node or None), 0) + 1
    return Result(rows("node receiver tokens oldest_sec", ((*key, count, 0.0) for key, count in going.items())))


@_quick
def list_rebalances(q: Asked) -> Result:
    return Result()


@_quick
def list_stuck(q: Asked) -> Result:
    return Result()  # the rows say it in JSON, which nobody here reads

"""What the statements of ``queries.sql`` about pins, status and the session do."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from tests.simulation.statements import (
    STATEMENTS,
    Asked,
    Locked,
    Result,
    keys,
    numbers,
    rows,
    statement,
    texts,
    times,
)
from tests.simulation.tables import CLUSTER, in_order

_EPOCH = dt.datetime(2024, 2, 29, tzinfo=dt.timezone.utc)


def moment(seconds: float) -> dt.datetime:
    """The server's wall clock, for people."""
    return _EPOCH + dt.timedelta(seconds=seconds)


def quick(function: Any) -> Any:
    """A statement that locks nothing."""

    def generator(q: Asked) -> Any:
        return function(q)
        yield

    STATEMENTS[function.__name__] = generator
    return generator


# == the session ===================================================================================


@quick
def prepare_session(q: Asked) -> Result:
    return Result(rows("count server", [(7, q.session.server.identity)]))


@quick
def say_something(q: Asked) -> Result:
    return Result([()])


@quick
def bound_transaction(q: Asked) -> Result:
    return Result(rows("count", [(5,)]))


@quick
def read_committed(q: Asked) -> Result:
    return Result()


@quick
def read_settings(q: Asked) -> Result:
    return Result()


# == pins ==========================================================================================


@statement
def touch_pins(q: Asked) -> Any:
    yield Locked(CLUSTER)
    q.tx.update(pin_version=q.tx.view().cluster.version)
    return Result((), 1)


def _in_force(q: Asked) -> list[dict[str, Any]]:
    pins = [
        pin
        for pin in q.tx.view().lock.values()
        if pin["expires_at"] is None or pin["expires_at"] > q.now
    ]
    return sorted(pins, key=lambda pin: (pin["created_at"], pin["task_id"]))


@quick
def read_pins(q: Asked) -> Result:
    def left(pin: dict[str, Any]) -> float | None:
        return None if pin["expires_at"] is None else pin["expires_at"] - q.now

    return Result(
        rows(
            "task_id node_patterns expires_in",
            ((p["task_id"], p["node_patterns"], left(p)) for p in _in_force(q)),
        )
    )


@quick
def pins_of_tokens(q: Asked) -> Result:
    wanted = set(numbers(q.token_ids))
    pins = (
        (p["task_id"], p["token_id"], p["node_patterns"])
        for p in _in_force(q)
        if p["token_id"] in wanted
    )
    return Result(rows("task_id token_id node_patterns", pins))


@quick
def upsert_pins(q: Asked) -> Result:
    expires = None if q.expires_in_days is None else q.now + q.expires_in_days * 86400
    for key, task, token, patterns, reason in zip(
        keys(q.task_keys),
        texts(q.task_ids),
        numbers(q.token_ids),
        texts(q.node_patterns),
        q.reasons,
        strict=True,
    ):
        pin = {
            "task_id": task,
            "token_id": token,
            "node_patterns": json.loads(patterns),
            "reason": reason,
        }
        q.tx.write(
            "lock",
            key,
            {**pin, "created_at": q.now, "created_by": q.created_by, "expires_at": expires},
        )
    return Result((), len(keys(q.task_keys)))


def _delete_pins(q: Asked, which: Any) -> Result:
    keys = [key for key, pin in q.tx.view().lock.items() if which(pin)]
    for key in keys:
        q.tx.write("lock", key, None)
    return Result((), len(keys))


@quick
def delete_pins_by_creator(q: Asked) -> Result:
    return _delete_pins(q, lambda pin: pin["created_by"] == q.created_by)


@quick
def delete_all_pins(q: Asked) -> Result:
    return _delete_pins(q, lambda pin: True)


@quick
def delete_expired_pins(q: Asked) -> Result:
    return _delete_pins(q, lambda pin: pin["expires_at"] is not None and pin["expires_at"] <= q.now)


@quick
def list_pins(q: Asked) -> Result:
    names = (
        "task_id",
        "token_id",
        "node_patterns",
        "reason",
        "created_at",
        "created_by",
        "expires_at",
    )
    pins = [{**pin, "created_at": moment(pin["created_at"])} for pin in _in_force(q)]
    for pin in pins:
        pin["expires_at"] = None if pin["expires_at"] is None else moment(pin["expires_at"])
    return Result(rows(" ".join(names), ([pin[name] for name in names] for pin in pins)))


# == for people ====================================================================================


@quick
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


@quick
def read_status(q: Asked) -> Result:
    view = q.tx.view()
    unowned = sum(not view.alive(token.incarnation) for token in view.token.values())
    cluster = view.cluster
    values = (
        cluster.version,
        cluster.term,
        cluster.leader,
        cluster.generation,
        0,
        "modulo",
        1,
        2,
        unowned,
        len(view.token),
    )
    names = (
        "version term leader generation total_tokens hash_function schema_version layout unowned "
        "distributed"
    )
    return Result(rows(names, [values]))


@quick
def list_handoffs(q: Asked) -> Result:
    going: dict[tuple[Any, Any], int] = {}
    for token in q.tx.view().token.values():
        if token.next_node is not None:
            going[token.node, token.next_node or None] = (
                going.get((token.node, token.next_node or None), 0) + 1
            )
    return Result(
        rows(
            "node receiver tokens oldest_sec", ((*key, count, 0.0) for key, count in going.items())
        )
    )


@quick
def list_rebalances(q: Asked) -> Result:
    return Result()


@quick
def list_stuck(q: Asked) -> Result:
    return Result()  # the rows say it in JSON, which nobody here reads

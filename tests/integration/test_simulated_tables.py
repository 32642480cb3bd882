"""The simulation's model of the tables against PostgreSQL: the same statements in any order, the
same answers and rows.

Statements come in transactions as the library sends them, with parameters that sometimes fit and
sometimes do not, by workers some of which are gone or have another incarnation by now. Now and then
somebody else holds the lock of a few tokens.
"""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Callable
from random import Random
from typing import Any

import psycopg
import pytest

from jobsync_async.core.distribution import CAUSES, Moves
from jobsync_async.core.hashing import key_range, task_key
from jobsync_async.core.rows import Identity
from jobsync_async.postgres.arrays import bytes_array, int_array, text_array
from jobsync_async.postgres.token_rows import token_rows
from tests.comparison import NAMES, TOKENS, Both, Model, Steps, empty, some_tokens_locked
from tests.hands import hand
from tests.simulation import statements

_SECONDS = 6.0
Kind = Callable[[Both], Steps]
_DATES = (dt.date(2024, 2, 29), dt.date(2024, 3, 1))


# == what is sent ==================================================================================


def join(q: Both) -> Steps:
    name = q.random.choice(NAMES)
    history = _history(q)
    held, _ = yield "read_node", {"name": name, **history}
    timeout = q.random.choice((2.0, 4.0, 20.0))
    times = {"timeout_sec": timeout, "interval_sec": timeout / 4}
    rows, _ = yield "take_version_to_join", {**history, **times, "unsaid_bound": max(timeout, 15.0)}
    me = q.incarnation()
    host = q.random.choice(("here", "there", None))
    values = {
        "name": name,
        "incarnation": me,
        "state": q.random.choice(("active", "active", "draining")),
        "weight": 1.0,
        "address": None,
        "host": host,
        "pid": q.random.choice((1, 2, None)),
        "boot_id": host,
        "pid_namespace": q.random.choice(("n", "n", "m", None)),
        "process_started": q.random.choice((5, 6, None)),
        "session_tag": f"tag of {name}",
        "library": "9.9",
        "layout": 9,
        "reason": q.random.choice(("anew", None)),
        "about": json.dumps({"host": host, "pid": 7}),
        **times,
        **history,
    }
    if held[0].incarnation and q.random.random() < 0.9:
        if not rows:
            return False
        values |= {"joined": rows[0].last_joined, "version": rows[0].version}
        old = {"old_incarnation": held[0].incarnation, "old_beat": q.near(held[0].beat)}
        _, replaced = yield "replace_node", {**values, **old}
        if not replaced:
            return False
        yield "inherit_tokens", {**values, **old}
    else:
        yield "insert_node", values
    yield "lead_if_nobody_does", history
    q.seen.append((name, me))
    return True


def beat(q: Both) -> Steps:
    name, incarnation = q.somebody()
    version = q.near(q.view.cluster.version)
    yield (
        "heartbeat",
        {
            "name": name,
            "incarnation": incarnation,
            "watch_all": q.random.random() < 0.5,
            "version": version,
            **_history(q),
        },
    )
    return True


def _history(q: Both) -> dict[str, Any]:
    cluster = q.view.cluster
    chosen = q.random.random()
    if chosen < 0.5:
        return {}
    return {
        "adopted_server": cluster.server_identity,
        "adopted_generation": cluster.generation + (chosen > 0.9),
    }


def announce(q: Both) -> Steps:
    name, incarnation = q.somebody()
    runs = [
        {"kind": "owned", "name": run, "date": None}
        for run in ("a", "b", None)
        if q.random.random() < 0.5
    ]
    yield "announce_runs", {"name": name, "incarnation": incarnation, "runs": json.dumps(runs)}
    asked = json.dumps([run for run in runs if q.random.random() < 0.7])
    yield "read_idlers", {"incarnation": incarnation, "runs": asked}
    yield "tokens_of", {"incarnations": [q.somebody()[1] for _ in range(2)]}
    return True


def read(q: Both) -> Steps:
    name, incarnation = q.somebody()
    since = q.random.choice(
        (-1, 0, *range(max(0, q.view.cluster.version - 6), q.view.cluster.version + 2))
    )
    near = {
        "members": q.random.randint(0, 3),
        "youngest": q.random.randint(0, 9),
        "most_told": q.random.choice((1, 2, 33)),
    }
    yield "read_version", {}
    yield (
        "read_changes",
        {"name": name, "incarnation": incarnation, "since": since, **near, **_history(q)},
    )
    yield "read_cluster", {}
    yield "read_beats", _history(q)
    yield "read_members", {}
    yield "read_token_groups", {"since": since}
    yield "read_server", {}
    yield "owner_of", {"token_id": q.random.randrange(TOKENS)}
    return False


_RECORD = {
    "reason": "joined",
    "leader": "a",
    "term": 1,
    "nodes_before": 1,
    "nodes_after": 2,
    "tokens_moved": 3,
    "duration_ms": 4.0,
    "causes": [3, 4],
    "moves": "[]",
}


def lead(q: Both) -> Steps:
    cluster = q.view.cluster
    me = cluster.leader_incarnation if q.random.random() < 0.9 else q.somebody()[1]
    locked, _ = yield (
        "lock_as_leader",
        {"term": q.near(cluster.term), "incarnation": me, **_history(q)},
    )
    if not locked:
        return False
    if q.random.random() < 0.3:
        yield "expire_nodes", _beats(q, taken=False)
    yield "read_events", {"kinds": q.random.choice((list(CAUSES), ["joined", "expired"]))}
    moves = q.moves()
    missing = [
        token for token in range(TOKENS) if token not in q.view.token and q.random.random() < 0.8
    ]
    first = len(missing) == TOKENS
    if missing:
        created = Moves(missing, [q.random.randint(0, 2) for _ in missing])
        owners = [Identity(*q.somebody()), None]
        version = 0 if first else moves["version"]
        yield "copy_tokens", {"pieces": list(token_rows(created, owners, epoch=1, version=version))}
    yield q.random.choice(("assign_tokens", "revoke_tokens")), moves
    yield "revoke_tokens", q.moves()
    plan = {
        "version": moves["version"],
        "first": first,
        "planned_joined": q.random.randint(0, cluster.last_joined),
    }
    yield "finish_plan", plan
    if q.random.random() < 0.5:
        yield "record_plan", {"version": moves["version"], **_RECORD}
    yield "announce_plan", {"version": moves["version"], "concerned": ""}
    return True


def _beats(q: Both, *, taken: bool) -> dict[str, Any]:
    nodes = [q.view.node[name] for name in sorted(q.view.node)][:2]
    return {
        "names": [node.name for node in nodes],
        "incarnations": [node.incarnation for node in nodes],
        "beats": [q.near(node.beat) for node in nodes],
        "taken": taken,
    }


def take_over(q: Both) -> Steps:
    name, incarnation = q.somebody()
    taken, _ = yield "take_version", _history(q)
    yield "expire_nodes", _beats(q, taken=True)
    _, count = yield (
        "take_over",
        {"name": name, "incarnation": incarnation, "term": q.near(q.view.cluster.term)},
    )
    return bool(taken) and count == 1


def acknowledge(q: Both) -> Steps:
    _, incarnation = q.somebody()
    history = _history(q)
    yield "lock_cluster", history
    tokens = [q.view.token[number] for number in sorted(q.view.token)]
    asked = {
        "token_ids": int_array([token.token_id for token in tokens]),
        "versions": int_array([token.version + (q.random.random() < 0.1) for token in tokens]),
    }
    yield (
        "acknowledge",
        {
            "incarnation": incarnation,
            "most_named": q.random.choice((0, 1, 100)),
            **asked,
            **history,
        },
    )
    return True


def leave(q: Both) -> Steps:
    name, incarnation = q.somebody()
    taken, _ = yield "take_version", {}
    if not taken:
        return False
    values = {"name": name, "incarnation": incarnation, "version": taken[0].version}
    values |= {"reason": q.random.choice(("why", None)), "taken": True}
    if q.random.random() < 0.5:
        yield "set_state", {**values, "state": q.random.choice(("active", "draining"))}
    else:
        yield "free_tokens_of", values
        yield "delete_node", values
        yield "lead_if_nobody_does", {}
    return True


def steer(q: Both) -> Steps:
    """Somebody pauses, resumes, evicts and allows."""
    name = q.random.choice((*NAMES, *sorted(q.view.node)))
    said = {"name": name, "by": "anna", "reason": q.random.choice(("slow", None))}
    taken, _ = yield "take_version", _history(q)
    if not taken:
        return False
    yield "find_evicted", said
    chosen = q.random.random()
    if chosen < 0.4:
        rows, _ = yield "evict_node", said
        worker = {**said, "incarnation": rows[0].incarnation if rows else None}
        yield "record_eviction", worker
        yield "lead_in_place_of", worker
    elif chosen < 0.8:
        yield "allow_again", said
    else:
        yield q.random.choice(("pause", "resume")), said
    yield "read_pause", {}
    return True


def report(q: Both) -> Steps:
    nodes = [q.view.node[name] for name in sorted(q.view.node)]
    dead = q.random.sample(nodes, min(len(nodes), 2))
    yield "take_version", {}
    values = {
        "names": [node.name for node in dead],
        "incarnations": [
            node.incarnation if q.random.random() < 0.8 else q.incarnation() for node in dead
        ],
        "boot_ids": [node.boot_id for node in dead],
        "namespaces": [node.pid_namespace for node in dead],
        "pids": [node.pid for node in dead],
        "started": [node.process_started for node in dead],
        "taken": True,
    }
    deleted, _ = yield "delete_dead", values
    yield "lead_if_nobody_does", {}
    return bool(deleted)


def work(q: Both) -> Steps:
    name, incarnation = q.somebody()
    batch = q.random.choice((None, None, None, None, "b"))
    tasks = [
        (task_key(str(token), batch), str(token), q.view.token[token])
        for token in q.some()
        if token in q.view.token
    ]
    if tasks and q.random.random() < 0.7:  # most often those of somebody who may
        incarnation = tasks[0][2].incarnation or incarnation
    values = {
        "date": _DATES[q.random.random() < 0.2],
        "batch_key": b"of its name" if batch else b"of its ids",
        "batch": batch,
        "node": name,
        "incarnation": incarnation,
        "task_keys": bytes_array([key for key, *_ in tasks]),
        "task_ids": text_array([task for _, task, _ in tasks]),
        "token_ids": int_array([token.token_id for *_, token in tasks]),
        "epochs": int_array([token.epoch + (q.random.random() < 0.2) for *_, token in tasks]),
    }
    chosen = q.random.random()
    if chosen < 0.2:
        yield "record_claims", {**values, "all_or_none": q.random.random() < 0.5}
    elif chosen < 0.8:
        limit = q.random.choice((2, 2, 3))
        judged = {
            "lost_limit": limit,
            "most_lost": q.random.choice((0, 0, limit - 2, limit - 1)),
            "reason": "# times",
        }
        yield "begin_tasks", {**values, **judged}
    if q.random.random() < 0.05:
        yield "record_completions", values
    if q.random.random() < 0.1:
        yield "end_claims", {**values, "errors": [q.random.choice(("wrong", None)) for _ in tasks]}
    if q.random.random() < 0.1:
        yield "forget_failures", values
    if q.random.random() < 0.05:
        yield "write_audit", values
    for name in ("read_progress", "read_set_aside", "read_audit"):
        yield name, values
    if tasks:
        key, task, token = q.random.choice(tasks)
        one = {**values, "task_key": key, "task_id": task, "token_id": token.token_id}
        one |= {
            "epoch": token.epoch + (q.random.random() < 0.2),
            "incarnation": token.incarnation or incarnation,
        }
        yield "record_claim", one
        if q.random.random() < 0.2:
            yield "note_failure", {**one, "error": "wrong"}
    return q.random.random() < 0.8


def inherit(q: Both) -> Steps:
    """Somebody is started again under a name that owns tokens."""
    old = q.random.choice([q.view.token[number].incarnation for number in sorted(q.view.token)])
    yield (
        "inherit_tokens",
        {
            "old_incarnation": old or q.somebody()[1],
            "incarnation": q.incarnation(),
            "version": q.view.cluster.version + 1,
        },
    )
    return True


_PREFIXES = (b"none", b"these", b"two", b"three", b"four")


def batch(q: Both) -> Steps:
    """Runs of two batches, and where their tasks are worked on."""
    name, incarnation = q.somebody()
    key, batch = q.random.choice(((b"of its ids", None), (b"of its name", "b")))
    asked = {
        "date": q.random.choice((None, None, *_DATES)),
        "default_date": q.random.choice(_DATES),
        "batch_key": key,
        "name": batch,
        "total": q.random.choice((0, 1, TOKENS)),
        "ids_key": q.random.choice((b"these", b"these", b"those")),
    }
    is_stream = batch is not None and q.random.random() < 0.7
    if is_stream:
        asked |= {"total": None, "ids_key": b"none"}
    if not is_stream:
        low, high = key_range(batch)
        yield "find_complete", {**asked, "low": low, "high": high}
    yield "lock_batch", {"lock": key.hex()}
    ((opened,), _) = yield "begin_batch", {**asked, "node": name}
    tokens = q.some()
    run = {"batch_key": key, "date": opened.date, "started_at": opened.started_at, "name": batch}
    run["this_run"] = json.dumps([{"kind": "batch", "name": batch, "date": str(opened.date)}])
    yield (
        "find_dates",
        {
            **run,
            "task_keys": bytes_array([task_key(str(t), batch) for t in tokens]),
            "token_ids": int_array(tokens),
        },
    )
    if q.random.random() < 0.5:
        says = {"name": name, "incarnation": incarnation, "runs": run["this_run"]}
        yield "announce_runs", says
    while is_stream and q.random.random() < 0.6:
        at = q.random.randrange(4)
        place = {"before_key": _PREFIXES[at], "ids_key": _PREFIXES[at + 1], "taken": at}
        yield "advance_batch", {
            **run, **place, "node": name, "incarnation": incarnation,
            "anyhow": q.random.random() < 0.3,
        }  # fmt: skip
        yield "find_strays", {**run, **place, "token_ids": int_array(tokens)}
        yield "read_parts", {**run, "ids_key": q.random.choice(_PREFIXES)}
    yield "read_parts", {**run, "ids_key": q.random.choice((b"these", b"those"))}
    if q.random.random() < 0.5:
        finished = {"channel": q.random.choice(("sync_changes", None))}
        yield "finish_batch", {**run, **finished, "ids_key": q.random.choice(_PREFIXES)}
    return q.random.random() < 0.8


def begin(q: Both) -> Steps:
    """The server is found to be another one, or the cluster older than what somebody knows."""
    cluster = q.view.cluster
    server, _ = yield "read_server", {}
    known = {
        "known_generation": cluster.generation + q.random.choice((-1, 0, 7)),
        "known_version": q.near(cluster.version),
    }
    seen = {
        "recorded": server[0].recorded,
        "actual": server[0].actual,
        "seen_generation": q.near(cluster.generation),
    }
    waits = {
        "waited": q.random.choice((4.0, 20.0)),
        "seen_wait": q.random.choice((cluster.longest_wait, 20.0)),
        "reason": "failed over",
    }
    unreadable = {"unreadable": q.random.random() < 0.3}
    yield "condemn_history", {**seen, **known, **unreadable}
    if q.random.random() < 0.5:
        seen["recorded"] = None
        seen["seen_generation"] = max(cluster.generation, known["known_generation"])
    begun, _ = yield "begin_generation", {**seen, **known, **waits}
    if not begun:
        return False
    yield "free_all_tokens", begun[0]._asdict()
    yield "delete_all_nodes", {}
    return True


_KINDS = (
    *(
        join,
        join,
        beat,
        beat,
        announce,
        read,
        read,
        lead,
        lead,
        lead,
        acknowledge,
        acknowledge,
        take_over,
        leave,
        report,
        steer,
    ),
    work,
)


def anything(q: Both) -> Kind:
    return begin if q.random.random() < 0.03 else q.random.choice(_KINDS)


def records(q: Both) -> Kind:
    """As soon as there are tokens: what is recorded of their tasks, while they go from one owner to
    the next."""
    return q.random.choice(
        (*(work, work, inherit, batch) * 3, join, lead) if q.view.token else (join, lead)
    )


@pytest.mark.parametrize("choose", [anything, records])
async def test_the_simulations_model_answers_as_postgresql_does(
    make_config, direct_dsn, monkeypatch, choose
):
    seed = time.time_ns() % 1_000_000
    print(f"seed {seed}")
    config = make_config(total_tokens=TOKENS)
    async with hand(config, "somebody") as one:  # makes the tables
        server = await one.store.failover.read_server()
        queries = one.store.queries
    here, _, oid = str(server.actual).rpartition("/")
    monkeypatch.setattr(statements, "TABLE_OID", oid)
    async with (
        await psycopg.AsyncConnection.connect(direct_dsn, autocommit=True) as connection,
        await psycopg.AsyncConnection.connect(direct_dsn, autocommit=True) as other,
    ):
        until, sequences, transactions = time.monotonic() + _SECONDS, 0, 0
        while time.monotonic() < until:
            await empty(connection, queries, f"{here}/{oid}")
            random = Random(seed + sequences)
            both = Both(connection, other, queries, Model(f"{here}/{oid}"), random, here, [], [])
            try:
                for _ in range(60):
                    kind = choose(both)
                    if random.random() < 0.2 and kind is not work:
                        async with some_tokens_locked(both):
                            await both.transaction(kind(both))
                    else:
                        await both.transaction(kind(both))
                    transactions += 1
            except AssertionError as error:
                pytest.fail("\n".join([*both.sent[-12:], f"seed {seed} + {sequences}: {error}"]))
            sequences += 1
    print(f"{sequences} sequences, {transactions} transactions")
    assert sequences > 3

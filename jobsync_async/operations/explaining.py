"""Why a task is where it is: token, owner, epoch, pin, and the distribution that put it there."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from jobsync_async.core.hashing import task_text, token_hasher
from jobsync_async.core.patterns import eligible
from jobsync_async.core.serving import gaps
from jobsync_async.postgres.store import Store
from jobsync_async.runtime.cluster_status import plain, silent
from jobsync_async.types import LockInfo, NodeInfo


async def explain(
    store: Store, task_id: str, date: dt.date | None, timeout_sec: float | None
) -> dict[str, Any]:
    """Everything about one task. A few statements that each see the tables at their own moment.
    Raises StoreUnavailable.

    Args:
        date: whose claims and completions are told; None is the cluster's.
    """
    settings = await store.inspection.settings()
    token_id = token_hasher(settings.total_tokens, settings.hash_function)(task_id)
    text = task_text(task_id)
    token = await store.inspection.token(token_id)
    nodes = await store.status.nodes()
    pins = [pin for pin in await store.pins.list() if pin.token_id == token_id]
    day = date or await store.work.read_date()
    (bare, *named) = (plain(row) for row in await store.inspection.task(text, day))
    del bare["batch"]
    return {
        "task_id": text,
        "token_id": token_id,
        "total_tokens": settings.total_tokens,
        "hash_function": settings.hash_function,
        **explained(token, pins, nodes, timeout_sec),
        "date": day.isoformat(),
        **bare,
        "batches": named,
    }


def explained(
    token: Mapping[str, Any] | None,
    pins: Sequence[LockInfo],
    nodes: Sequence[NodeInfo],
    timeout_sec: float | None,
) -> dict[str, Any]:
    """What the rows say. Pure.

    Args:
        token: the token's row with its owner, None when it has none.
        pins: those on this token, the oldest first, which decides.
    """
    row: Mapping[str, Any] = token or {}
    pin = pins[0] if pins else None
    takers = [node.name for node in nodes if node.state == "active"]
    may_have = takers if pin is None else eligible(pin.node_patterns, takers)
    owned = row.get("owner") is not None
    runs = next((node.runs for node in nodes if node.name == row.get("owner")), None)
    keys = ("node", "address", "state", "heartbeat_age_sec")
    owner = (
        dict(
            zip(
                keys,
                (row["owner"], row["address"], row["state"], row["heartbeat_age_sec"]),
                strict=True,
            )
        )
        if owned
        else None
    )
    return {
        "owner": owner,
        "epoch": row.get("epoch"),
        "assigned_at": plain(row).get("assigned_at"),
        "revoked": bool(row.get("revoked")),
        "next_node": row.get("next_node"),
        "revoked_sec": row.get("revoked_sec"),
        "pin": None if pin is None else plain(pin),
        "eligible": may_have,
        "rebalance": None
        if row.get("reason") is None
        else {
            "version": row["rebalance_version"],
            "at": row["rebalanced_at"].isoformat(),
            "reason": row["reason"],
        },
        "runs": None if runs is None else [str(runner) for runner in runs],
        "why": " ".join(
            [*_why(row, pin, may_have, takers, timeout_sec), *_what_is_run(row.get("owner"), nodes)]
        ),
    }


def _why(
    row: Mapping[str, Any],
    pin: LockInfo | None,
    may_have: Sequence[str],
    takers: Sequence[str],
    timeout_sec: float | None,
) -> list[str]:
    said = []
    if pin is not None:
        because = f" ({pin.reason})" if pin.reason else ""
        said.append(
            f"Task {pin.task_id!r} pins its token to {', '.join(pin.node_patterns)}{because}."
        )
    if row.get("owner") is None:
        return [*said, _why_nobody(row, pin, may_have, takers)]
    owner = row["owner"]
    if pin is None:
        said.append(f"It has no pin: {owner} has its token as a part of its share.")
    elif owner in may_have:
        said.append(f"{owner} matches.")
    if row["revoked"]:
        said.append(
            f"Its token is being handed on to {row['next_node'] or 'nobody'}, when {owner} lets "
            "go of it."
        )
    elif pin is not None and owner not in may_have:
        said.append(f"{owner} does not match; the next rebalance moves it.")
    elif row["state"] == "draining":
        said.append(f"{owner} is draining; the next rebalance moves it.")
    if silent(row, timeout_sec):
        said.append(
            f"{owner} has been silent for {row['heartbeat_age_sec']:.0f} s and is about to be "
            "expired."
        )
    if row.get("reason") is not None:
        said.append(f"It was moved last because: {row['reason']}.")
    return said


def _what_is_run(owner: str | None, nodes: Sequence[NodeInfo]) -> list[str]:
    """Whether the owner runs what others do."""
    missing = [gap for gap in gaps(nodes) if gap.node == owner]
    said = [
        f"{owner} does not run {gap.runner}, as {', '.join(gap.run_by)} does: if the id is one "
        "of that, nobody serves it."
        for gap in missing
    ]
    silent = any(node.name == owner and node.runs is None for node in nodes)
    if silent and any(node.runs for node in nodes):
        said.append(f"{owner} does not tell what it runs, for its version is older.")
    return said


def _why_nobody(
    row: Mapping[str, Any], pin: LockInfo | None, may_have: Sequence[str], takers: Sequence[str]
) -> str:
    if not takers:
        return "It has no owner: no worker takes tokens."
    if pin is not None and not may_have:
        return (
            "It has no owner: no worker that takes tokens matches. Start one that does, or clear "
            "the pin."
        )
    if not row:
        return (
            "It has no owner: no tokens were handed out yet; a forming cluster waits for "
            "minimum_nodes workers."
        )
    return "It has no owner at this moment: the leader gives it to somebody at its next look."

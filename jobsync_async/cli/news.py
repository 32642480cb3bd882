"""What happened between two looks at the cluster, in words."""

from __future__ import annotations

from typing import Any

from jobsync_async.runtime.cluster_status import silent


def news(before: dict[str, Any], after: dict[str, Any], timeout: float | None) -> list[str]:
    """The differences between two answers of `describe` that are worth a line; heartbeats that go
    on are none. Pure.

    Args:
        timeout: seconds without a heartbeat after which a worker is silent; None for its own
            timeout.
    """
    told = [*_workers(before, after, timeout)]
    if after["leader"] != before["leader"] or after["term"] != before["term"]:
        told.append(f"{after['leader'] or 'nobody'} leads in term {after['term']}")
    if after["paused"] != before["paused"]:
        pause = after["paused"]
        told.append("the cluster goes on" if pause is None else f"paused by {pause['by']}")
    if after["generation"] != before["generation"]:
        told.append(f"generation {after['generation']} began: the server had lost commits")
    told += _handoffs(before, after)
    pins = len(after["unmatched_pins"])
    if pins != len(before["unmatched_pins"]):
        told.append(
            f"{pins} pin{'' if pins == 1 else 's'} match{'es' if pins == 1 else ''} no live worker"
        )
    if not told and after["version"] != before["version"]:
        told.append("something changed")
    return told


def _workers(before: dict[str, Any], after: dict[str, Any], timeout: float | None) -> list[str]:
    told = []
    old = {node["name"]: node for node in before["nodes"]}
    new = {node["name"]: node for node in after["nodes"]}
    told += [
        f"{name} joined"
        for name in new
        if name not in old or new[name]["joined"] != old[name]["joined"]
    ]
    told += [f"{name} is gone" for name in old if name not in new]
    for name in sorted(old.keys() & new.keys()):
        was, now = old[name], new[name]
        unheard = silent(now, timeout)
        if unheard != silent(was, timeout):
            told.append(f"{name} is silent" if unheard else f"{name} is heard again")
        if now["state"] != was["state"]:
            told.append(f"{name} is {now['state']}")
    moved = [
        f"{name} {_tokens(old, name)} → {_tokens(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if _tokens(old, name) != _tokens(new, name)
    ]
    return [*told, f"tokens: {', '.join(moved)}"] if moved else told


def _tokens(nodes: dict[str, dict[str, Any]], name: str) -> int:
    return int(nodes[name]["tokens"]) if name in nodes else 0


def _handoffs(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    told = []
    old, new = (sum(handoff["tokens"] for handoff in seen["handoffs"]) for seen in (before, after))
    if new > old:
        told.append(f"{new:,} tokens are being handed on")
    elif old and not new:
        told.append("every token is handed on")
    known = {(one["node"], one["token_id"]) for one in before["stuck_handoffs"]}
    stuck = {(one["node"], one["token_id"]): one for one in after["stuck_handoffs"]}
    told += [
        f"{one['node']} does not let go of token {one['token_id']}, task "
        f"{(one['task_id'] or '?')[:100]!r}"
        for key, one in stuck.items()
        if key not in known
    ]
    if known and not stuck:
        told.append("no hand-off is stuck any more")
    return told

"""What happened between two looks at the cluster, in words."""

from __future__ import annotations

from typing import Any


def news(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The differences between two answers of `describe` that are worth a line; heartbeats that go
    on are none. What is wrong is left to `changed`. Pure."""
    told = [*_workers(before, after)]
    if after["leader"] != before["leader"] or after["term"] != before["term"]:
        told.append(f"{after['leader'] or 'nobody'} leads in term {after['term']}")
    if after["paused"] != before["paused"]:
        pause = after["paused"]
        told.append("the cluster goes on" if pause is None else f"paused by {pause['by']}")
    if after["generation"] != before["generation"]:
        told.append(f"generation {after['generation']} began: the server had lost commits")
    told += _handoffs(before, after)
    if not told and after["version"] != before["version"]:
        told.append("something changed")
    return told


def _workers(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
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
        if new[name]["state"] != old[name]["state"]:
            told.append(f"{name} is {new[name]['state']}")
    moved = [
        f"{name} {_tokens(old, name)} → {_tokens(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if _tokens(old, name) != _tokens(new, name)
    ]
    return [*told, f"tokens: {', '.join(moved)}"] if moved else told


def _tokens(nodes: dict[str, dict[str, Any]], name: str) -> int:
    return int(nodes[name]["tokens"]) if name in nodes else 0


def _handoffs(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    old, new = (sum(handoff["tokens"] for handoff in seen["handoffs"]) for seen in (before, after))
    if new > old:
        return [f"{new:,} tokens are being handed on"]
    return ["every token is handed on"] if old and not new else []

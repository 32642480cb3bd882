"""The cluster at a glance: what `Job.get_coordination_status` and ``jobsync-async status`` show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jobsync_async.core.patterns import eligible
from jobsync_async.postgres.store import Store
from jobsync_async.types import LockInfo, NodeInfo


async def describe(store: Store, timeout_sec: float) -> dict[str, Any]:
    """A dictionary that JSON can hold, from a few statements that each see the tables at their own moment.

    Raises StoreUnavailable.
    """
    cluster = await store.status.cluster()
    nodes = await store.status.nodes()
    pins = await store.pins.list()
    live = [node for node in nodes if node.heartbeat_age_sec < timeout_sec]
    return {
        **cluster,
        "active_nodes": len(live),
        "nodes": [plain(node) for node in nodes],
        "handoffs": await store.status.handoffs(),
        "stuck_handoffs": await store.status.stuck_handoffs(),
        "unmatched_pins": [plain(pin) for pin in unmatched(pins, live)],
    }


def unmatched(pins: Sequence[LockInfo], nodes: Sequence[NodeInfo]) -> list[LockInfo]:
    """Pins that none of the workers that take tokens matches: their tokens are nobody's."""
    names = [node.name for node in nodes if node.state == "active"]
    matched = {patterns: bool(eligible(patterns, names)) for patterns in {pin.node_patterns for pin in pins}}
    return [pin for pin in pins if not matched[pin.node_patterns]]


def plain(record: NodeInfo | LockInfo | Mapping[str, Any]) -> dict[str, Any]:
    """A record as JSON can hold it: times as ISO 8601."""
    values = record if isinstance(record, Mapping) else asdict(record)
    return {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in values.items()}


def lacking(seen: dict[str, Any]) -> int:
    """How many tokens have no live owner, in what `describe` returned."""
    return int(seen["total_tokens"] - seen["distributed"] + seen["unowned"])

"""The cluster at a glance: what `Job.get_coordination_status` and ``jobsync-async status`` show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jobsync_async.core.patterns import eligible
from jobsync_async.core.serving import gaps
from jobsync_async.errors import ClusterNotFormed
from jobsync_async.postgres.store import Store
from jobsync_async.types import FIRST_VERSION, LockInfo, NodeInfo, Pause, Runner


async def describe(store: Store, timeout_sec: float | None = None) -> dict[str, Any]:
    """A dictionary that JSON can hold, from a few statements that each see the tables at their own
    moment.

    Args:
        timeout_sec: after how many seconds without a heartbeat a worker is not active; None for
            each worker's own timeout.

    Raises StoreUnavailable.
    """
    cluster = await store.status.cluster()
    nodes = await store.status.nodes()
    pins = await store.pins.list()
    live = [node for node in nodes if not silent(node, timeout_sec)]
    pause = await store.status.pause()
    return {
        **cluster,
        "paused": None if pause is None else plain(pause),
        "evicted": [plain(one) for one in await store.status.evicted()],
        "active_nodes": len(live),
        "nodes": [plain(node) for node in nodes],
        "handoffs": await store.status.handoffs(),
        "stuck_handoffs": await store.status.stuck_handoffs(),
        "unmatched_pins": [plain(pin) for pin in unmatched(pins, live)],
        "versions": versions(nodes),
        "unserved": [
            {**gap._asdict(), "runner": str(gap.runner), "run_by": list(gap.run_by)}
            for gap in gaps(live)
        ],
        "warnings": [
            *warnings(nodes, cluster["schema_version"]),
            *([] if pause is None else deaf_to_pauses(nodes)),
        ],
    }


async def not_formed(store: Store, minimum: int, waited_sec: float) -> ClusterNotFormed:
    """The error for a start that has waited so long. Raises StoreUnavailable."""
    live = len([node for node in await store.status.nodes() if node.state == "active"])
    missing = (
        f"{live} of {minimum} workers are there"
        if live < minimum
        else "the first tokens have not come"
    )
    return ClusterNotFormed(
        f"the cluster did not form within {waited_sec:g} s: {missing}; start more workers, "
        "lower minimum_nodes, or raise wait_on_enter",
        live_nodes=live,
        minimum_nodes=minimum,
    )


def versions(nodes: Iterable[NodeInfo]) -> list[dict[str, Any]]:
    """Which versions of the library there are, and who has each."""
    names = defaultdict[tuple[int, str], list[str]](list)
    for node in nodes:
        names[node.layout, node.library].append(node.name)
    return [
        {"library": library, "layout": layout, "nodes": of}
        for (layout, library), of in sorted(names.items())
    ]


def warnings(nodes: Sequence[NodeInfo], schema_version: int) -> list[str]:
    """What is to be looked at in the workers' versions."""
    said = []
    found = versions(nodes)
    if len(found) > 1:
        each = "; ".join(f"{one['library']} ({', '.join(one['nodes'])})" for one in found)
        said.append(f"workers have different versions: {each}; finish the deploy, or go back")
    late = [node.name for node in nodes if node.layout < schema_version]
    if late:
        said.append(
            f"workers are too old for these tables, which were contracted: stop {', '.join(late)}"
        )
    return said


def deaf_to_pauses(nodes: Sequence[NodeInfo]) -> list[str]:
    """Workers that know no pause: what is to be said of them while one holds."""
    deaf = of_first_version(nodes)
    names = ", ".join(deaf)
    return deaf and [
        f"{len(deaf)} workers of {FIRST_VERSION} know no pause and go on: {names}; stop them"
    ]


def of_first_version(nodes: Iterable[NodeInfo | Mapping[str, Any]]) -> list[str]:
    """Workers of the version whose rows tell neither times nor what is run, and which knows no
    pause."""
    return [node["name"] for node in nodes if node["library"] == FIRST_VERSION]


def unmatched(pins: Sequence[LockInfo], nodes: Sequence[NodeInfo]) -> list[LockInfo]:
    """Pins that none of the workers that take tokens matches: their tokens have no owner."""
    names = [node.name for node in nodes if node.state == "active"]
    matched = {
        patterns: bool(eligible(patterns, names))
        for patterns in {pin.node_patterns for pin in pins}
    }
    return [pin for pin in pins if not matched[pin.node_patterns]]


def silent(node: NodeInfo | Mapping[str, Any], timeout_sec: float | None = None) -> bool:
    """Whether a worker has sent no heartbeat for so long; None for its own timeout. By the server's
    clock, for people."""
    limit_sec = silent_after(node, timeout_sec)
    return limit_sec is not None and bool(node["heartbeat_age_sec"] >= limit_sec)


def silent_after(
    node: NodeInfo | Mapping[str, Any], timeout_sec: float | None = None
) -> float | None:
    """After how many seconds without a heartbeat it is silent; None where that is not known."""
    limit_sec: float | None = node["timeout_sec"] if timeout_sec is None else timeout_sec
    return limit_sec


def plain(record: NodeInfo | LockInfo | Pause | Mapping[str, Any]) -> dict[str, Any]:
    """A record as JSON can hold it: times as ISO 8601."""
    # Not `dataclasses.asdict`, which copies deeply: a tenth of a second for 500 workers.
    values = (
        record
        if isinstance(record, Mapping)
        else {name: getattr(record, name) for name in record.__slots__}
    )
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(asdict(one) if isinstance(one, Runner) else one for one in value)
    return value.isoformat() if hasattr(value, "isoformat") else value


def lacking(seen: Mapping[str, Any]) -> int:
    """How many tokens have no live owner, in what `describe` returned."""
    return int(seen["total_tokens"] - seen["distributed"] + seen["unowned"])

"""What happened to the cluster, and who led it when: for people and programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from jobsync_async.operations.wording import quoted
from jobsync_async.postgres.store import Store
from jobsync_async.runtime.cluster_status import plain

MOST_TOLD = 20


async def history(
    store: Store,
    last: int = MOST_TOLD,
    since_sec: float | None = None,
    node: str | None = None,
) -> dict[str, Any]:
    """The latest rows of the history, and the latest distributions, `last` of each at most; both
    the newest first.

    Args:
        since_sec: of the last so many seconds only, by the server's clock.
        node: rows of this worker only, and distributions of which one of these is a cause.
    """
    events = [plain(row) for row in await store.history.events(last, since_sec, node)]
    rebalances = [plain(row) for row in await store.history.rebalances(last, since_sec)]
    if node is not None:
        shown = {event["id"] for event in events}
        rebalances = [one for one in rebalances if shown.intersection(one["causes"] or ())]
    return {"events": events, "rebalances": rebalances}


def in_order(told: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows and distributions of an answer of `history` as one list, the newest first. Pure.

    What is of one version was committed together; a distribution comes after what it answers.
    """
    entries = [*told["events"], *told["rebalances"]]
    return sorted(entries, key=lambda one: (one["version"], one.get("id") or float("inf")))[::-1]


def what_happened(entry: Mapping[str, Any]) -> str:
    """A row of the history, or a distribution, in a few words. Pure."""
    if "tokens_moved" in entry:
        workers = f"{entry['nodes_before']} → {entry['nodes_after']} workers"
        return f"{entry['tokens_moved']:,} tokens move, {workers}, {entry['duration_ms']:.1f} ms"
    details = entry["details"] or {}
    if entry["kind"] == "took over":
        return f"{entry['node']} leads in term {entry['term']}"
    if entry["kind"] == "generation":
        return f"generation {details.get('generation', '?')} begins"
    if entry["kind"] in ("pinned", "unpinned"):
        return _of_pins(entry["kind"], details)
    return " ".join(filter(None, (entry["node"], entry["kind"])))


def _of_pins(kind: str, details: Mapping[str, Any]) -> str:
    tasks, patterns = details.get("tasks") or (), details.get("node_patterns")
    of = details.get("created_by")
    what = f"task {quoted(tasks[0])}" if tasks else f"all pins{f' of {of}' if of else ''}"
    more = details.get("pins", 1) - 1 if tasks else 0
    to = f" to {', '.join(patterns)}" if patterns else ""
    return f"{kind} {what}{f' and {more:,} more' if more else ''}{to}"


def why(entry: Mapping[str, Any]) -> str:
    """What caused it, or is known of it, in a few words. Pure."""
    if "tokens_moved" in entry:
        return str(entry["reason"])
    silent, details = entry["silent_sec"], entry["details"] or {}
    parts = [entry["reason"]]
    if entry["kind"] == "joined":
        parts += [
            details.get("host") and f"on host {details['host']}",
            details.get("pid") and f"pid {details['pid']}",
            details.get("library") and f"version {details['library']}",
            "draining" if details.get("state") == "draining" else None,
        ]
    if silent is not None:
        parts.append(f"silent for {silent:.1f} s")
    return ", ".join(filter(None, parts))


async def leadership(store: Store, last: int = MOST_TOLD) -> dict[str, Any]:
    """Who leads since when, and the latest terms, the newest first."""
    leader = await store.history.leader()
    # One more, of which only the end is told.
    told = terms(leader, [plain(row) for row in await store.history.terms(last + 1)])
    current = told[0] if told and told[0]["term"] == leader["term"] else None
    return {
        **leader,
        "since": current["since"] if current and leader["leader"] is not None else None,
        "terms": told[:last],
    }


def terms(leader: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Who led from when to when, and how that ended, from the rows with which terms begin, the
    newest first. Pure.

    A worker of 0.1.0 that takes over writes no row: of its term, when it began is not known, nor
    when and how the one before it ended. In a term that a generation begins with, nobody leads.
    """
    begun: list[dict[str, Any]] = [dict(row) for row in rows]
    if not begun or begun[0]["term"] < leader["term"]:
        untold = dict.fromkeys(("at", "by", "gone_at", "gone"))
        begun.insert(0, {"term": leader["term"], "node": leader["leader"], **untold})
    told = [_term(begun[0], None)]
    told += [_term(row, after) for after, row in pairwise(begun)]
    return [term for term in told if term["node"] is not None]


def _term(row: Mapping[str, Any], after: Mapping[str, Any] | None) -> dict[str, Any]:
    until, ended = row["gone_at"], row["gone"]
    follows = after is not None and after["at"] is not None and after["term"] == row["term"] + 1
    if after is not None and follows and until is None:
        until = after["at"]
        again = "restarted" if after["restarted"] else "gone"
        ended = "generation" if after["kind"] == "generation" else again
    return {
        "term": row["term"],
        "node": row["node"],
        "since": row["at"],
        "by": row["by"],
        "until": until,
        "ended": ended,
    }

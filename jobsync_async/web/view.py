"""What the page shows, as plain values: rows in, a view out. Pure.

What goes on by itself, as ages do, is told by the moment at which it began. So two views are equal
where nothing happened, and what differs is what viewers are told.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jobsync_async.operations.history import in_order, what_happened, why
from jobsync_async.operations.problems import Problem, problems
from jobsync_async.operations.survey import run_by
from jobsync_async.runtime.cluster_status import lacking, silent

MOST_MOVES = 8
_MOST_PAIRS = 6


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A row of the table of workers.

    Attributes:
        number: its place by age, which no other start of any worker has.
        condition: ``"active"``, ``"draining"`` or ``"silent"``.
        share: of all tokens, from 0 to 1. most: the greatest share of all workers.
        joined: when, in seconds since 1970.
        colour: in the picture of tokens, as CSS writes it.
    """

    number: int
    name: str
    condition: str
    draining: bool
    leads: bool
    tokens: int
    share: float
    most: float
    weight: float
    version: str
    where: str
    joined: int
    timeout_sec: float | None
    colour: str


@dataclass(frozen=True, slots=True)
class Facts:
    """The cluster in a few figures."""

    leader: str | None
    term: int
    live: int
    workers: int
    tokens: int
    unowned: int
    version: int
    generation: int
    paused: bool


@dataclass(frozen=True, slots=True)
class Handoffs:
    """Tokens on their way from one to another."""

    giver: str | None
    receiver: str | None
    tokens: int


@dataclass(frozen=True, slots=True)
class Move:
    """Tokens that went from whom to whom in one change."""

    at: int
    pairs: tuple[tuple[str | None, str | None, int], ...]
    more: int


@dataclass(frozen=True, slots=True)
class Overview:
    """The first page.

    Attributes:
        evicted: names that no worker may join under, each with when and by whom it was evicted.
        beats: when each worker's last heartbeat was, in seconds since 1970, by its number.
        seen: what all of it was made of. at: when, in seconds since 1970.
    """

    facts: Facts
    problems: tuple[Problem, ...]
    workers: Mapping[int, WorkerView]
    handoffs: tuple[Handoffs, ...]
    evicted: tuple[tuple[str, int, str], ...]
    beats: Mapping[int, float] = field(compare=False)
    seen: Mapping[str, Any] = field(compare=False, repr=False)
    at: float = field(compare=False)


def overview(seen: Mapping[str, Any], now: float, colour: Callable[[str], str]) -> Overview:
    """The first page, of what `survey` returned.

    Args:
        now: when that was, in seconds since 1970.
        colour: of a worker's name.
    """
    most = max((node["tokens"] for node in seen["nodes"]), default=0)
    total = max(seen["total_tokens"], 1)
    workers = {
        node["joined"]: WorkerView(
            number=node["joined"],
            name=node["name"],
            condition=condition(node),
            draining=node["state"] == "draining",
            leads=bool(node["is_leader"]),
            tokens=node["tokens"],
            share=node["tokens"] / total,
            most=most / total,
            weight=node["weight"],
            version=node["library"],
            where=where(node),
            joined=_seconds(node["created_on"]),
            timeout_sec=node["timeout_sec"],
            colour=colour(node["name"]),
        )
        for node in seen["nodes"]
    }
    return Overview(
        facts=Facts(
            leader=seen["leader"] if any(worker.leads for worker in workers.values()) else None,
            term=seen["term"],
            live=seen["active_nodes"],
            workers=len(workers),
            tokens=seen["total_tokens"],
            unowned=lacking(dict(seen)),
            version=seen["version"],
            generation=seen["generation"],
            paused=seen["paused"] is not None,
        ),
        problems=tuple(problems(seen)),
        workers=workers,
        handoffs=tuple(
            Handoffs(one["node"], one["receiver"], one["tokens"]) for one in seen["handoffs"]
        ),
        evicted=tuple((one["name"], _seconds(one["at"]), one["by"]) for one in seen["evicted"]),
        beats={node["joined"]: now - node["heartbeat_age_sec"] for node in seen["nodes"]},
        seen=seen,
        at=now,
    )


def beaten(
    view: Overview, ages: Mapping[int, float], now: float, known: Mapping[str, Any]
) -> Overview:
    """The same, after a look at heartbeats and batches alone: who is silent, and what is wrong by
    that.

    Args:
        ages: seconds since each worker's last heartbeat, by its number.
        known: the runs of batches, and how many ids are set aside, as `survey` tells them.
    """
    nodes = [
        {**node, "heartbeat_age_sec": ages.get(node["joined"], node["heartbeat_age_sec"])}
        for node in view.seen["nodes"]
    ]
    conditions = {node["joined"]: condition(node) for node in nodes}
    live = sum(state != "silent" for state in conditions.values())
    stuck = [
        {**one, "seconds": one["seconds"] + now - view.at} for one in view.seen["stuck_handoffs"]
    ]
    seen = {
        **view.seen,
        "nodes": nodes,
        "active_nodes": live,
        "stuck_handoffs": stuck,
        "set_aside": known["set_aside"],
        "batches": [{**run, "run_by": run_by(run, nodes)} for run in known["batches"]],
    }
    return replace(
        view,
        facts=replace(view.facts, live=live),
        problems=tuple(problems(seen)),
        workers={
            number: worker
            if worker.condition == conditions[number]
            else replace(worker, condition=conditions[number])
            for number, worker in view.workers.items()
        },
        beats={node["joined"]: now - node["heartbeat_age_sec"] for node in nodes},
        seen=seen,
        at=now,
    )


def condition(node: Mapping[str, Any]) -> str:
    """``"silent"`` past its timeout, else its state."""
    return "silent" if silent(node) else str(node["state"])


def where(node: Mapping[str, Any]) -> str:
    """Where a worker runs, and the address that it announced."""
    process = f"{node['host'] or '?'}, pid {node['pid'] or '?'}"
    return f"{process}; {node['address']}" if node["address"] else process


def move(at: float, moves: Counter[tuple[str | None, str | None]]) -> Move | None:
    """A line of what moved; None when nothing did."""
    if not moves:
        return None
    pairs = [(giver, taker, tokens) for (giver, taker), tokens in moves.most_common(_MOST_PAIRS)]
    return Move(int(at), tuple(pairs), moves.total() - sum(tokens for *_, tokens in pairs))


# -- batches ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunView:
    """A run of a batch: what `operations.batches` tells of it, with its speed.

    Attributes:
        told: what `described` returned, as pairs, so that two can be compared.
        rate: ids a second, None where that is not known. left_sec: how long the rest takes at it.
    """

    told: tuple[tuple[str, Any], ...]
    rate: float | None
    left_sec: float | None

    @property
    def key(self) -> str:
        """Which run it is, fit for an element's id."""
        told = dict(self.told)
        return f"{told['key'][:16]}-{told['date']}"


def run(told: Mapping[str, Any], rate: float | None, left_sec: float | None) -> RunView:
    """A run with its speed, in as many digits as people read."""
    rounded = None if rate is None else float(f"{rate:.3g}")
    return RunView(tuple(told.items()), rounded, None if left_sec is None else round(left_sec))


# -- history ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EventView:
    """A row of the history.

    Attributes:
        key: which one it is. at: in seconds since 1970.
        kind: one word. text: what happened, in a few.
        details: what a click shows: pairs of a name and a value.
    """

    key: str
    at: int
    kind: str
    text: str
    details: tuple[tuple[str, Any], ...] = ()


def history(told: Mapping[str, Sequence[dict[str, Any]]], most: int) -> list[EventView]:
    """The line of time, of what `operations.history` returned, the newest first."""
    rows = {row["id"]: row for row in told["events"]}
    return [_event(entry, rows) for entry in in_order(told)[:most]]


def _event(entry: Mapping[str, Any], rows: Mapping[int, Mapping[str, Any]]) -> EventView:
    moved = "tokens_moved" in entry
    causes = [rows[cause] for cause in (entry.get("causes") or ()) if cause in rows]
    details = {
        "why": why(entry),
        "because of": "; ".join(_caused(cause) for cause in causes),
        "moved": _flows(entry),
        "by": entry["leader"] if moved else entry["by"],
        "term": entry["term"],
        "version": entry["version"],
        "start of the worker": entry.get("incarnation"),
    }
    return EventView(
        key=f"v{entry['version']}" if moved else f"h{entry['id']}",
        at=_seconds(entry["at"]),
        kind="moved" if moved else entry["kind"],
        text=what_happened(entry),
        details=tuple((key, f"{value}") for key, value in details.items() if value),
    )


def _flows(entry: Mapping[str, Any]) -> str:
    """From whom to whom."""
    flows = entry.get("moves") or ()
    rest = entry.get("tokens_moved", 0) - sum(flow["tokens"] for flow in flows)
    told = [
        f"{flow['tokens']:,} from {flow['from'] or 'nobody'} to {flow['to'] or 'nobody'}"
        for flow in flows
    ]
    return ", ".join(told + ([f"{rest:,} more"] if told and rest > 0 else []))


def _caused(row: Mapping[str, Any]) -> str:
    reason = why(row)
    return f"{what_happened(row)} ({reason})" if reason else what_happened(row)


def _seconds(moment: str) -> int:
    return int(dt.datetime.fromisoformat(moment).timestamp())


def ages(numbers: Iterable[int], seconds: Iterable[float]) -> dict[int, float]:
    """How old each worker's last heartbeat is, by its number."""
    return dict(zip(numbers, seconds, strict=True))

"""``jobsync-async status``: the cluster at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobsync_async.cli.app import (
    Json,
    Timeout,
    app,
    duration,
    emit,
    on_cluster,
    opened,
    table,
    titled,
)
from jobsync_async.config import CoordinationConfig
from jobsync_async.operations.problems import Problem, problems, worst
from jobsync_async.operations.survey import survey
from jobsync_async.runtime.cluster_status import lacking, silent

STYLES = {"wrong": "bold red", "notice": "yellow"}

_MOST_ROWS = 20
_MOST_CHARACTERS = 200


@app.command()
@on_cluster
async def status(
    config: CoordinationConfig,
    timeout: Timeout = None,
    as_json: Json = False,
) -> int:
    """Show what is wrong, the worst first, then the workers and their shares, hand-offs under way
    and stuck, pins that match nobody, and open batches.

    Exits with 1 when something is stuck or has no owner, with 0 when there are notices only.
    """
    async with opened(config) as store:
        seen = await survey(store, timeout)
    found = problems(seen, timeout)
    told = {**seen, "problems": [problem.plain() for problem in found]}
    emit(told, rendered(seen, found, timeout), as_json)
    return 1 if worst(found) else 0


def rendered(
    seen: dict[str, Any], found: Sequence[Problem], timeout: float | None
) -> RenderableType:
    """What `survey` tells and what is wrong in it, for people."""
    parts: list[RenderableType] = [Text(headline(seen), style="bold")]
    if found:
        parts.append(_problems(found))
    if seen["nodes"]:
        parts.append(_nodes(seen, timeout))
    if seen["handoffs"]:
        parts.append(_handoffs(seen["handoffs"]))
    if seen["stuck_handoffs"]:
        parts.append(_stuck(seen["stuck_handoffs"]))
    if seen["unmatched_pins"]:
        parts.append(_unmatched(seen["unmatched_pins"]))
    if seen["unserved"]:
        parts.append(_unserved(seen["unserved"]))
    if opened_runs := [run for run in seen["batches"] if run["finished_at"] is None]:
        parts.append(_runs(opened_runs))
    return Group(*parts)


def headline(seen: Mapping[str, Any]) -> str:
    """The cluster in one line."""
    term = f" in term {seen['term']}" if seen["leader"] else ""
    return f"{gist(seen, seen['leader'])}{term}; version {seen['version']}"


def gist(seen: Mapping[str, Any], leader: str | None) -> str:
    """The same, shorter, with the leader's name as it is given."""
    live, unowned = seen["active_nodes"], lacking(seen)
    workers = "1 live worker" if live == 1 else f"{live} live workers"
    owned = "all owned" if unowned == 0 else f"{unowned:,} owned by nobody"
    leads = f"led by {leader}" if leader else "without a leader"
    return f"{workers}, {seen['total_tokens']:,} tokens, {owned}; {leads}"


def _problems(found: Sequence[Problem]) -> Table:
    shown = table("", "what is wrong or to be known")
    for problem in found:
        text = Text(shortened(problem.text)).append(f"\n→ {problem.advice}", style="italic")
        shown.add_row(Text(problem.severity, style=STYLES[problem.severity]), text)
    return shown


def _runs(runs: list[dict[str, Any]]) -> RenderableType:
    shown = table("batch", "date", ">done", ">of", ">failed", ">workers")
    for run in runs:
        shown.add_row(
            Text(shortened(run["key"][:12] if run["name"] is None else run["name"])),
            run["date"],
            f"{run['done']:,}",
            "?" if run["total"] is None else f"{run['total']:,}",
            f"{run['failed']:,}{'' if run['all_counted'] else '+'}",
            "?" if run["run_by"] is None else str(len(run["run_by"])),
        )
    return titled("open batches", shown)


def _nodes(seen: dict[str, Any], timeout: float | None) -> Table:
    shown = table(
        "worker",
        ">age",
        "state",
        ">tokens",
        ">share",
        ">weight",
        ">beat",
        ">last beat",
        "version",
        "where",
    )
    for node in seen["nodes"]:
        unheard = silent(node, timeout)
        state = "silent" if unheard else node["state"]
        shown.add_row(
            Text(node["name"]),
            duration(node["age_sec"]),
            Text(f"{state}, leads" if node["is_leader"] else state, style="red" if unheard else ""),
            f"{node['tokens']:,}",
            f"{100 * node['tokens'] / seen['total_tokens']:.1f} %",
            f"{node['weight']:g}",
            f"{node['beat']:,}",
            f"{node['heartbeat_age_sec']:.1f} s ago",
            Text(node["library"]),
            Text(f"{node['host'] or '?'}, pid {node['pid'] or '?'}"),
        )
    return shown


def _handoffs(handoffs: list[dict[str, Any]]) -> RenderableType:
    shown = table("from", "to", ">tokens", ">for")
    for handoff in handoffs[:_MOST_ROWS]:
        receiver = handoff["receiver"] or "nobody"
        shown.add_row(
            Text(handoff["node"] or "?"),
            Text(receiver),
            f"{handoff['tokens']:,}",
            f"{handoff['oldest_sec']:.1f} s",
        )
    return titled("being handed on", shown)


def _stuck(stuck: list[dict[str, Any]]) -> RenderableType:
    shown = table("at", "task", ">token", ">revoked")
    for one in stuck[:_MOST_ROWS]:
        shown.add_row(
            Text(one["node"]),
            Text(shortened(one["task_id"] or "?")),
            str(one["token_id"]),
            f"{one['seconds']:.0f} s ago",
        )
    return titled("stuck: still at work past the hand-off timeout", shown)


def _unmatched(pins: list[dict[str, Any]]) -> RenderableType:
    title = (
        f"{len(pins)} pin{'s' if len(pins) > 1 else ''} that no worker which takes tokens matches"
    )
    shown = table("task", ">token", "pinned to")
    for pin in pins[:_MOST_ROWS]:
        shown.add_row(
            Text(shortened(pin["task_id"])),
            str(pin["token_id"]),
            Text(", ".join(pin["node_patterns"])),
        )
    return titled(title, shown)


def _unserved(gaps: list[dict[str, Any]]) -> RenderableType:
    shown = table("what", "not at", ">tokens", "but at")
    for gap in gaps[:_MOST_ROWS]:
        others = Text(shortened(", ".join(gap["run_by"])))
        shown.add_row(
            Text(shortened(gap["runner"])), Text(gap["node"]), f"{gap['tokens']:,}", others
        )
    return titled("not run by everybody who has tokens: nobody serves the ids there", shown)


def shortened(text: str) -> str:
    """A text of any length and any characters, fit for a line."""
    shown = printable(text[: _MOST_CHARACTERS + 1])
    return shown if len(text) <= _MOST_CHARACTERS else shown[:_MOST_CHARACTERS] + "…"


def printable(text: str) -> str:
    """What would steer a terminal is only a mark."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)

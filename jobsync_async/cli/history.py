"""``jobsync-async history`` and ``leader``: what happened, and who led when."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from jobsync_async.cli.app import Json, app, emit, moment, on_cluster, opened, table
from jobsync_async.cli.status import shortened
from jobsync_async.config import CoordinationConfig
from jobsync_async.operations import history as operations

_MOST = 10_000
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_PART = re.compile(rf"(\d+(?:\.\d+)?)({'|'.join(sorted(_SECONDS, key=len, reverse=True))})")


def span(text: str) -> float:
    """The seconds of ``"90s"``, ``"30min"``, ``"1h"``, ``"1d12h"`` or ``"2w"``."""
    parts = _PART.findall(text)
    if not parts or "".join(map("".join, parts)) != text:
        raise typer.BadParameter(
            f"{text!r} is no length of time; give one like 90s, 30min or 1d12h"
        )
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


Last = Annotated[int | None, typer.Option(min=1, max=_MOST, help="How many at most.")]


@app.command()
@on_cluster
async def history(
    config: CoordinationConfig,
    since: Annotated[
        float | None,
        typer.Option(parser=span, metavar="SPAN", help="Of the last so long: 90s, 30min, 1h, 7d."),
    ] = None,
    node: Annotated[
        str | None, typer.Option(help="Only what is about this worker.", metavar="NODE")
    ] = None,
    last: Last = None,
    as_json: Json = False,
) -> int:
    """Show what happened, the newest first: who joined, left, died, expired or was drained, who
    took over, and which tokens moved because of it.

    Shows 20 lines, or with --since all of that time. How long it is kept says the setting
    keep_history_days.
    """
    most = last or (operations.MOST_TOLD if since is None else _MOST)
    async with opened(config) as store:
        told = await operations.history(store, most, since, node)
    emit(told, rendered(told, most), as_json)
    return 0


def rendered(told: dict[str, Any], most: int) -> RenderableType:
    """What happened, for people."""
    entries = operations.in_order(told)[:most]
    if not entries:
        return Text("nothing is told of that")
    shown = table("when", "what", "by", "why")
    for one in entries:
        by = one["leader"] if "tokens_moved" in one else one["by"]
        shown.add_row(
            moment(one["at"]),
            Text(shortened(operations.what_happened(one))),
            Text("" if by is None or by == one.get("node") else by),
            Text(shortened(operations.why(one))),
        )
    return shown


@app.command()
@on_cluster
async def leader(config: CoordinationConfig, last: Last = None, as_json: Json = False) -> int:
    """Show who leads and since when, and who led before: from when to when, and how that ended.

    Exits with 1 when nobody leads.
    """
    async with opened(config) as store:
        told = await operations.leadership(store, last or operations.MOST_TOLD)
    emit(told, rendered_leader(told), as_json)
    return 0 if told["present"] else 1


def rendered_leader(told: dict[str, Any]) -> RenderableType:
    """Who leads, and who led, for people."""
    since = f" since {moment(told['since'])}" if told["since"] else ""
    head = f"{told['leader']} leads in term {told['term']}{since}"
    if not told["present"]:
        gone = f"; {told['leader']} led last, and is gone" if told["leader"] is not None else ""
        head = f"nobody leads{gone}"
    shown = table(">term", "leader", "from", "to", "ended")
    for one in told["terms"]:
        current = one["term"] == told["term"]
        shown.add_row(
            str(one["term"]),
            Text(one["node"]),
            moment(one["since"]) if one["since"] else "?",
            moment(one["until"]) if one["until"] else "" if current else "?",
            one["ended"] or ("" if current else "?"),
        )
    return Group(Text(head, style="bold"), shown)

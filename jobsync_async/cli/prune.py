"""``jobsync-async prune``: deletes old days."""

from __future__ import annotations

import datetime as dt
import time
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from jobsync_async.cli.app import Json, app, complain, emit, on_cluster, opened, table, titled
from jobsync_async.cli.status import shortened
from jobsync_async.config import CoordinationConfig
from jobsync_async.core.runs import date_of
from jobsync_async.operations.pruning import prune as prune_days

_TELL_SEC = 2.0
_WHAT = {
    "claim": "tasks begun",
    "audit": "tasks completed",
    "batch_part": "shares of workers in runs of batches",
    "batch": "runs of batches",
    "rebalance": "distributions",
    "history": "rows of the history",
}


@app.command()
@on_cluster
async def prune(
    config: CoordinationConfig,
    before: Annotated[
        dt.datetime,
        typer.Option(
            formats=["%Y-%m-%d"],
            help="The first date that is kept. It must be in the past, for the cluster.",
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be deleted.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Delete what was recorded on the days before a date: tasks begun and completed, runs of
    batches, distributions, and the history.

    Days with an open run of a batch are kept; ids that are set aside stay so. It takes its time, in
    small pieces, and may be interrupted. The role needs more than a worker's rights: see `init
    --prune-role`. Exits with 1 while workers of 0.1.0 are there, which do not tell what they run.
    """
    date = date_of(before)
    assert date is not None, "the option must be given"
    async with opened(config) as store:
        told = await prune_days(store, date, dry_run=dry_run, progress=_Progress())
    if told["older_workers"]:
        complain(
            f"workers do not tell what they run, for their version is older: "
            f"{', '.join(told['older_workers'])}; nothing was deleted: replace them first"
        )
    emit(told, rendered(told), as_json)
    return 1 if told["older_workers"] else 0


class _Progress:
    """Says on standard error now and then how far it is."""

    def __init__(self) -> None:
        self._told_at = time.monotonic()

    def __call__(self, day: dt.date, rows: int) -> None:
        now = time.monotonic()
        if now - self._told_at >= _TELL_SEC:
            self._told_at = now
            complain(f"at {day}: {rows:,} rows so far")


def rendered(told: dict[str, Any]) -> RenderableType:
    """What was deleted, for people."""
    would = "would be deleted" if told["dry_run"] else "deleted"
    shown = table(">rows", "of")
    for name, what in _WHAT.items():
        shown.add_row(f"{told['deleted'][name]:,}", what)
    days = f"{told['days']:,} day{'' if told['days'] == 1 else 's'}"
    parts: list[RenderableType] = [titled(f"{days} before {told['before']} {would}", shown)]
    for one in told["kept"]:
        name = "a batch without a name" if one["name"] is None else f"batch {one['name']!r}"
        key = f" ({one['key'][:12]})" if one["name"] is None and one["key"] else ""
        parts.append(
            Text(
                shortened(f"{one['date']} is kept: the run of {name}{key} is open"), style="yellow"
            )
        )
    return Group(*parts)

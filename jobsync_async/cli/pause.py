"""``jobsync-async pause`` and ``resume``: let no worker start anything new, or let all go on."""

from __future__ import annotations

from rich.text import Text

from jobsync_async.cli.app import By, Json, Reason, app, complain, emit, on_cluster, opened
from jobsync_async.cli.status import shortened
from jobsync_async.config import CoordinationConfig
from jobsync_async.core.ids import require_storable
from jobsync_async.runtime.cluster_status import deaf_to_pauses, of_first_version, plain


@app.command()
@on_cluster
async def pause(
    config: CoordinationConfig, by: By = None, reason: Reason = None, as_json: Json = False
) -> int:
    """Let no worker start anything new. All keep their tokens, and go on with what they run.

    A pause that holds already stays as it is. It holds until `resume`, whatever is restarted.
    """
    async with opened(config, by) as store:
        if reason is not None:
            require_storable("--reason", reason, store.codec)
        done = await store.steering.pause(store.context.by, reason)
        nodes = await store.status.nodes()
    assert done.pause is not None, "one holds now"
    for warning in deaf_to_pauses(nodes):
        complain(warning)
    older = of_first_version(nodes)
    answer = {**plain(done.pause), "changed": done.changed, "older_workers": older}
    said = "the cluster is now" if done.changed else "nothing changed: the cluster was already"
    emit(answer, Text(shortened(f"{said} {done.pause}")), as_json)
    return 0


@app.command()
@on_cluster
async def resume(config: CoordinationConfig, by: By = None, as_json: Json = False) -> int:
    """Let workers start new work again."""
    async with opened(config, by) as store:
        done = await store.steering.resume(store.context.by)
    over = done.pause
    said = "the cluster was not paused" if over is None else f"the cluster goes on; it was {over}"
    answer = {
        "changed": done.changed,
        "was_paused": None if over is None else plain(over),
    }
    emit(answer, Text(shortened(said)), as_json)
    return 0

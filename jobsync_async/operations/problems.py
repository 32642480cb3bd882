"""What is wrong in a cluster, the worst first, in words for people. Pure.

* *Wrong* is what stands still until somebody acts, or may: something is stuck, or has no owner.
  *Notices* are the rest of what is to be known.
* What the view does not tell is not judged.
"""

from __future__ import annotations

import datetime as dt
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from jobsync_async.core.lease import lease_sec
from jobsync_async.operations.batches import title
from jobsync_async.operations.wording import and_more, count, has, name_list, quoted, span
from jobsync_async.runtime.cluster_status import lacking, of_first_version, silent, silent_after
from jobsync_async.types import FIRST_VERSION

Severity = Literal["wrong", "notice"]
View = Mapping[str, Any]

STILL_SEC = 60.0
"""A run whose counts stand still for so long is told of."""

_LATE = 0.75  # of its lease: two intervals are at most all of it


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong, or to be known.

    Attributes:
        kind: one word, which stays the same in later versions.
        severity: ``"wrong"`` or ``"notice"``.
        text: what it is, in one short sentence.
        advice: what to do: a command, or a page of the documents.
        nodes: the workers that it is about.
        task_id, batch, date: the task that it is about, or the run: a batch's name, or its key, and
            its date.
    """

    kind: str
    severity: Severity
    text: str
    advice: str
    nodes: tuple[str, ...] = ()
    task_id: str | None = None
    batch: str | None = None
    date: str | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """The same as long as it is the same problem, while times and numbers in it go on."""
        return self.kind, self.nodes, self.task_id, self.batch, self.date

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**asdict(self), "nodes": list(self.nodes)}


def problems(view: View, timeout_sec: float | None = None) -> list[Problem]:
    """What is wrong in what `describe` or `survey` returned, the worst first.

    Args:
        view: of what only `survey` tells, nothing need be there.
        timeout_sec: after how many seconds without a heartbeat a worker is silent; None for each
            worker's own timeout.
    """
    live = [node for node in view["nodes"] if not silent(node, timeout_sec)]
    found = [problem for look in _LOOKS for problem in look(view, live)]
    late = [problem for node in view["nodes"] for problem in _late(node, timeout_sec)]
    ordered = sorted([*found, *late], key=lambda problem: _ORDER.index(problem.kind))
    return sorted(ordered, key=lambda problem: problem.severity != "wrong")


def changed(before: Iterable[Problem], after: Iterable[Problem]) -> list[str]:
    """What has begun, or has become worse, and what is over, in words. Times and numbers that go on
    are no change."""
    then = {problem.key: problem for problem in before}
    now = {problem.key: problem for problem in after}
    begun = [
        f"{problem.severity}: {problem.text}"
        for key, problem in now.items()
        if key not in then or then[key].severity != problem.severity
    ]
    return begun + [f"over: {problem.text}" for key, problem in then.items() if key not in now]


def worst(found: Iterable[Problem]) -> list[Problem]:
    """Those that are wrong."""
    return [problem for problem in found if problem.severity == "wrong"]


_ORDER = (
    "workers",
    "unowned",
    "pin",
    "stuck",
    "silent",
    "paused",
    "leader",
    "unserved",
    "failed",
    "standstill",
    "set aside",
    "evicted",
    "versions",
    "times",
    "drained",
)

Nodes = Sequence[View]


def _owners(view: View, live: Nodes) -> Iterator[Problem]:
    """Tokens without an owner, by why."""
    takers = [node for node in live if node["state"] == "active"]
    unowned = lacking(view)
    tokens = f"{count(unowned, 'token')} {has(unowned)} no owner"
    if not live:
        there = "is alive" if view["nodes"] else "is there"
        yield Problem(
            "workers",
            "wrong",
            f"no worker {there}: nobody works on {view['total_tokens']:,} tokens",
            "start workers; `jobsync-async doctor` says what would keep them from working",
        )
    elif not takers:
        yield Problem(
            "workers",
            "wrong",
            "no worker takes tokens: all that live are draining",
            f"start others, or `jobsync-async undrain {shlex.quote(live[0]['name'])}`",
        )
    elif not view["distributed"]:
        yield Problem(
            "workers",
            "wrong",
            f"no token is handed out: {count(len(takers), 'worker')} wait for more",
            "start as many workers as their setting minimum_nodes says",
        )
    elif unowned > (pinned := len({pin["token_id"] for pin in view["unmatched_pins"]})):
        beside = f", {pinned:,} of them for their pins" if pinned else ""
        yield Problem(
            "unowned",
            "wrong",
            tokens + beside,
            "`jobsync-async explain ID` says why; look again in some seconds",
        )


def _pins(view: View, live: Nodes) -> Iterator[Problem]:
    """Pins that nobody matches, by what they name."""
    tasks = defaultdict[tuple[str, ...], list[str]](list)
    for pin in view["unmatched_pins"]:
        tasks[tuple(pin["node_patterns"])].append(pin["task_id"])
    for patterns, pinned in tasks.items():
        what = f"task {quoted(pinned[0])}" + and_more(pinned, "task")
        yield Problem(
            "pin",
            "wrong",
            f"no worker matches {quoted(', '.join(patterns))}, the pin of {what}",
            "start a worker that does and takes tokens, or "
            f"`jobsync-async locks clear {shlex.quote(pinned[0])}`",
            task_id=pinned[0],
        )


def _stuck(view: View, live: Nodes) -> Iterator[Problem]:
    """Tokens that their owners do not let go of, by worker: the longest first."""
    held = defaultdict[str, list[View]](list)
    for one in view["stuck_handoffs"]:
        held[one["node"]].append(one)
    for node, tokens in held.items():
        first, more = tokens[0], and_more(tokens, "token")
        task = first["task_id"]
        what = f"token {first['token_id']}" if task is None else f"task {quoted(task)}"
        why = "a reader of changes" if task is None else "work that ignores its cancellation"
        yield Problem(
            "stuck",
            "wrong",
            f"{node} does not let go of {what}{more} for {span(first['seconds'])}",
            f"{why} holds it: see that worker's log, and restart it",
            nodes=(node,),
            task_id=task,
        )


def _late(node: View, timeout_sec: float | None) -> Iterator[Problem]:
    """A worker whose lease is over, or nearly so."""
    limit_sec = silent_after(node, timeout_sec)
    unheard_sec, tokens = node["heartbeat_age_sec"], node["tokens"]
    if limit_sec is None or unheard_sec < _LATE * lease_sec(limit_sec):
        return
    if node["state"] == "evicted":  # others wait for the end of its lease
        return
    connected = node.get("connected")
    text = f"{node['name']} is silent for {span(unheard_sec)}" + (
        "" if connected is None else ", but connected" if connected else " and not connected"
    )
    advice = {
        True: "look there: its event loop is blocked, its process stopped, or its host cut off",
        False: "look there: it has ended, or cannot reach PostgreSQL",
        None: "look there: it has ended, is blocked, or cannot reach PostgreSQL",
    }[connected]
    over = unheard_sec >= lease_sec(limit_sec)
    if not over:
        text += f"; its lease ends in {span(lease_sec(limit_sec) - unheard_sec)}"
    elif tokens:
        text += f"; nobody works on its {count(tokens, 'token')}"
    yield Problem(
        "silent",
        "wrong" if over and tokens else "notice",
        text,
        advice,
        nodes=(node["name"],),
    )


def _paused(view: View, live: Nodes) -> Iterator[Problem]:
    if (pause := view.get("paused")) is None:
        return
    since = dt.datetime.fromisoformat(pause["since"]).astimezone(dt.timezone.utc)
    by, reason = pause["by"], pause["reason"]
    deaf = of_first_version(live)
    yield Problem(
        "paused",
        "notice",
        f"paused since {since:%Y-%m-%d %H:%M} UTC{f' by {by}' if by else ''}"
        f"{f': {reason}' if reason else ''}; nothing new starts"
        + (f", but at {count(len(deaf), 'worker')} of {FIRST_VERSION}" if deaf else ""),
        "`jobsync-async resume`",
        nodes=tuple(deaf),
    )


def _evicted(view: View, live: Nodes) -> Iterator[Problem]:
    if names := view.get("evicted"):
        first = names[0]
        by, reason = first["by"], first["reason"]
        yield Problem(
            "evicted",
            "notice",
            f"no worker may join as {first['name']}{and_more(names, 'name')}, evicted"
            f"{f' by {by}' if by else ''}{f': {reason}' if reason else ''}",
            f"`jobsync-async evict {shlex.quote(first['name'])} --allow`",
            nodes=tuple(one["name"] for one in names),
        )


def _leader(view: View, live: Nodes) -> Iterator[Problem]:
    if live and not any(node["is_leader"] for node in live):
        yield Problem(
            "leader",
            "notice",
            "no live worker leads: no token finds a new owner",
            "look again in some seconds: the oldest worker takes over",
        )


def _unserved(view: View, live: Nodes) -> Iterator[Problem]:
    for gap in view["unserved"]:
        others = gap["run_by"][0] + and_more(gap["run_by"], "worker")
        yield Problem(
            "unserved",
            "notice",
            f"{gap['node']} does not run {gap['runner']}, as {others}: nobody serves its ids there",
            "docs/how-to/kinds-of-workers.md",
            nodes=(gap["node"],),
        )


def _batches(view: View, live: Nodes) -> Iterator[Problem]:
    runs = view.get("batches", ())
    for run in runs:
        if run["failed"]:
            many = "" if run["all_counted"] else "more than "
            total = "" if run["total"] is None else f" of {run['total']:,}"
            yield _of_run(
                run,
                "failed",
                f"{many}{count(run['failed'], 'id')}{total} {has(run['failed'])} failed in "
                f"{title(run)}",
                "--failed",
            )
    opened = [run for run in runs if run["finished_at"] is None]
    still = [run for run in opened if run["run_by"] and (run.get("still_sec") or 0) >= STILL_SEC]
    for run in still:
        text = f"{title(run)} stands still for {span(run['still_sec'])}"
        yield _of_run(run, "standstill", text + _left(run))
    # 0.1.0 does not tell what it runs
    idle = [run for run in opened if run["run_by"] == []]
    if idle:
        text = f"nobody runs {title(idle[0])}"
        yield _of_run(idle[0], "standstill", text + (and_more(idle, "open run") or _left(idle[0])))


def _of_run(run: View, kind: str, text: str, option: str = "") -> Problem:
    name = run["key"][:12] if run["name"] is None else run["name"]
    command = ("jobsync-async", "batch", name, "--date", run["date"], option)
    return Problem(
        kind,
        "notice",
        text,
        f"`{shlex.join(filter(None, command))}`",
        batch=name,
        date=run["date"],
    )


def _left(run: View) -> str:
    return "" if run["remaining"] is None else f", which has {count(run['remaining'], 'id')} left"


def _set_aside(view: View, live: Nodes) -> Iterator[Problem]:
    if ids := view.get("set_aside", 0):
        yield Problem(
            "set aside",
            "notice",
            f"{count(ids, 'id')} {'is' if ids == 1 else 'are'} set aside: "
            f"{'its' if ids == 1 else 'their'} workers ended while at work",
            "`jobsync-async batch --failed`, then `jobsync-async release ID`",
        )


def _versions(view: View, live: Nodes) -> Iterator[Problem]:
    versions = view["versions"]
    first = any(one["library"] == FIRST_VERSION for one in versions)
    if len(versions) < 2 and not first:
        return
    each = ", ".join(f"{one['library']} ({name_list(one['nodes'])})" for one in versions)
    refused = [node["name"] for node in view["nodes"] if node["layout"] < view["schema_version"]]
    advice = "finish the deploy, or go back: docs/how-to/upgrade.md"
    if refused:
        advice = f"stop {name_list(refused)}: these tables were contracted"
    elif first:
        advice += f"; {FIRST_VERSION} does not tell what it runs"
    yield Problem(
        "versions",
        "notice",
        f"workers have different versions: {each}"
        if len(versions) > 1
        else f"all workers are of {FIRST_VERSION}",
        advice,
        nodes=tuple(refused or versions[0]["nodes"]),
    )


def _times(view: View, live: Nodes) -> Iterator[Problem]:
    names = defaultdict[tuple[float, float], list[str]](list)
    for node in live:
        if node["interval_sec"] is not None:
            names[node["timeout_sec"], node["interval_sec"]].append(node["name"])
    if len(names) > 1:
        each = ", ".join(
            f"{timeout:g} s/{interval:g} s ({name_list(of)})"
            for (timeout, interval), of in names.items()
        )
        fewest = min(names.values(), key=len)
        yield Problem(
            "times",
            "notice",
            f"workers have different timeouts and intervals: {each}",
            "docs/operations.md, Times",
            nodes=tuple(fewest),
        )


def _drained(view: View, live: Nodes) -> Iterator[Problem]:
    done = [node["name"] for node in live if node["state"] == "draining" and not node["tokens"]]
    if done:
        yield Problem(
            "drained",
            "notice",
            f"{name_list(done)} {'is' if len(done) == 1 else 'are'} drained and may be stopped",
            f"stop the process, or `jobsync-async undrain {shlex.quote(done[0])}`",
            nodes=tuple(done),
        )


_LOOKS: tuple[Callable[[View, Nodes], Iterator[Problem]], ...] = (
    _owners,
    _pins,
    _stuck,
    _paused,
    _leader,
    _unserved,
    _batches,
    _set_aside,
    _evicted,
    _versions,
    _times,
    _drained,
)

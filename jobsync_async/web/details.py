"""The pages that are looked up: a task, a run of a batch, and the question of an act, as HTML.
Pure; times are told as of `now`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobsync_async.operations.batches import title as run_title
from jobsync_async.web.acts import ACTS, Act, Values
from jobsync_async.web.document import counted, facts, instant, moment, row, section, span, table
from jobsync_async.web.forgery import FIELD
from jobsync_async.web.markup import Content, Html, el, joined, link, name
from jobsync_async.web.parts import offer, who


def task_form(asked: str | None) -> Html:
    """Where a task's id is typed."""
    return el(
        "form",
        el("label", "Id of the task", for_="id"),
        el(
            "input",
            id="id",
            name="id",
            value=asked or "",
            required=True,
            autocomplete="off",
            spellcheck="false",
        ),
        el("button", "Look"),
        action="./task",
        method="get",
        role="search",
    )


def task_of(told: Mapping[str, Any], now: float, steer: bool) -> Html:
    """What `explain` tells of a task."""
    owner, pin, rebalance = told["owner"], told["pin"], told["rebalance"]
    because = None
    if rebalance is not None:
        at = instant(rebalance["at"])
        because = [moment(at), f", version {rebalance['version']}: ", name(rebalance["reason"])]
    since = told["assigned_at"] and instant(told["assigned_at"])
    pairs: list[tuple[str, Content]] = [
        ("Token", f"{told['token_id']:,} of {told['total_tokens']:,}"),
        ("Owner", el("strong", "nobody", class_="wrong") if owner is None else _owner(owner)),
        ("Epoch", told["epoch"]),
        ("There since", None if not since else moment(since)),
        ("Going to", who(told["next_node"]) if told["revoked"] else None),
        ("Pin", None if pin is None else _pin(pin)),
        ("May have it", _names(told["eligible"], 6)),
        ("Moved last", because),
        ("Its owner runs", None if owner is None else _runs(told["runs"])),
    ]
    acts = [offer(ACTS[act], {"task": told["task_id"]}, "task") for act in ("pin", "unpin")]
    batches = [
        section(f"In batch {one['batch']}", _recorded(one), about=f"batch-{place}")
        for place, one in enumerate(told["batches"])
    ]
    return joined(
        [
            el("h2", "Task ", name(told["task_id"])),
            el("p", name(told["why"], 2_000), class_="why"),
            facts(pairs),
            el("p", acts if pin else acts[:1], class_="acts") if steer else None,
            section(f"On {told['date']}", _recorded(told), about="recorded"),
            batches,
        ]
    )


def _owner(owner: Mapping[str, Any]) -> list[Content]:
    age = f", last heard {span(owner['heartbeat_age_sec'])} ago"
    at = [" at ", name(owner["address"])] if owner["address"] else None
    return [name(owner["node"]), at, f", {owner['state']}{age}"]


def _pin(pin: Mapping[str, Any]) -> list[Content]:
    because = [" (", name(pin["reason"]), ")"] if pin["reason"] else None
    return [_names(pin["node_patterns"]), because, ", by ", name(pin["created_by"])]


def _names(names: Sequence[str], most: int = 20) -> list[Content]:
    if not names:
        return [el("strong", "nobody", class_="wrong")]
    shown: list[Content] = []
    for one in names[:most]:
        shown += [", " if shown else None, name(one)]
    more = len(names) - most
    return [*shown, f" and {more:,} more" if more > 0 else None]


def _runs(runs: Sequence[str] | None) -> Content:
    return "not told" if runs is None else name(", ".join(runs) or "nothing")


def _recorded(told: Mapping[str, Any]) -> Html:
    """What became of the task, on its own or in a batch."""

    def when(key: str) -> Html:
        return moment(instant(told[key]))

    def wrong(text: str | None) -> Content:
        return el("strong", name(text, 4_000), class_="wrong") if text else None

    done, begun, last_error = told["completed_by"], told["begun_by"], told["last_error"]
    running = told.get("running")
    pairs = [
        ("Running now", None if running is None else "yes" if running else "no"),
        ("Begun", [when("claimed_at"), " by ", name(begun)] if begun else "not recorded"),
        ("Completed", [when("completed_at"), " by ", name(done)] if done else "no"),
        ("Given up", wrong(told["error"])),
        ("Failed attempts", told["failures"] or None),
        ("Last error", wrong(last_error if last_error != told["error"] else None)),
        ("Owners lost while at it", told["owners_lost"] or None),
        ("Set aside", [when("set_aside_at"), f", in the run of {told['set_aside_on']}"]
         if told["set_aside_at"] else None),
    ]  # fmt: skip
    return facts(pairs)


# -- batches ---------------------------------------------------------------------------------------


def failures_of(told: Mapping[str, Any]) -> Html:
    """What of a run has failed, by error."""
    if not told["errors"]:
        return el("p", "Nothing has failed.", class_="fine")
    return joined(
        el(
            "details",
            el(
                "summary",
                el("strong", f"{one['count']:,} times: "),
                "set aside: " if one["set_aside"] else None,
                name(one["error"], 300),
            ),
            el("ul", [el("li", link("task", name(task), to={"id": task})) for task in one["ids"]]),
            el("p", f"and {one['more_ids']:,} more") if one["more_ids"] else None,
        )
        for one in told["errors"]
    )


def run_workers_of(workers: Sequence[Mapping[str, Any]]) -> Html:
    """Who has done how much of a run."""
    rows = [
        row(
            f"run-worker-{place}",
            ("worker", name(one["node"])),
            (">completed", counted(one["completed"])),
            (">done otherwise", counted(one["otherwise"])),
            ("runs it now", "yes" if one["runs_it"] else "no"),
        )
        for place, one in enumerate(workers[:200])
    ]
    columns = ("worker", ">completed", ">done otherwise", "runs it now")
    return table("Workers of the run", columns, rows, "run-workers")


def run_title_of(told: Mapping[str, Any]) -> Html:
    """A run's heading."""
    return el("h2", name(run_title(dict(told))))


# -- acts ------------------------------------------------------------------------------------------


def ask_of(act: Act, values: Values, token: str, person: str, wrong: str | None) -> Html:
    """The question that each act asks once."""
    hidden = [
        el("input", type="hidden", name=key, value=values[key])
        for key in act.about
        if values.get(key) is not None
    ]
    fields = [
        joined(
            [
                el("label", ask.label, for_=f"ask-{ask.name}"),
                el("textarea", values.get(ask.name, ""), id=f"ask-{ask.name}", name=ask.name,
                   required=not ask.optional, rows=3)
                if ask.lines
                else el("input", id=f"ask-{ask.name}", name=ask.name, autocomplete="off",
                        value=values.get(ask.name, ""), required=not ask.optional),
            ]
        )
        for ask in act.asks
    ]  # fmt: skip
    question = act.question({key: values.get(key) or "" for key in act.about})
    return joined(
        [
            el("h2", name(question)),
            el("p", name(wrong, 1_000), class_="wrong", role="alert") if wrong else None,
            el("p", act.means),
            el(
                "form",
                el("input", type="hidden", name="act", value=act.name),
                el("input", type="hidden", name=FIELD, value=token),
                hidden,
                fields,
                el("p", "It is written down that ", name(person), " did it."),
                el("p", el("button", act.verb), " ", link("", "No, go back"), class_="acts"),
                method="post",
                action="./ask",
                autocomplete="off",
            ),
        ]
    )


def done_of(text: str) -> Html:
    """What became of an act."""
    return joined([el("h2", "Done"), el("p", name(text, 1_000)), el("p", link("", "Go back"))])


def wrong_of(heading: str, text: str) -> Html:
    """Why there is nothing to be seen."""
    return joined([el("h2", heading), el("p", name(text, 2_000)), el("p", link("", "Go back"))])

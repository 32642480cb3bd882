"""The lists and parts that follow the cluster, as HTML. Pure; times are told as of `now`."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jobsync_async.operations.problems import Problem
from jobsync_async.operations.survey import MOST_COUNTED
from jobsync_async.operations.wording import count
from jobsync_async.web.acts import ACTS, Act
from jobsync_async.web.document import ago, counted, facts, instant, moment, row, span
from jobsync_async.web.markup import Content, Html, el, joined, link, name
from jobsync_async.web.picture import Picture
from jobsync_async.web.view import EventView, Facts, Handoffs, Move, RunView, WorkerView


def offer(act: Act, values: Mapping[str, Any], about: str) -> Html:
    """The link to an act, which asks once; `about` tells it from others on the page."""
    what = ", ".join(str(value) for value in values.values())
    said = el("span", f" {what}", class_="unseen")
    to = {"act": act.name, **values}
    return link("ask", act.verb, said, to=to, class_="act", id=f"{act.name}-{about}")


WORKER_COLUMNS = (
    "worker", "state", ">tokens", "share", ">weight", ">last beat", ">age", "version", "where",
)  # fmt: skip


def problems_of(found: Sequence[Problem], now: float) -> Html:
    """What is wrong, the worst first."""
    if not found:
        return el("p", "Nothing is wrong.", class_="fine")
    items = [
        el(
            "li",
            el("strong", "Wrong: " if one.severity == "wrong" else "To know: "),
            el("bdi", one.text),
            ". ",
            el("span", _with_code(one.advice[:1].upper() + one.advice[1:]), ". ", class_="quiet"),
            _more_of(one),
            class_=one.severity,
        )
        for one in found
    ]
    return el("ul", items, class_="problems")


def _more_of(one: Problem) -> Html | None:
    """Where the page tells more of it."""
    if one.task_id is not None:
        return link("task", "See the task", to={"id": one.task_id})
    if one.batch is not None:
        return link("batch", "See the batch", to={"batch": one.batch, "date": one.date})
    return None


def _with_code(text: str) -> list[Content]:
    return [el("code", part) if place % 2 else part for place, part in enumerate(text.split("`"))]


def facts_of(told: Facts, now: float) -> Html:
    """The cluster in a few figures."""
    return facts(
        (
            (
                "Leader",
                name(told.leader) if told.leader else el("strong", "nobody", class_="wrong"),
            ),
            ("Term", counted(told.term)),
            ("Live workers", f"{told.live:,} of {told.workers:,}"),
            ("Tokens", counted(told.tokens)),
            (
                "Without an owner",
                el("strong", counted(told.unowned), class_="wrong") if told.unowned else "0",
            ),
            ("Version", counted(told.version)),
            ("Generation", counted(told.generation)),
        )
    )


def moves_of(moves: Sequence[Move], now: float) -> Html:
    """What moved last."""
    if not moves:
        return el("p", "Nothing has moved since this page looks.", class_="quiet")
    return el("ol", [el("li", moment(move.at), " ", _pairs(move)) for move in moves])


def _pairs(move: Move) -> list[Content]:
    shown: list[Content] = []
    for giver, taker, tokens in move.pairs:
        shown += [", " if shown else None, f"{tokens:,} from ", who(giver), " to ", who(taker)]
    return [*shown, f", and {move.more:,} more" if move.more else None]


def who(worker: str | None) -> Html:
    return el("em", "nobody") if worker is None else name(worker, 60)


def handoffs_of(handoffs: Sequence[Handoffs], now: float) -> Html:
    """Tokens on their way."""
    if not handoffs:
        return el("p", "No token is being handed on.", class_="quiet")
    items = [
        el("li", f"{count(one.tokens, 'token')} from ", who(one.giver), " to ", who(one.receiver))
        for one in handoffs[:20]
    ]
    more = len(handoffs) - len(items)
    return joined([el("ul", items), el("p", f"and {count(more, 'pair')} more") if more else None])


def picture_of(picture: Picture) -> Html:
    """The picture of tokens; the script puts a canvas in its place."""
    stands = "a token" if picture.each == 1 else f"{picture.each:,} tokens"
    png = base64.b64encode(picture.png()).decode()
    image = el(
        "img",
        id="cells",
        src=f"data:image/png;base64,{png}",
        width=picture.columns,
        height=picture.rows,
        alt=f"Each of {count(picture.total, 'token')} in the colour of its owner. The table of "
        "workers has the figures.",
    )
    caption = el(
        "figcaption",
        f"A cell is {stands}, in the colour of its owner; ",
        el("span", "red", class_="wrong"),
        " has none.",
    )
    return el("figure", el("div", image, id="picture"), caption)


class Rows:
    """The rows of the live lists.

    Args:
        steer: whether acts are offered.
        beat: when the last heartbeat of a worker was, by its number. That is told apart, for it
            changes when nothing else does.
    """

    def __init__(self, steer: bool, beat: Callable[[int], float | None]) -> None:
        self._steer = steer
        self._beat = beat

    def worker(self, worker: WorkerView, now: float) -> Html:
        """A worker."""
        state: list[Content] = [worker.condition]
        if worker.condition == "silent" and worker.draining:
            state.append(", draining")
        if worker.leads:
            state.append(el("strong", ", leads"))
        limit = "" if worker.timeout_sec is None else f" of {worker.timeout_sec:g} s"
        beat = self._beat(worker.number)
        beaten = "" if beat is None else ago(beat, now)
        offered = ["undrain" if worker.draining else "drain", "evict"]
        if worker.condition == "evicted":
            offered = []
        acts = [offer(ACTS[act], {"node": worker.name}, f"{worker.number}") for act in offered]
        # as wide as its part of the greatest share
        wide = 0 if not worker.most else 100 * worker.share / worker.most
        return row(
            f"workers-{worker.number}",
            ("worker", [_swatch(worker.colour), name(worker.name)]),
            ("state", el("span", state, class_=f"state {worker.condition}")),
            (">tokens", counted(worker.tokens)),
            ("share", [_bar(wide, worker.colour), f"{100 * worker.share:.1f} %"]),
            (">weight", f"{worker.weight:g}"),
            (">last beat", [el("span", beaten, class_="beat"), limit]),
            (">age", ago(worker.joined, now)),
            ("version", name(worker.version, 40)),
            ("where", name(worker.where)),
            *([("act", acts)] if self._steer else []),
            class_=worker.condition,
        )

    def steering(self, told: tuple[bool, Sequence[tuple[str, int, str]]], now: float) -> Html:
        """Whether the cluster is paused, who was evicted, and what can be done about it."""
        paused, evicted = told
        acts = offer(ACTS["resume" if paused else "pause"], {}, "cluster") if self._steer else None
        names = [
            el(
                "li",
                name(one),
                f" was evicted by {by}, ",
                moment(at),
                " ",
                offer(ACTS["allow"], {"node": one}, f"{place}") if self._steer else None,
            )
            for place, (one, at, by) in enumerate(evicted[:50])
        ]
        said = el("p", el("strong", "Paused: "), "nothing new starts. ", acts) if paused else acts
        return joined([said, el("ul", names) if names else None])

    def run(self, run: RunView, now: float) -> Html:
        """A run of a batch."""
        told = dict(run.told)
        opened = told["finished_at"] is None
        total, done = told["total"], told["done"]
        many = min(told["failed"], MOST_COUNTED)
        failed = f"{many:,}{'+' if told['failed'] > many else ''}"
        to = {"batch": told["name"] or told["key"][:16], "date": told["date"]}
        label = told["name"] or f"{told['key'][:12]}, without a name"
        began = instant(told["started_at"])
        return row(
            f"runs-{run.key}",
            ("batch", link("batch", name(label), to=to)),
            ("date", told["date"]),
            (">total", counted(total)),
            (">done", counted(done)),
            ("so far", _bar(100 if not opened else 0 if not total else 100 * done / total)),
            (">failed", el("strong", failed, class_="wrong") if told["failed"] else "0"),
            (">a second", "?" if run.rate is None else f"{run.rate:,g}"),
            (">left", _left(run, opened)),
            ("started", [ago(began, now), " ago by ", name(told["started_by"], 60)]),
            class_="open" if opened else "finished",
        )

    def event(self, event: EventView, now: float) -> Html:
        """A row of the history."""
        rest = facts((key, name(value, 1_000)) for key, value in event.details)
        return el(
            "li",
            moment(event.at),
            " ",
            el(
                "details",
                el(
                    "summary",
                    el("span", event.kind, class_=f"kind {event.kind}"),
                    " ",
                    name(event.text),
                ),
                rest,
            ),
            id=f"events-{event.key}",
        )


RUN_COLUMNS = (
    "batch", "date", ">total", ">done", "so far", ">failed", ">a second", ">left", "started",
)  # fmt: skip


def _left(run: RunView, opened: bool) -> Content:
    if not opened:
        return "finished"
    return "?" if run.left_sec is None else f"about {span(run.left_sec)}"


def _bar(wide: float, colour: str | None = None) -> Html:
    """How much, as a bar; the figure stands beside it."""
    inner = el("rect", width=f"{wide:.1f}", height="4", fill=colour)
    return el(
        "svg", inner, class_="bar", viewBox="0 0 100 4", preserveAspectRatio="none",
        aria_hidden="true",
    )  # fmt: skip


def _swatch(colour: str) -> Html:
    inner = el("rect", width="10", height="10", fill=colour)
    return el("svg", inner, class_="swatch", viewBox="0 0 10 10", aria_hidden="true")

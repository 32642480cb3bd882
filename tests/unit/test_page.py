"""What the page shows and tells, without a browser, a server or a clock."""

from __future__ import annotations

import datetime as dt
import struct
import zlib
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("starlette", reason="the page needs the extra `web`")

from jobsync_async.web import parts, view
from jobsync_async.web.app import renders
from jobsync_async.web.changes import Frame, difference, encoded
from jobsync_async.web.channel import Channel
from jobsync_async.web.document import document, span
from jobsync_async.web.markup import Html, el, joined, link, name
from jobsync_async.web.picture import Picture

NOW = 1_700_000_000.0
CREATED = dt.datetime.fromtimestamp(NOW - 3600, dt.timezone.utc).isoformat()
NOTHING = {"batches": [], "set_aside": 0}
HOSTILE = (
    "<script>alert(1)</script>",
    "'\"><img src=x onerror=alert(1)>",
    "</td></tr></table><iframe>",
    "{node} %s {0}",
    "a\u202eb\x1b[31m\0",
    "javascript:alert(1)",
    "&lt;b&gt;",
)


class Tags(HTMLParser):
    """The elements that a browser would make, with the names of their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.made: list[tuple[str, tuple[str, ...]]] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.made.append((tag, tuple(name for name, _ in attrs)))
        self.addresses += [value for name, value in attrs if name in ("href", "src", "action")]

    def handle_data(self, data):
        self.text += data


def node(number: int, label: str = "", **more):
    values = {
        "name": label or f"w{number}", "joined": number, "state": "active", "weight": 1.0,
        "tokens": 60, "is_leader": number == 1, "address": None, "host": "here", "pid": number,
        "created_on": CREATED, "heartbeat_age_sec": 1.0, "timeout_sec": 15.0, "interval_sec": 3.75,
        "library": "0.2.0", "layout": 2, "runs": [],
    }  # fmt: skip
    return {**values, **more}


def seen(*nodes, **more):
    values = {
        "version": 7, "term": 1, "leader": nodes[0]["name"] if nodes else None, "generation": 1,
        "total_tokens": 120, "schema_version": 1, "layout": 2, "unowned": 0, "distributed": 120,
        "active_nodes": len(nodes), "nodes": list(nodes), "handoffs": [], "stuck_handoffs": [],
        "unmatched_pins": [], "versions": [{"library": "0.2.0", "layout": 2, "nodes": ["w1"]}],
        "unserved": [], "warnings": [], "paused": None, "evicted": [], "batches": [],
        "set_aside": 0,
    }  # fmt: skip
    return {**values, **more}


def overview(*nodes, **more) -> view.Overview:
    return view.overview(seen(*nodes, **more), NOW, lambda worker: "#123456")


# -- HTML ------------------------------------------------------------------------------------------


@given(st.text() | st.sampled_from(HOSTILE))
def test_no_text_becomes_html_wherever_it_is_put(text):
    plain = "x"
    made = [
        Tags(
            joined([el("p", one), name(one), link("task", one, to={"id": one}), el("a", title=one)])
        )
        for one in (text, plain)
    ]
    assert made[0].made == made[1].made or len(text) > 200
    assert all(address.startswith("./task?id=") for address in made[0].addresses)


def test_what_cannot_be_shown_is_marked_and_what_is_long_is_cut():
    assert name("a\u202eb\x1b") == "<bdi>a\ufffdb\ufffd</bdi>"
    assert len(name("x" * 10_000)) < 2_500
    assert el("p", None, 0, ["a", Html("<b></b>")], class_="k", hidden=True, title=None) == (
        '<p class="k" hidden>0a<b></b></p>'
    )


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_name_adds_no_element_to_any_part(hostile):
    def drawn(text: str) -> list[Tags]:
        told = overview(
            node(1, text, library=text, address=text, host=text),
            handoffs=[{"node": text, "receiver": text, "tokens": 3, "oldest_sec": 1.0}],
            stuck_handoffs=[{"node": text, "token_id": 1, "task_id": text, "seconds": 90.0}],
        )
        rows = parts.Rows(True, told.beats.get)
        move = view.Move(int(NOW), ((text, text, 3),), 0)
        pieces = [
            parts.problems_of(told.problems, NOW),
            parts.facts_of(told.facts, NOW),
            parts.handoffs_of(told.handoffs, NOW),
            rows.steering((True, [(text, int(NOW), text)]), NOW),
            parts.moves_of([move], NOW),
            *(rows.worker(worker, NOW) for worker in told.workers.values()),
            rows.event(view.EventView("1", int(NOW), "died", text, (("why", text),)), NOW),
        ]
        whole = document("", text, *pieces, cluster=text, version="1", now=NOW, banner=text)
        return [*map(Tags, pieces), Tags(whole)]

    for wild, tame in zip(drawn(hostile), drawn("x"), strict=True):
        assert wild.made == tame.made
        assert all(address.startswith(("./", "#", "data:image/")) for address in wild.addresses)


# -- the picture -----------------------------------------------------------------------------------


def pixels(png: bytes) -> list[str]:
    """The colours of a picture's cells, read as a browser reads them."""
    chunks, at = {}, 8
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert struct.unpack(">I", png[at + 8 + size : at + 12 + size])[0] == zlib.crc32(
            kind + body
        )
        chunks[kind], at = body, at + 12 + size
    wide, high = struct.unpack(">II", chunks[b"IHDR"][:8])
    rows = zlib.decompress(chunks[b"IDAT"])
    numbers = b"".join(rows[y * (wide + 1) + 1 : (y + 1) * (wide + 1)] for y in range(high))
    palette = chunks[b"PLTE"]
    return [f"#{palette[3 * n : 3 * n + 3].hex()}" if n else "" for n in numbers]


@given(
    st.integers(1, 40),
    st.lists(st.dictionaries(st.integers(0, 39), st.sampled_from([None, "a", "b", "c"]))),
)
def test_the_cells_that_are_told_add_up_to_the_picture(total, changes):
    picture = Picture()
    picture.apply(dict.fromkeys(range(total)), ["a", "b", "c"])
    shown = pixels(picture.png())
    owners: dict[int, str | None] = {}
    for asked in changes:
        change = {token: owner for token, owner in asked.items() if token < total}
        told = picture.apply(change, ["a", "b", "c"])
        moved = sum(owners.get(token) != owner for token, owner in change.items())
        assert told.moves.total() == moved
        owners |= change
        for colour, cells in told.cells.items():
            for cell in cells:
                shown[cell] = colour
    assert shown == pixels(picture.png())
    colours = {owner: picture.colour(owner) for owner in "abc"}
    assert len({*colours.values()}) == 3
    nobody = Picture()
    nobody.apply({0: None}, [])
    red = pixels(nobody.png())[0]
    assert red not in colours.values()
    for token in range(total):
        owner = owners.get(token)
        assert shown[token] == (red if owner is None else colours[owner])


def test_many_tokens_share_cells_and_one_without_an_owner_is_seen():
    picture = Picture()
    picture.apply(dict.fromkeys(range(1_000_000), "a"), ["a"])
    assert (picture.each, picture.columns * picture.rows >= 10_000) == (100, True)
    told = picture.apply({123_456: None}, ["a"])
    ((colour, cells),) = told.cells.items()
    assert cells == [1234]
    assert colour != picture.colour("a")
    assert picture.apply({123_456: "a"}, ["a"]).cells == {picture.colour("a"): [1234]}


def test_a_worker_keeps_its_colour_while_others_come_and_go():
    picture = Picture()
    picture.apply({0: "a", 1: "b"}, ["a", "b"])
    mine = picture.colour("b")
    picture.apply({0: "b"}, ["b"])
    picture.apply({0: "c"}, ["b", "c", "d"])
    assert picture.colour("b") == mine
    assert len({picture.colour(worker) for worker in "bcd"}) == 3


# -- the views -------------------------------------------------------------------------------------


def test_nothing_that_goes_on_by_itself_makes_two_views_differ():
    one = overview(node(1), node(2))
    later = view.overview(
        seen(node(1, heartbeat_age_sec=3.0), node(2, heartbeat_age_sec=0.1)),
        NOW + 2,
        lambda worker: "#123456",
    )
    assert one == later
    assert one.beats != later.beats


def test_a_worker_that_falls_silent_between_two_looks_is_told_without_a_look_at_its_row():
    before = overview(node(1), node(2))
    after = view.beaten(before, {1: 1.0, 2: 20.0}, NOW + 19, NOTHING)
    assert [worker.condition for worker in after.workers.values()] == ["active", "silent"]
    assert (before.facts.live, after.facts.live) == (2, 1)
    assert [problem.kind for problem in after.problems] == ["silent"]
    assert after.problems[0].severity == "wrong"
    back = view.beaten(after, {1: 1.0, 2: 0.5}, NOW + 21, NOTHING)
    assert back == before


def test_what_is_stuck_grows_older_between_two_looks():
    stuck = [{"node": "w1", "token_id": 1, "task_id": "7", "seconds": 30.0}]
    before = overview(node(1), stuck_handoffs=stuck)
    after = view.beaten(before, {1: 1.0}, NOW + 60, NOTHING)
    assert "30 s" in before.problems[0].text
    assert "90 s" in after.problems[0].text


def test_a_batch_that_fails_is_told_without_a_look_at_the_workers():
    run = {
        "name": "n", "key": "ab" * 32, "date": "2026-01-01", "total": 9, "done": 5, "failed": 2,
        "all_counted": True, "finished_at": None, "remaining": 4, "still_sec": None,
    }  # fmt: skip
    before = overview(node(1, runs=[{"kind": "batch", "name": "n", "date": "2026-01-01"}]))
    after = view.beaten(before, {1: 1.0}, NOW, {"batches": [run], "set_aside": 0})
    assert [problem.kind for problem in after.problems] == ["failed"]
    assert "./batch?batch=n&amp;date=2026-01-01" in parts.problems_of(after.problems, NOW)


def test_the_history_is_one_line_of_time_in_which_moves_name_their_causes():
    row = {
        "id": 5, "at": CREATED, "version": 7, "kind": "died", "node": "w2", "incarnation": None,
        "by": "w1", "term": None, "reason": "its process ended", "silent_sec": None,
        "details": None,
    }  # fmt: skip
    moved = {
        "version": 8, "at": CREATED, "reason": "w2 left", "leader": "w1", "term": 3,
        "nodes_before": 2, "nodes_after": 1, "tokens_moved": 60, "duration_ms": 1.5, "causes": [5],
        "moves": [
            {"from": "w2", "to": "w1", "tokens": 50}, {"from": None, "to": "w1", "tokens": 7},
        ],
    }  # fmt: skip
    newest, oldest = view.history({"events": [row], "rebalances": [moved]}, 100)
    assert (newest.key, newest.kind, oldest.key, oldest.kind) == ("v8", "moved", "h5", "died")
    assert dict(newest.details)["moved"] == "50 from w2 to w1, 7 from nobody to w1, 3 more"
    assert dict(newest.details)["because of"] == "w2 died (its process ended)"
    assert dict(oldest.details) == {"why": "its process ended", "by": "w1", "version": "7"}


def test_a_cluster_without_workers_has_a_picture_too():
    told = overview(unowned=0, distributed=0)
    assert told.problems[0].kind == "workers"
    assert "nobody" in parts.facts_of(told.facts, NOW)


def test_lengths_of_time():
    assert [span(s) for s in (-1, 0, 59.9, 60, 7199, 7200, 200_000)] == [
        "0 s", "0 s", "59 s", "1 min", "1 h", "2 h", "2 d",
    ]  # fmt: skip


# -- what viewers are told -------------------------------------------------------------------------

values = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3))
RENDER = {key: lambda value, now: Html(value) for key in ("p", "q", "list")}


class Browser:
    """A page as the script keeps it: elements of parts, and of a list in order."""

    def __init__(self) -> None:
        self.parts: dict[str, str] = {}
        self.items: dict[str, str] = {}

    def take(self, told) -> None:
        self.parts |= told.get("parts", {})
        change = told.get("lists", {}).get("list", {})
        self.items |= change.get("items", {})
        if "order" in change:
            self.items = {key: self.items[key] for key in change["order"]}


@given(st.lists(st.tuples(st.integers(0, 3), values), min_size=1))
def test_what_viewers_are_told_adds_up_to_what_is_so(moments):
    before, browser = Frame(), Browser()
    for part, items in moments:
        after = Frame({"p": part, "q": 0}, {"list": items})
        told = difference(before, after, RENDER, NOW)
        assert bool(told) == (before != after or [*before.lists.get("list", ())] != [*items])
        browser.take(told)
        assert browser.parts == {"p": str(part), "q": "0"}
        assert browser.items == {key: str(value) for key, value in items.items()}
        assert [*browser.items] == [*items]
        before = after


def test_only_what_changed_is_drawn():
    drawn = []
    render = {"list": lambda value, now: drawn.append(value) or Html("x")}
    many = {str(number): number for number in range(500)}
    frame = Frame({}, {"list": many})
    assert len(difference(Frame(), frame, render, NOW)["lists"]["list"]["items"]) == 500
    drawn.clear()
    told = difference(frame, Frame({}, {"list": {**many, "7": -7}}), render, NOW)
    assert drawn == [-7]
    assert "order" not in told["lists"]["list"]


async def test_a_viewer_that_is_behind_gets_all_that_it_missed_or_the_page_anew():
    channel = Channel(RENDER)
    for number in range(300):
        channel.show(Frame({"p": number}), NOW, "boot")
    assert channel.after(300) == []
    assert [number for number, _ in channel.after(297)] == [298, 299, 300]
    assert channel.after(5) is None, "too far behind"
    assert channel.after(301) is None, "of another life of this server"
    channel.show(Frame({"p": 299}), NOW, "boot")
    assert channel.number == 300, "nothing new"


@given(st.text())
def test_a_message_is_one_event_whatever_it_has(text):
    data = encoded({"parts": {"p": text.encode(errors="replace").decode()}}, "b.1")
    assert data.count(b"\n") == 3
    assert data.count(b"\r") == 0


def test_every_channel_draws_all_that_its_pages_have():
    made = renders(parts.Rows(False, lambda number: None))
    assert {channel: {*render} for channel, render in made.items()} == {
        "overview": {"banner", "problems", "facts", "moves", "handoffs", "steering", "workers"},
        "batches": {"banner", "runs"},
        "history": {"banner", "events"},
    }

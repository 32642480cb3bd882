"""What `watch` draws: names that are cut, lines in sight, keys."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console, Group

from jobsync_async.cli.keyboard import keys
from jobsync_async.cli.names import abridged, cut_names
from jobsync_async.cli.picture import Drawn, Scroll, draw, folded, frame
from jobsync_async.operations.problems import problems
from tests.documents.blocks import blocks_of
from tests.unit.test_problems import PIN, STUCK, WELL, node, run

PODS = [f"ingest-eu-central-1{zone}-deployment-7f9c6d5b8-{pod}" for zone in "ab" for pod in "xyz"]


@pytest.mark.parametrize(
    ("names", "width"),
    [
        (PODS, 60),
        (PODS, 20),
        (PODS, 8),
        ([f"worker-{n:03}-of-the-pipeline-in-frankfurt-am-main" for n in range(200)], 20),
        ([f"in-frankfurt-am-main-{'x' * 60}{n}{'y' * 60}" for n in range(30)], 30),
        (["\u5de5\u4f5c" * 20 + str(n) for n in range(30)], 21),
        (["bad\x1b[31m\nname" * 5, "bad\x1b[32m\nname" * 5], 12),
        (["same…", "same-but-long"], 8),
    ],
)
def test_names_are_cut_so_that_each_can_be_told_from_the_others(names, width):
    cut = cut_names(names, width)
    assert [*cut] == names
    assert len({*cut.values()}) == len(names)
    assert all(cell_len(text) <= width and text.isprintable() for text in cut.values())


def test_names_are_cut_in_the_middle_and_in_texts_too():
    cut = cut_names([PODS[0], "anna"], 21)
    assert cut == {PODS[0]: "ingest-eu-…f9c6d5b8-x", "anna": "anna"}
    assert abridged(f"{PODS[0]} and anna", cut) == f"{cut[PODS[0]]} and anna"


@pytest.mark.parametrize(
    ("typed", "names", "rest"),
    [
        (b"\x1b[A\x1bOBq", ["up", "down", "quit"], b""),
        (b"\x1b[5~\x1b[6~ b", ["page up", "page down", "page down", "page up"], b""),
        (b"\x1b[H\x1b[1~g\x1b[F\x1b[4~G", ["top"] * 3 + ["bottom"] * 3, b""),
        (b"j\x1b", ["down"], b"\x1b"),
        (b"\x1b[5", [], b"\x1b[5"),
        (b"\x1b[", [], b"\x1b["),
        (b"x\xc3\xa4\x1b[1;5C\x1bq", ["quit"], b""),
    ],
)
def test_keys_are_told_from_what_terminals_send_also_in_parts(typed, names, rest):
    assert keys(typed) == (names, rest)
    told, begun = [], b""
    for number in range(len(typed)):
        some, begun = keys(begun + typed[number : number + 1])
        told += some
    assert (told, begun) == (names, rest)


def test_lines_are_scrolled_and_never_out_of_sight():
    scroll = Scroll()
    assert scroll.see(30, 10) == range(10)
    for key, first in (("up", 0), ("down", 1), ("page down", 10), ("bottom", 20), ("down", 20),
                       ("page up", 11), ("nothing", 11)):  # fmt: skip
        scroll.press(key)
        assert scroll.see(30, 10).start == first, key
    assert scroll.see(12, 10) == range(2, 12), "workers have left"
    assert scroll.see(5, 10) == range(5)
    scroll.press("top")
    assert scroll.see(30, 10) == range(10)


def console(width: int, height: int) -> Console:
    return Console(width=width, height=height, file=io.StringIO())


def cluster(**values: Any) -> dict[str, Any]:
    shown = {"age_sec": 90.0, "host": "box", "pid": 4711, "weight": 1.0}
    return {
        **WELL,
        "nodes": [node(name, tokens=20, is_leader=name == PODS[0], **shown) for name in PODS],
        "leader": PODS[0],
        "term": 1,
        "version": 7,
        "active_nodes": 6,
        "handoffs": [],
        "batches": [],
        **values,
    }


TROUBLED = cluster(
    unmatched_pins=[PIN],
    stuck_handoffs=[{**STUCK, "node": PODS[4]}],
    handoffs=[
        {"node": None, "receiver": PODS[1], "tokens": 1, "oldest_sec": 90.0},
        {"node": PODS[4], "receiver": None, "tokens": 3, "oldest_sec": 61.0},
    ],
    batches=[run(done=60, failed=2)],
)


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("height", [2, 10, 24, 60])
@pytest.mark.parametrize("alarm", [None, "this is old: " + "gone " * 50])
def test_every_frame_fits_the_terminal(width, height, alarm):
    shown = console(width, height)
    drawn = draw(TROUBLED, problems(TROUBLED), shown)
    lines = frame(drawn, Scroll(), shown, alarm=alarm, keyboard=True)
    with shown.capture() as captured:
        shown.print(Group(*lines))
    told = captured.get().splitlines()
    assert len(told) == len(lines) and (len(lines) == height or height < 5)
    assert max(map(cell_len, told)) <= width


def test_a_worker_in_trouble_stands_above_the_others_with_the_rest_below():
    drawn = draw(TROUBLED, problems(TROUBLED), console(80, 24))
    text = [line.plain for line in drawn.lines]
    table = next(n for n, line in enumerate(text) if line.startswith("worker"))
    assert text[table + 1].split()[1] == "stuck"
    assert text[table + 2].split()[0].endswith("x")
    assert "batch 'nightly' of 2026-01-05: 60 of 100 done, 2 failed, at 1 worker" in text
    assert text[-1].startswith("3 tokens on the way from ingest-eu-central-1b")


def test_many_problems_of_one_kind_leave_room_for_the_others():
    many = cluster(stuck_handoffs=[{**STUCK, "node": name} for name in PODS], unmatched_pins=[PIN])
    found = [(problem.kind, problem.text) for problem in folded(problems(many))]
    assert [kind for kind, _ in found] == ["pin", *["stuck"] * 4]
    assert found[-1][1] == "3 more of this kind: stuck"


def test_without_a_keyboard_it_says_so_and_what_is_old_is_said_first():
    shown = console(80, 10)
    lines = frame(
        Drawn(draw(cluster(), [], shown).head, []), Scroll(), shown, alarm="no", keyboard=False
    )
    assert (lines[0].plain, lines[-1].plain.rstrip()) == ("no", "Ctrl-C ends")


# -- the screen on the page ------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"


def scene() -> dict[str, Any]:
    """Ten workers, three of them in trouble; a pin that nobody matches, and a batch."""
    pods = [
        f"ingest-eu-central-1a-deployment-7f9c6d5b8-{pod}"
        for pod in ["x2k4p", "9qz7m", "h5tvw", "b8n3r"]
    ]
    pods += [name.replace("-1a-", "-1b-") for name in pods] + [
        "ingest-eu-central-1c-deployment-7f9c6d5b8-k6jdl"
    ]
    nodes = [
        node(
            name,
            tokens=1_111,
            is_leader=not number,
            age_sec=9_000.0 - number,
            heartbeat_age_sec=0.4 + number % 5,
            host="box",
            pid=4711,
            weight=1.0,
        )
        for number, name in enumerate(pods)
    ]
    nodes[2] |= {"heartbeat_age_sec": 12.6, "connected": False}
    nodes[7] |= {"state": "draining", "tokens": 0}
    return {
        **WELL,
        "nodes": nodes,
        "leader": pods[0],
        "term": 1,
        "version": 42,
        "active_nodes": 9,
        "total_tokens": 10_000,
        "distributed": 10_000,
        "unowned": 1,
        "unmatched_pins": [PIN],
        "stuck_handoffs": [{**STUCK, "node": pods[5]}],
        "handoffs": [{"node": pods[5], "receiver": pods[1], "tokens": 1, "oldest_sec": 61.2}],
        "batches": [run(total=100_000, done=41_214, failed=12, run_by=pods)],
    }


def test_the_screen_on_the_page_is_the_one_that_is_drawn():
    shown = console(80, 24)
    lines = frame(
        draw(scene(), problems(scene()), shown), Scroll(), shown, alarm=None, keyboard=True
    )
    drawn = "\n".join(line.plain.rstrip() for line in lines)
    (block,) = [
        block.text for block in blocks_of(PAGE) if block.text.startswith("9 live workers, ")
    ]
    assert block.strip() == drawn.strip()

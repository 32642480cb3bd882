"""The home page's pictures are what their commands make, and load nothing."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.documents.blocks import ROOT

pytest.importorskip("rich", reason="the demo's terminal is shown by rich")

FIGURES = ROOT / "docs" / "figures"
WORKERS_ROW = re.compile(r"(alpha|beta|gamma|delta) #$")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "docs.pictures", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )


def test_the_picture_of_tokens_is_what_the_library_plans(tmp_path):
    done = make("tokens", "--to", str(tmp_path / "tokens.svg"))
    assert done.returncode == 0, done.stderr
    made = (tmp_path / "tokens.svg").read_text("utf-8")
    assert made == (FIGURES / "tokens.svg").read_text("utf-8"), (
        "run `python -m docs.pictures tokens`"
    )


def test_tokens_move_only_as_they_must():
    from docs.pictures.tokens import ADDED, FIRST, KILLED, TOKENS, story

    first, second, third = story()
    assert {first.count(name) for name in FIRST} == {TOKENS // len(FIRST)}
    for token in range(TOKENS):
        stays = first.owners[token] != KILLED
        assert (first.owners[token] == second.owners[token]) == stays
        assert third.owners[token] in (second.owners[token], ADDED)
        if third.owners[token] == first.owners[token]:
            assert first.cells[token] == third.cells[token]
    for scene in (first, second, third):
        assert len(set(zip(scene.owners, scene.cells, strict=True))) == TOKENS
    assert second.count(KILLED) == third.count(KILLED) == 0


async def test_the_recording_shows_what_the_demo_prints_today(dsn, tmp_path):
    """Fewer files than in the committed one: what counts are the headings and the lines of the
    result, without numbers."""
    to = tmp_path / "demo.svg"
    done = await asyncio.to_thread(make, "demo", "--dsn", dsn, "--files", "300", "--to", str(to))
    assert done.returncode == 0, done.stdout + done.stderr
    committed = last_frame(FIGURES / "demo.svg")
    assert last_frame(to) == committed, "run `python -m docs.pictures demo`"
    assert {
        "Who did what",
        "worker files completed",
        "Checked against the database",
        "promise found",
    } <= committed
    assert "every file completed exactly once yes # completions of # files, # missing" in committed
    assert "beta was killed # #" in committed


def last_frame(picture: Path) -> set[str]:
    """Its lines, without the tables' borders, and with # for each number. Who did how much differs,
    and is left out."""
    rows: dict[str, list[str]] = {}
    for text in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text"):
        if "gone" not in text.attrib["class"].split():
            rows.setdefault(text.attrib["y"], []).append(text.text or "")
    lines = set()
    for row in rows.values():
        line = re.sub(r"[^\w\s$,.;-]|_", " ", " ".join(row)).replace("the files ended first", "0")
        line = re.sub(r"\d[\d,.]*(?<!,)", "#", " ".join(line.split()))
        if line and not WORKERS_ROW.match(line):
            lines.add(line)
    return lines


@pytest.mark.parametrize("picture", ["tokens.svg", "demo.svg"])
def test_a_picture_loads_nothing_and_stays_small(picture):
    text = (FIGURES / picture).read_text("utf-8")
    assert set(re.findall(r"https?://[^\s\"')]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(|<image|<script|href", text)
    assert "prefers-color-scheme: dark" in text
    assert "prefers-reduced-motion: reduce" in text
    assert len(text.encode()) < 100_000


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_a_reader_sees_the_pictures_before_the_first_heading(page):
    head = (ROOT / page).read_text("utf-8").split("\n## ")[0]
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", head)
    assert [(ROOT / page).parent / name for name in shown] == [
        FIGURES / "tokens.svg",
        FIGURES / "demo.svg",
    ]


def test_the_pictures_of_the_page_are_there_small_and_shown():
    """Chromium draws them, which is not the same everywhere: they are made again by hand."""
    from docs.pictures.page import PICTURES

    text = (ROOT / "docs" / "how-to" / "web-page.md").read_text("utf-8")
    for name, *_ in PICTURES:
        picture = (FIGURES / f"page-{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) < 150_000
        assert f"](../figures/page-{name}.png)" in text

"""The fenced blocks of the documents. Each is run by a test, or says above itself why not."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\S*)(?P<options>[^\n]*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_TITLE = re.compile(r'title="(?P<title>[^"]*)"')
_EXCUSE = re.compile(r"<!-- not run: (.+?) -->\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block. `title`: what the page shows above it. `excuse`: why it is not run."""

    page: Path
    line: int
    language: str
    title: str
    text: str
    excuse: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    """All of a page, in order."""
    text = page.read_text("utf-8")
    for match in _FENCE.finditer(text):
        before = text[: match.start()]
        excuse = _EXCUSE.search(before)
        yield Block(
            page,
            before.count("\n") + 1,
            match["language"],
            title["title"] if (title := _TITLE.search(match["options"])) else "",
            textwrap.dedent(match["text"]),
            excuse.group(1) if excuse else None,
        )


def blocks(*languages: str) -> list[Block]:
    """Those of all pages in one of the languages."""
    return [block for page in PAGES for block in blocks_of(page) if block.language in languages]

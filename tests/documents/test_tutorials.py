"""Each tutorial is followed from its text alone, in an empty folder, with a fresh environment.

The title of a block says what it is: the name of a file, or `Terminal 1` and so on. Commands are
typed into that terminal, each when the one before has ended well. A block of plain text is what
the terminal shows next, in any order. There a number stands for any other, but 0 for itself
alone, and an ellipsis stands for anything. If it begins with `^C` or `^\\`, that key is pressed
first. A block of Python without a title quotes a file of the page: test_blocks.py compares them.

Only this is different from what a reader does: uv does the work of `python3 -m venv` and `pip
install`, for speed; this checkout stands in for `jobsync-async`; the ports are free ones; and a
stand-in for work, which is there for people to watch, is short.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.documents.blocks import ROOT, TUTORIALS, Block, blocks_of
from tests.documents.terminals import KEYS, Terminal
from tests.examples.test_examples import free_ports

PORTS = ("8001", "8002", "8003", "8765", "9092")
UNREACHABLE = ("Failed to fetch", "error sending request", "the network was disabled")  # uv says
# Nothing of the environment that runs the tests, or of its settings, is there.
HIDDEN = ("JOBSYNC_DSN", "JOBSYNC_TEST_", "PG", "PYTEST", "PYTHON", "VIRTUAL_ENV")

_TOOLS = {
    "python3": """#!/bin/sh -e
if test "$1 $2" != "-m venv"; then echo "python3 $*: outside of an environment" >&2; exit 1; fi
HOME={home} exec {uv} venv --quiet --python {python} "$3"
""",
    "pip": """#!{python}
import os, re, sys
here = lambda word: re.sub(r"^jobsync-async(\\[.*\\])?$", r"jobsync-async\\1 @ {wheel}", word)
given = [here(word) for word in sys.argv[2:]]
assert sys.argv[1] == "install" and given != sys.argv[2:] and "VIRTUAL_ENV" in os.environ
os.environ["HOME"] = "{home}"
os.execv("{uv}", ["{uv}", "pip", "install", "--quiet", *given])
""",
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment variables of the terminals."""
    if not (ROOT / "jobsync_async").is_dir():
        pytest.skip("the source is not here: an installed wheel is tested")
    uv = shutil.which("uv")
    for tool in ("uv", "bash", "curl"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}")
    folder = tmp_path_factory.mktemp("tools")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, timeout=60, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    values = {"uv": uv, "python": sys.executable, "wheel": wheel.as_uri(), "home": Path.home()}
    for name, text in _TOOLS.items():
        tool = folder / name
        tool.write_text(text.format(**values), "utf-8")
        tool.chmod(0o755)
    home = folder / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)}
    path = f"{folder}:/usr/local/bin:/usr/bin:/bin"
    return {**kept, "PATH": path, "HOME": str(home), "LC_ALL": "C.UTF-8"}


@pytest.fixture
def follow(environment: dict[str, str], tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path, environment)
    yield reader
    reader.close()


class Reader:
    """Does what a page says, block by block."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
        self.terminals: dict[str, Terminal] = {}

    def page(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            if block.excuse is None:
                try:
                    self._block(block)
                except AssertionError as error:
                    told = " ".join(" ".join(map(Terminal.shown, self.terminals.values())).split())
                    if any(sign in told for sign in UNREACHABLE):
                        pytest.skip("the package index cannot be reached")
                    raise AssertionError(f"{block}: {error}") from None

    def close(self) -> None:
        for terminal in self.terminals.values():
            terminal.close()

    def _block(self, block: Block) -> None:
        if block.title.endswith(".py"):
            assert block.language == "python"
            folder = next(self._folder.iterdir(), None)
            assert folder is not None, "the page makes no folder for this file first"
            program = block.text.replace("asyncio.sleep(0.1)  # the work", "asyncio.sleep(0.03)")
            (folder / block.title).write_text(self._with_free_ports(program), "utf-8")
        elif block.title.startswith("Terminal "):
            lines = block.text.splitlines()
            terminal = self._terminal(block.title)
            if block.language == "bash":
                terminal.run(self._with_free_ports(block.text.replace("\\\n", "")).splitlines())
            else:
                assert block.language == "text"
                if lines[0] in KEYS:
                    terminal.press(lines.pop(0))
                terminal.wait_for(lines)
        else:
            assert block.language == "python", "a block of a tutorial needs a title"

    def _terminal(self, name: str) -> Terminal:
        if name not in self.terminals:
            self.terminals[name] = Terminal(name, self._folder, self._environment)
        return self.terminals[name]

    def _with_free_ports(self, text: str) -> str:
        return re.sub("|".join(PORTS), lambda port: self._ports[port[0]], text)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_can_be_followed_from_its_text_alone(page, follow, tmp_path):
    follow.page(blocks_of(page))
    for terminal in follow.terminals.values():
        terminal.wait_for_prompt()
    assert not list(tmp_path.iterdir()), "the page says how to clean up"
    told = "\n".join(terminal.shown() for terminal in follow.terminals.values())
    if page.stem == "batch":
        booked = re.findall(r"(\d+) booked here, (\d+) elsewhere", told)
        assert [int(here) + int(elsewhere) for here, elsewhere in booked] == [1000, 1000]
    if page.stem == "websocket":
        for symbol in ("BTC", "ETH", "SOL", "ADA", "DOT", "XRP"):
            steps = re.findall(rf"\b(un)?subscribed +{symbol}-USD", told)
            assert steps == ["", "un"] * (len(steps) // 2), f"{symbol} was subscribed twice at once"


SOUND = [
    ("bash", "Terminal 1", "mkdir here && cd here\npython3 -m venv .venv && . .venv/bin/activate"),
    ("python", "count.py", "print('counted', 7)"),
    ("bash", "Terminal 1", "python count.py"),
    ("text", "Terminal 1", "counted 9"),
    ("bash", "Terminal 2", "echo begun; sleep 3600"),
    ("text", "Terminal 2", "begun"),
    ("text", "Terminal 2", "^C"),
    ("bash", "Terminal 1", "cd .. && rm -rf here"),
]
BROKEN = {
    "a command that fails": (0, ("bash", "Terminal 1", "mkdir here && cd her\nls"), "status 1"),
    "a program that fails": (1, ("python", "count.py", "import tme"), "No module named 'tme'"),
    "a file of another name": (1, ("python", "counts.py", "print('counted')"), "No such file"),
    "a file before the folder": (0, ("python", "count.py", "print('counted')"), "makes no folder"),
    "a program outside": (2, ("bash", "Terminal 1", "deactivate\npython3 count.py"), "outside"),
    "another number than 0": (3, ("text", "Terminal 1", "counted 0"), "one sees\ncounted 0"),
    "another word": (3, ("text", "Terminal 1", "found 9"), "one sees\nfound 9"),
    "a block without a title": (2, ("bash", "", "python count.py"), "needs a title"),
}


def page_of(steps: Iterable[tuple[str, str, str]]) -> list[Block]:
    return [Block(ROOT / "page.md", line, *step, None) for line, step in enumerate(steps)]


@pytest.mark.parametrize("fault", [None, *BROKEN])
def test_a_page_of_which_a_block_is_broken_turns_red(fault, environment, tmp_path):
    steps = list(SOUND)
    expected = None
    if fault is not None:
        at, steps[at], expected = BROKEN[fault]
    reader = Reader(tmp_path, environment)
    try:
        if expected is None:
            reader.page(page_of(steps))
            assert reader.terminals["Terminal 1"].wait_for_prompt() == 0
        else:
            with pytest.raises(AssertionError, match=re.escape(expected)):
                reader.page(page_of(steps))
    finally:
        reader.close()

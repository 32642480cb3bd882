"""The rooms of the package and which of them import which, as docs/internals.md shows them.

The order of the rooms is that of the layers in pyproject.toml. The arrows are read off the imports.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "jobsync_async"

CELL, LEFT, TOP, RIGHT, BOTTOM = 30, 104, 62, 24, 14
CAPTIONS = (
    "Go right from a room to a dot, then down to a name: the room imports what has that name.",
    "A shaded square holds rooms of one layer, which do not import each other.",
)

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #656d76; --line: #d0d7de;
  --shade: #eaeef2; --room: #0969da; --module: #afb8c1; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --line: #30363d;
    --shade: #21262d; --room: #58a6ff; --module: #6e7681; }
}
text { font: 14px system-ui, sans-serif; fill: var(--ink) }
.name { text-anchor: end }
.folder { font-weight: 600 }
.caption { fill: var(--soft) }
.guide { stroke: var(--line) }
.layer { fill: var(--shade) }
.box { fill: var(--module) }
.box.folder { fill: var(--room) }
.dot { fill: var(--ink) }
"""


def layers(root: Path = ROOT) -> list[list[str]]:
    """The rooms by layer, the highest layer first, as import-linter is told of them."""
    text = (root / "pyproject.toml").read_text("utf-8")
    listed = re.search(r"^layers = (\[.*?^\])", text, re.MULTILINE | re.DOTALL)
    assert listed is not None, "pyproject.toml has no layers"
    return [[name.strip() for name in one.split("|")] for one in ast.literal_eval(listed[1])]


def imports(root: Path = ROOT) -> dict[str, set[str]]:
    """For each room, the others that modules in it import, wherever the import stands."""
    rooms = {name for layer in layers(root) for name in layer}
    package = root / PACKAGE
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        if room in rooms:
            named = {name.split(".")[1] for name in _imported(path) if "." in name}
            found[room] |= (named & rooms) - {room}
    return dict(found)


def _imported(path: Path) -> Iterator[str]:
    """What a module imports from the package, with dots."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name for name in names if name.split(".")[0] == PACKAGE)


def draw(root: Path = ROOT) -> str:
    """The picture, as text of an SVG file."""
    order = [name for layer in layers(root) for name in layer]
    at = {name: number for number, name in enumerate(order)}
    known = imports(root)
    parts = [
        f'<text class="caption" x="10" y="{20 + 20 * n}">{c}</text>' for n, c in enumerate(CAPTIONS)
    ]
    for layer in layers(root):
        if len(layer) > 1:
            x, y, size = LEFT + at[layer[0]] * CELL, TOP + at[layer[0]] * CELL, len(layer) * CELL
            frame = f'x="{x}" y="{y}" width="{size}" height="{size}" rx="4"'
            parts.append(f'<rect class="layer" {frame}/>')
    for name, row in at.items():
        columns = sorted(at[other] for other in known.get(name, ()))
        rows = [at[other] for other in order if name in known.get(other, ())]
        if columns:
            parts.append(_line(row, row, max(columns), row))
        if rows:
            parts.append(_line(row, min(rows), row, row))
    for name, row in at.items():
        folder = (root / PACKAGE / name).is_dir()
        kind, shown = (" folder", f"{name}/") if folder else ("", f"{name}.py")
        x, y = _middle(row, row)
        place = f'x="{x - 7}" y="{y - 7}" width="14" height="14" rx="3"'
        parts.append(f'<rect class="box{kind}" {place}/>')
        parts.append(f'<text class="name{kind}" x="{x - 20}" y="{y + 5}">{shown}</text>')
        for other in sorted(known.get(name, ()), key=at.__getitem__):
            dot_x, dot_y = _middle(at[other], row)
            parts.append(f'<circle class="dot" cx="{dot_x}" cy="{dot_y}" r="5"/>')
    size = len(order) * CELL
    width, height = LEFT + size + RIGHT, TOP + size + BOTTOM
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">\n'
        f"<title>Which rooms import which</title>\n<desc>{_told(order, known)}</desc>\n"
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


def _middle(column: int, row: int) -> tuple[int, int]:
    return LEFT + column * CELL + CELL // 2, TOP + row * CELL + CELL // 2


def _line(column: int, row: int, to_column: int, to_row: int) -> str:
    (x1, y1), (x2, y2) = _middle(column, row), _middle(to_column, to_row)
    return f'<line class="guide" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _told(order: list[str], known: dict[str, set[str]]) -> str:
    """The same in words, for those who cannot see it."""
    told = [
        f"{name}: {', '.join(sorted(known.get(name, ()), key=order.index)) or 'none'}"
        for name in order
    ]
    return "What each room imports. " + "; ".join(told) + "."

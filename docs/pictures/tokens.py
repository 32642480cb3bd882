"""Tokens that move: three workers share them, one dies, another one joins.

Who gets which token is the library's own plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobsync_async.core.assignment import PlanNode, plan

TOKENS = 30
FIRST = ("alpha", "beta", "gamma")
KILLED, ADDED = "beta", "delta"
PLACES = (*FIRST, ADDED)

COLUMNS, PITCH, CELL = 5, 28, 24
BOX_WIDTH, BOX_HEIGHT, GAP = 164, 134, 14
LEFT, TOP, HEAD = 7, 34, 38
WIDTH = 2 * LEFT + len(PLACES) * BOX_WIDTH + (len(PLACES) - 1) * GAP
HEIGHT = TOP + BOX_HEIGHT + 10

# The story in percent of its length.
SECONDS = 18
KILL, TAKEN_FROM, TAKEN, JOIN, LET_GO, GIVEN, FADE = 18, 24, 32, 52, 60, 68, 95

STYLE = f"""
:root {{ color-scheme: light dark; --ink: #1f2328; --soft: #656d76; --box: #f6f8fa; --line: #afb8c1;
  --on: #ffffff; --alpha: #0969da; --beta: #bc4c00; --gamma: #1a7f37; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e6edf3; --soft: #9198a1; --box: #161b22; --line: #484f58; --on: #0d1117;
    --alpha: #58a6ff; --beta: #f0883e; --gamma: #56d364; }}
}}
text {{ font: 15px system-ui, sans-serif; fill: var(--ink) }}
.box {{ fill: var(--box); stroke: var(--line) }}
.name {{ font-weight: 600 }}
.count {{ fill: var(--soft); text-anchor: end }}
.cell text {{ font-size: 11px; fill: var(--on); text-anchor: middle }}
.alpha rect {{ fill: var(--alpha) }}
.beta rect {{ fill: var(--beta) }}
.gamma rect {{ fill: var(--gamma) }}
.later {{ opacity: 0 }}
.cell, .dead, .let-go, .count, .caption, .killed, .added, #all {{
  animation-duration: {SECONDS}s; animation-iteration-count: infinite }}
.cell {{ animation-name: move; animation-timing-function: ease-in-out }}
.dead {{ animation-name: dead }}
.let-go {{ animation-name: let-go }}
.killed {{ animation-name: killed }}
.added {{ animation-name: added }}
.scene-1 {{ animation-name: scene-1 }}
.scene-2 {{ animation-name: scene-2 }}
.scene-3 {{ animation-name: scene-3 }}
.count-1 {{ animation-name: count-1 }}
.count-2 {{ animation-name: count-2 }}
.count-3 {{ animation-name: count-3 }}
.count, .caption {{ animation-timing-function: step-end }}
#all {{ animation-name: all }}
@keyframes move {{ 0%, {TAKEN_FROM}% {{ transform: none }}
  {TAKEN}%, {LET_GO}% {{ transform: translate(var(--x1), var(--y1)) }}
  {GIVEN}%, 100% {{ transform: translate(var(--x2), var(--y2)) }} }}
@keyframes dead {{ 0%, {KILL}% {{ opacity: 1 }} {KILL + 1}%, {TAKEN_FROM}% {{ opacity: .3 }}
  {TAKEN}%, 100% {{ opacity: 1 }} }}
@keyframes let-go {{ 0%, {JOIN}% {{ opacity: 1 }} {JOIN + 2}%, {LET_GO}% {{ opacity: .55 }}
  {GIVEN}%, 100% {{ opacity: 1 }} }}
@keyframes killed {{ 0%, {KILL}% {{ opacity: 1 }} {KILL + 1}%, 100% {{ opacity: .25 }} }}
@keyframes added {{ 0%, {JOIN - 1}% {{ opacity: 0 }} {JOIN}%, 100% {{ opacity: 1 }} }}
@keyframes scene-1 {{ 0% {{ opacity: 1 }} {KILL}%, 100% {{ opacity: 0 }} }}
@keyframes scene-2 {{ 0% {{ opacity: 0 }} {KILL}% {{ opacity: 1 }} {JOIN}%, 100% {{ opacity: 0 }} }}
@keyframes scene-3 {{ 0% {{ opacity: 0 }} {JOIN}%, 100% {{ opacity: 1 }} }}
@keyframes count-1 {{ 0% {{ opacity: 1 }} {TAKEN}%, 100% {{ opacity: 0 }} }}
@keyframes count-2 {{ 0% {{ opacity: 0 }} {TAKEN}% {{ opacity: 1 }}
  {GIVEN}%, 100% {{ opacity: 0 }} }}
@keyframes count-3 {{ 0% {{ opacity: 0 }} {GIVEN}%, 100% {{ opacity: 1 }} }}
@keyframes all {{ 0% {{ opacity: 0 }} 2%, {FADE}% {{ opacity: 1 }} 100% {{ opacity: 0 }} }}
@media (prefers-reduced-motion: reduce) {{ * {{ animation: none !important }} }}
"""


@dataclass(frozen=True)
class Scene:
    """Who has each token, and in which cell of its worker's box it is shown."""

    owners: list[str]
    cells: list[int]

    def count(self, worker: str) -> int:
        return self.owners.count(worker)


def story() -> list[Scene]:
    """The three scenes: as shared out first, after the death, after the joining."""
    scenes: list[Scene] = []
    for workers in (
        FIRST,
        [name for name in FIRST if name != KILLED],
        [name for name in PLACES if name != KILLED],
    ):
        before = scenes[-1] if scenes else None
        scenes.append(_next(before, workers))
    return scenes


def _next(before: Scene | None, workers: Sequence[str]) -> Scene:
    owners: list[str | None] = list(before.owners) if before else [None] * TOKENS
    nodes = [PlanNode(name, 1.0) for name in workers]
    present = [owner if owner in workers else None for owner in owners]
    cells = list(before.cells) if before else [-1] * TOKENS
    moved = []
    for name, tokens in plan(nodes, present, {}).gains:
        for token in tokens:
            owners[token] = name
            moved.append(token)
    taken = {(owners[token], cells[token]) for token in range(TOKENS) if token not in moved}
    for token in moved:  # a token that stays does not stir
        cell = 0
        while (owners[token], cell) in taken:
            cell += 1
        cells[token] = cell
        taken.add((owners[token], cell))
    return Scene([owner or "" for owner in owners], cells)


def _at(scene: Scene, token: int) -> tuple[int, int]:
    row, column = divmod(scene.cells[token], COLUMNS)
    x = (
        LEFT
        + PLACES.index(scene.owners[token]) * (BOX_WIDTH + GAP)
        + (BOX_WIDTH - COLUMNS * PITCH + PITCH - CELL) // 2
    )
    return x + column * PITCH, TOP + HEAD + row * PITCH


def _moved(before: Scene, after: Scene) -> list[int]:
    return [token for token in range(TOKENS) if before.owners[token] != after.owners[token]]


def _captions(first: Scene, second: Scene, third: Scene) -> list[str]:
    taken, given = len(_moved(first, second)), len(_moved(second, third))
    return [
        f"{len(FIRST)} workers share {TOKENS} tokens. A task has one token, a token one worker.",
        f"{KILLED} is killed: its {taken} tokens go to the others. No other token moves.",
        f"{ADDED} joins: others finish work on {given} tokens and hand them on. No other moves.",
    ]


def draw() -> str:
    """The picture, as text of an SVG file."""
    scenes = first, second, third = story()
    captions = _captions(*scenes)
    parts = []
    for index, name in enumerate(PLACES):
        x = LEFT + index * (BOX_WIDTH + GAP)
        kind = {KILLED: ' class="killed"', ADDED: ' class="added later"'}.get(name, "")
        parts.append(f"<g{kind}>")
        size = f'width="{BOX_WIDTH}" height="{BOX_HEIGHT}"'
        parts.append(f'<rect class="box" x="{x}" y="{TOP}" {size} rx="8"/>')
        parts.append(f'<text class="name" x="{x + 14}" y="{TOP + 24}">{name}</text>')
        for number, scene in enumerate(scenes, 1):
            later = "" if number == 1 else " later"
            count = "killed" if name == KILLED and number > 1 else str(scene.count(name))
            when = "scene" if name == KILLED else "count"  # a count rises when the tokens have come
            place = f'x="{x + BOX_WIDTH - 14}" y="{TOP + 24}"'
            parts.append(f'<text class="count {when}-{number}{later}" {place}>{count}</text>')
        parts.append("</g>")
    stirring = [*_moved(second, third), *_moved(first, second)]
    # What moves is drawn on top of what stays.
    for token in sorted(range(TOKENS), key=stirring.__contains__):
        (x, y), (x1, y1), (x2, y2) = (_at(scene, token) for scene in scenes)
        to = f"--x1:{x1 - x}px;--y1:{y1 - y}px;--x2:{x2 - x}px;--y2:{y2 - y}px"
        dead = ' class="dead"' if token in _moved(first, second) else ""
        let_go = ' class="let-go"' if token in _moved(second, third) else ""
        parts.append(
            f'<g class="cell {first.owners[token]}" style="{to}"><g{dead}><g{let_go}>'
            f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" rx="4"/>'
            f'<text x="{x + CELL // 2}" y="{y + 16}">{token}</text></g></g></g>'
        )
    for number, caption in enumerate(captions, 1):
        later = "" if number == 1 else " later"
        parts.append(
            f'<text class="caption scene-{number}{later}" x="{LEFT}" y="18">{caption}</text>'
        )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img">\n'
        f"<title>Tokens and their workers</title>\n<desc>{' '.join(captions)}</desc>\n"
        f'<style>{STYLE}</style>\n<g id="all">\n{body}\n</g>\n</svg>\n'
    )

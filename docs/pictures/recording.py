"""A recording of ``jobsync-async demo``.

The demo is run, and what its terminal shows is written down as it changes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape

import anyio
from rich.console import Console, RenderableType
from rich.segment import Segment
from rich.style import Style

from jobsync_async.demo import display
from jobsync_async.demo.conductor import Demo, server

COLUMNS = 104
CHARACTER, LINE, MARGIN, BAR = 7.2, 17, 14, 32
FRAME_EVERY_SEC = 0.5
RESULT_SHOWN_SEC = 12.0
COMMAND = "jobsync-async demo"

STYLE = """
:root { color-scheme: light dark;
  --ink: #1f2328; --soft: #656d76; --paper: #f6f8fa; --line: #afb8c1;
  --good: #1a7f37; --bad: #cf222e; --bar: #0969da; --rest: #d0d7de; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --paper: #161b22; --line: #484f58;
    --good: #56d364; --bad: #ff7b72; --bar: #58a6ff; --rest: #30363d; }
}
.paper { fill: var(--paper); stroke: var(--line) }
text { fill: var(--ink); white-space: pre;
  font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace }
.bold { font-weight: bold }
.italic { font-style: italic }
.soft { fill: var(--soft) }
.good { fill: var(--good) }
.bad { fill: var(--bad) }
.bar { fill: var(--bar) }
.rest { fill: var(--rest) }
.gone { visibility: hidden }
.shown { animation-duration: %(seconds).1fs; animation-iteration-count: infinite;
  animation-timing-function: step-end }
@media (prefers-reduced-motion: reduce) { * { animation: none !important } }
"""


@dataclass(frozen=True)
class Piece:
    """A run of characters of one look, and where it stands."""

    row: int
    column: int
    text: str
    look: str


@dataclass
class Film:
    """What was on the screen: each frame with the second from which on it was shown."""

    frames: list[tuple[float, list[Piece]]] = field(default_factory=list)

    def add(self, second: float, shown: RenderableType) -> None:
        pieces = list(_pieces(shown))
        if not self.frames or self.frames[-1][1] != pieces:
            self.frames.append((second, pieces))


def record(dsn: str | None, files: int | None) -> str:
    """Run the demo; the recording, as text of an SVG file. A promise not kept is an error."""
    return draw(anyio.run(_filmed, dsn, files))


async def _filmed(dsn: str | None, files: int | None) -> Film:
    film = Film()
    with server(dsn) as reached:
        demo = Demo(reached, files)
        progress = demo.progress

        async def watch() -> None:
            while True:
                film.add(progress.seconds, display._frame(progress))
                await anyio.sleep(FRAME_EVERY_SEC)

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            await demo.run()
            group.cancel_scope.cancel()
    broken = [check.promise for check in progress.checks if not check.kept]
    if broken or not progress.checks:
        raise SystemExit(f"the demo did not keep what it promises: {broken}")
    film.add(progress.seconds, display.result(progress))
    return film


def _pieces(shown: RenderableType) -> Iterator[Piece]:
    console = Console(
        width=COLUMNS,
        file=io.StringIO(),
        force_terminal=True,
        color_system="standard",
        legacy_windows=False,
    )
    for row, line in enumerate(console.render_lines(shown, pad=False), 1):
        column = 0
        for segment in Segment.simplify(line):
            if segment.text.strip():
                indent = len(segment.text) - len(segment.text.lstrip())
                yield Piece(row, column + indent, segment.text.strip(), _look(segment))
            column += segment.cell_length


def _look(segment: Segment) -> str:
    style = segment.style or Style()
    if set(segment.text.strip()) <= set("━╸╺"):
        return "rest" if style.color is not None and style.color.name == "grey23" else "bar"
    names = [name for name in ("bold", "italic") if getattr(style, name)]
    if style.dim:
        names.append("soft")
    if style.color is not None and style.color.name in ("green", "red"):
        names.append({"green": "good", "red": "bad"}[style.color.name])
    return " ".join(names)


def draw(film: Film) -> str:
    """The film as an SVG. Without movement it shows the last frame."""
    end = film.frames[-1][0] + RESULT_SHOWN_SEC
    times = [second for second, _ in film.frames[1:]] + [end]
    spans: dict[Piece, list[tuple[int, int]]] = {}  # frames in which a piece is there: from, to
    for number, (_, pieces) in enumerate(film.frames):
        for piece in pieces:
            shown = spans.setdefault(piece, [])
            if shown and shown[-1][1] == number:
                shown[-1] = (shown[-1][0], number + 1)
            else:
                shown.append((number, number + 1))

    def percent(frame: int) -> str:
        return f"{100 * (0.0 if frame == 0 else times[frame - 1]) / end:.2f}%"

    last = len(film.frames)
    keyframes: dict[tuple[int, int], str] = {}
    lines = []
    for piece, shown in spans.items():
        for span in shown:
            name = keyframes.setdefault(span, f"f{len(keyframes)}")
            lines.append(_text(piece, f"shown {name}" + ("" if span[1] == last else " gone")))
    rules = []
    for (first, after), name in keyframes.items():
        start = "" if first == 0 else "0% { visibility: hidden } "
        stop = "" if after == last else f" {percent(after)} {{ visibility: hidden }}"
        rules.append(f".{name} {{ animation-name: {name} }}")
        rules.append(
            f"@keyframes {name} {{ {start}{percent(first)} {{ visibility: visible }}{stop} }}"
        )
    rows = max(piece.row for piece in spans) + 1
    width, height = COLUMNS * CHARACTER + 2 * MARGIN, BAR + rows * LINE + MARGIN
    command = _text(Piece(0, 0, f"$ {COMMAND}", "soft"), "")
    style = STYLE % {"seconds": end} + "\n".join(rules)
    body = "\n".join([command, *lines])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" '
        f'width="{width:.0f}" height="{height}" role="img">\n'
        f"<title>A recording of {COMMAND}</title>\n<style>{style}</style>\n"
        f'<rect class="paper" x="1" y="1" width="{width - 2:.0f}" height="{height - 2}" rx="8"/>\n'
        f"{_buttons()}\n{body}\n</svg>\n"
    )


def _buttons() -> str:
    return "".join(
        f'<circle class="rest" cx="{18 + 18 * number}" cy="17" r="5"/>' for number in range(3)
    )


def _text(piece: Piece, state: str) -> str:
    look = " ".join(part for part in (piece.look, state) if part)
    x, y = MARGIN + piece.column * CHARACTER, BAR + piece.row * LINE + 13
    length = len(piece.text) * CHARACTER
    text = escape(piece.text, quote=False)
    return f'<text class="{look}" x="{x:.1f}" y="{y}" textLength="{length:.1f}">{text}</text>'

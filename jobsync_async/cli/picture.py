"""What `watch` draws on a terminal: what is wrong first, then a line for each worker. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from jobsync_async.cli.app import duration
from jobsync_async.cli.names import abridged, cut_names
from jobsync_async.cli.status import STYLES, gist, headline, shortened
from jobsync_async.operations.batches import title
from jobsync_async.operations.problems import Problem
from jobsync_async.operations.wording import count

_MOST_ALIKE = 3  # problems of one kind: the rest of them is counted
_LEAST_NAME = 12
_MARKS = {"wrong": "✗ ", "notice": "! "}
_LOUD = {"silent": "bold red", "stuck": "bold red", "late": "yellow", "draining": "yellow"}
_MOST_ALARM = 3
_GAP = 2
_SCROLLS = "↑ ↓ PgUp PgDn scroll, q ends"
_ENDS = "q ends"
_CTRL_C = "Ctrl-C ends"

View = Mapping[str, Any]


class Drawn(NamedTuple):
    """The cluster in one line, and what is scrolled below it."""

    head: Text
    lines: list[Text]


class Column(NamedTuple):
    """Of the table of workers: its head and what it says of each, in their order, all as wide as
    the widest."""

    lines: list[str]

    @property
    def width(self) -> int:
        return cell_len(self.lines[0])


def draw(seen: View, found: Sequence[Problem], console: Console) -> Drawn:
    """The cluster, in lines as wide as the console at most."""
    states = _states(seen, found)
    nodes = _troubled_first(seen["nodes"], states)
    columns = _columns(seen, nodes, states, console.width)
    room = console.width - sum(_GAP + column.width for column in columns)
    named = {name for problem in found for name in problem.nodes}
    named |= {
        name for handoff in seen["handoffs"] for name in (handoff["node"], handoff["receiver"])
    }
    cut = cut_names(
        [*states, *sorted(filter(None, {*named, seen["leader"]}))], max(room, _LEAST_NAME)
    )
    told = [line for problem in folded(found) for line in _told(problem, cut, console)]
    lines = [
        *told,
        *([Text()] if told else ()),
        *_table(
            [_column("worker", (cut[node["name"]] for node in nodes)), *columns], nodes, states
        ),
        *(_line(text, "dim") for text in [*_batches(seen), *_handoffs(seen, cut)]),
    ]
    return Drawn(_head(seen, console.width), lines)


def _head(seen: View, width: int) -> Text:
    """The leader's name gets the room that is left for it."""
    if seen["leader"] is None or cell_len(headline(seen)) <= width:
        return _line(shortened(headline(seen)), "bold")
    room = width - cell_len(gist(seen, " "))
    return _line(gist(seen, cut_names([seen["leader"]], room)[seen["leader"]]), "bold")


class Scroll:
    """Which of many lines are in sight."""

    def __init__(self) -> None:
        self._top = self._total = 0
        self._height = 1

    def press(self, key: str) -> None:
        """A key was pressed: those that do not scroll do nothing."""
        page = max(self._height - 1, 1)
        steps = {"up": -1, "down": 1, "page up": -page, "page down": page}
        ends = {"top": -self._total, "bottom": self._total}
        self._top += {**steps, **ends}.get(key, 0)
        self.see(self._total, self._height)

    def see(self, total: int, height: int) -> range:
        """Those in sight of so many, where so many have room."""
        self._total, self._height = total, height
        self._top = max(min(self._top, total - height), 0)
        return range(self._top, min(self._top + height, total))


def frame(
    drawn: Drawn, scroll: Scroll, console: Console, *, alarm: str | None, keyboard: bool
) -> list[Text]:
    """What is on the screen now: the head, the lines that are in sight, and which these are.

    Args:
        alarm: why what is shown is old.
        keyboard: whether keys can be pressed.
    """
    head = [drawn.head] if alarm is None else _alarm(alarm, console)
    height = max(console.height - len(head) - 1, 1)
    total = len(drawn.lines)
    shown = scroll.see(total, height)
    lines = [drawn.lines[number] for number in shown]
    lines += [Text()] * (height - len(lines))
    hidden = len(shown) < total
    keys = (_SCROLLS if hidden else _ENDS) if keyboard else _CTRL_C
    where = f"lines {shown.start + 1}-{shown.stop} of {total}" if hidden else ""
    gap = max(console.width - cell_len(keys) - len(where), 1)
    return [*head, *lines, _line(f"{keys}{' ' * gap}{where}", "reverse")]


def _alarm(text: str, console: Console) -> list[Text]:
    wrapped = Text(shortened(text), style="bold red").wrap(console, max(console.width, 1))
    return list(wrapped)[:_MOST_ALARM]


def folded(found: Sequence[Problem]) -> Iterator[Problem]:
    """Some of each kind, and how many more there are."""
    many = Counter(problem.kind for problem in found)
    shown = Counter[str]()
    for problem in found:
        kind = problem.kind
        shown[kind] += 1
        if shown[kind] <= _MOST_ALIKE:
            yield problem
        elif shown[kind] == _MOST_ALIKE + 1:
            text = f"{many[kind] - _MOST_ALIKE:,} more of this kind: {kind}"
            yield Problem(kind, problem.severity, text, "`jobsync-async status`")


def _told(problem: Problem, cut: Mapping[str, str], console: Console) -> list[Text]:
    """What is wrong also with what to do."""
    text = Text(abridged(shortened(problem.text), cut), style=STYLES[problem.severity])
    if problem.severity == "wrong":
        text.append(f" → {abridged(shortened(problem.advice), cut)}", style="not bold default")
    mark = _MARKS[problem.severity]
    wrapped = text.wrap(console, max(console.width - len(mark), 1))
    return [
        Text(" " * len(mark) if number else mark, style=STYLES[problem.severity]).append_text(line)
        for number, line in enumerate(wrapped)
    ]


def _states(seen: View, found: Sequence[Problem]) -> dict[str, str]:
    """How each worker is, in a word."""
    states = {
        node["name"]: "leads"
        if node["is_leader"] and node["state"] == "active"
        else str(node["state"])
        for node in seen["nodes"]
    }
    for problem in found:
        for name in problem.nodes if problem.kind in {"stuck", "silent"} else ():
            late = problem.kind == "silent" and problem.severity == "notice"
            states[name] = "late" if late else problem.kind
    return states


def _troubled_first(nodes: Sequence[View], states: Mapping[str, str]) -> list[View]:
    order = [*_LOUD]
    return sorted(
        nodes,
        key=lambda node: (
            order.index(state) if (state := states[node["name"]]) in order else len(order)
        ),
    )


def _columns(
    seen: View, nodes: Sequence[View], states: Mapping[str, str], width: int
) -> list[Column]:
    """What there is room for. The last of them come where whole names have room beside them."""
    total = seen["total_tokens"]
    columns = [
        _column("state", (states[node["name"]] for node in nodes)),
        _column(">tokens", (f"{node['tokens']:,}" for node in nodes)),
        _column(">share", (f"{100 * node['tokens'] / total:.1f} %" for node in nodes)),
        _column(">age", (duration(node["age_sec"]) for node in nodes)),
        _column(">last beat", (f"{node['heartbeat_age_sec']:.1f} s" for node in nodes)),
    ]
    room = width - sum(_GAP + column.width for column in columns)
    room -= max((cell_len(node["name"]) for node in nodes), default=0)
    for more in (
        _column(">weight", (f"{node['weight']:g}" for node in nodes)),
        _column("version", (shortened(node["library"]) for node in nodes)),
        _column("where", (shortened(f"{n['host'] or '?'}, {n['pid'] or '?'}") for n in nodes)),
    ):
        room -= _GAP + more.width
        if room < 0:
            break
        columns.append(more)
    return columns


def _column(head: str, cells: Iterable[str]) -> Column:
    """Numbers, whose head begins with ``>``, stand on the right."""
    right, lines = head.startswith(">"), [head.removeprefix(">"), *cells]
    width = max(map(cell_len, lines))
    blanks = [" " * (width - cell_len(line)) for line in lines]
    return Column(
        [blank + line if right else line + blank for blank, line in zip(blanks, lines, strict=True)]
    )


def _table(
    columns: Sequence[Column], nodes: Sequence[View], states: Mapping[str, str]
) -> Iterator[Text]:
    head, *rows = ((" " * _GAP).join(row) for row in zip(*(c.lines for c in columns), strict=True))
    if rows:
        yield _line(head, "underline")
    for node, row in zip(nodes, rows, strict=True):
        yield _line(row, _LOUD.get(states[node["name"]], ""))


def _batches(seen: View) -> Iterator[str]:
    for run in seen["batches"]:
        if run["finished_at"] is None:
            total = "" if run["total"] is None else f" of {run['total']:,}"
            failed = f", {run['failed']:,} failed" if run["failed"] else ""
            by = f", at {count(len(run['run_by']), 'worker')}" if run["run_by"] else ""
            yield f"{shortened(title(run))}: {run['done']:,}{total} done{failed}{by}"


def _handoffs(seen: View, cut: Mapping[str, str]) -> Iterator[str]:
    for handoff in seen["handoffs"]:
        giver = cut.get(handoff["node"], "?")
        receiver = cut.get(handoff["receiver"], "nobody")
        yield (
            f"{count(handoff['tokens'], 'token')} on the way from {giver} to {receiver} "
            f"for {handoff['oldest_sec']:.1f} s"
        )


def _line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")

"""The tokens as one picture: a cell for each, or for some that follow each other, in the colour of
its owner. Pure.

* What changed of the picture is told by cells; the whole is sent once, as a small PNG.
* A colour belongs to a worker's name while the worker is there. The smallest free number is taken.
* A cell of several tokens shows the first of them, or that one of them has no owner.
"""

from __future__ import annotations

import colorsys
import math
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

MOST_CELLS = 10_000
_BESIDE = 4  # so many times wider than high
_NOTHING, _NOBODY, _FIRST = 0, 1, 2
_MOST_COLOURS = 256 - _FIRST
_RED = "#e0314b"
"""Of tokens without an owner; no worker has a colour near it."""
_GOLDEN = 0.618_033_988_75


class Moved(NamedTuple):
    """What a change did.

    Attributes:
        cells: cells that changed, by their colour now.
        moves: how many tokens went from whom to whom; None for nobody.
    """

    cells: dict[str, list[int]]
    moves: Counter[tuple[str | None, str | None]]


class Picture:
    """Who owns which token, as cells.

    Attributes:
        total: how many tokens there are, 0 before the first change.
        each: how many of them a cell stands for.
    """

    def __init__(self) -> None:
        self.total: int = 0
        self.each: int = 1
        self._owners: list[str | None] = []
        self._cells = bytearray()
        self._numbers: dict[str, int] = {}

    @property
    def columns(self) -> int:
        """How many cells are in a row."""
        return max(1, math.ceil(math.sqrt(_BESIDE * len(self._cells))))

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return max(1, math.ceil(len(self._cells) / self.columns))

    def apply(self, moved: Mapping[int, str | None], workers: Iterable[str]) -> Moved:
        """Take in who owns what now, and which workers there are."""
        self._name(workers)
        if self.total < (total := max(moved, default=-1) + 1):
            self._make_room(total)
        moves: Counter[tuple[str | None, str | None]] = Counter()
        touched = set()
        for token, owner in moved.items():
            if (before := self._owners[token]) != owner:
                self._owners[token] = owner
                moves[before, owner] += 1
                touched.add(token // self.each)
        cells: dict[str, list[int]] = {}
        for cell in sorted(touched):
            number = self._number_of(cell)
            if self._cells[cell] != number:
                self._cells[cell] = number
                cells.setdefault(_hex(number), []).append(cell)
        return Moved(cells, moves)

    def colour(self, worker: str) -> str:
        """As CSS writes it."""
        return _hex(self._index(worker))

    def png(self) -> bytes:
        """The whole."""
        rows = (
            b"\0" + bytes(self._cells[at : at + self.columns]).ljust(self.columns, b"\0")
            for at in range(0, max(len(self._cells), 1), self.columns)
        )
        used = max(self._cells, default=_NOBODY) + 1
        size = struct.pack(">IIBBBBB", self.columns, self.rows, 8, 3, 0, 0, 0)
        palette = b"".join(bytes.fromhex(_hex(number)[1:]) for number in range(used))
        parts = [(b"IHDR", size), (b"PLTE", palette), (b"tRNS", b"\0")]
        parts += [(b"IDAT", zlib.compress(b"".join(rows), 9)), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)

    def _name(self, workers: Iterable[str]) -> None:
        """Give numbers to those who came, and take them from those who left."""
        there = dict.fromkeys(workers)
        self._numbers = {who: n for who, n in self._numbers.items() if who in there}
        free = iter(sorted(set(range(len(there))) - set(self._numbers.values())))
        for who in there:
            if who not in self._numbers:
                self._numbers[who] = next(free)

    def _make_room(self, total: int) -> None:
        self.total, self.each = total, math.ceil(total / MOST_CELLS)
        self._owners += [None] * (total - len(self._owners))
        self._cells = bytearray(
            self._number_of(cell) for cell in range(math.ceil(total / self.each))
        )

    def _number_of(self, cell: int) -> int:
        owners = self._owners[cell * self.each : (cell + 1) * self.each]
        if None in owners:
            return _NOBODY
        return self._index(owners[0])

    def _index(self, worker: str | None) -> int:
        number = None if worker is None else self._numbers.get(worker)
        return _NOBODY if number is None else _FIRST + number % _MOST_COLOURS


def _hex(number: int) -> str:
    if number == _NOTHING:
        return "#000000"
    if number == _NOBODY:
        return _RED
    # Each as far from those before as it can be, and away from red.
    place = number - _FIRST
    hue = 0.1 + 0.8 * ((0.55 + place * _GOLDEN) % 1)
    light = (0.52, 0.42, 0.62)[place % 3]
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, light, 0.62))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

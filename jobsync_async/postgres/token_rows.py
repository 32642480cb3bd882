"""New rows of the table of tokens, in the binary format of PostgreSQL's COPY.

Rows of one owner differ in their number alone: one of them is repeated, and the numbers are put in,
one of their bytes in all rows at a time. Source of the format: PostgreSQL's documentation of COPY,
"Binary Format".
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from itertools import groupby
from struct import pack

from jobsync_async.core.distribution import Moves
from jobsync_async.core.rows import Identity

_HEADER = pack(">11sii", b"PGCOPY\n\xff\r\n\0", 0, 0)
_END = pack(">h", -1)
_NUMBER_AT = 6  # after the count of fields and this field's length
# Larger pieces are no faster, and the memory that they took stays with the process.
_MOST_ROWS = 1_000


def token_rows(
    moves: Moves, owners: Sequence[Identity | None], *, epoch: int, version: int
) -> Iterator[bytes]:
    """``token_id, node, incarnation, epoch, version`` of new tokens, in pieces of about a hundred
    kilobytes at most.

    Args:
        moves: tokens and receivers.
        owners: the receivers in order; None in place of one is nobody, as receiver 0 is.
    """
    yield _HEADER
    at = 0
    for receiver, run in groupby(moves.receivers):
        row = _row(owners[receiver - 1] if receiver else None, epoch, version)
        end = at + len(list(run))
        for first in range(at, end, _MOST_ROWS):
            yield _repeated(row, moves.token_ids[first : min(first + _MOST_ROWS, end)])
        at = end
    yield _END


def _row(owner: Identity | None, epoch: int, version: int) -> bytes:
    name, incarnation = (owner.name.encode(), owner.incarnation.bytes) if owner else (None, None)
    fields = (b"\0" * 4, name, incarnation, pack(">q", epoch), pack(">q", version))
    return pack(">h", len(fields)) + b"".join(_field(field) for field in fields)


def _field(value: bytes | None) -> bytes:
    return pack(">i", -1) if value is None else pack(">i", len(value)) + value


def _repeated(row: bytes, token_ids: Sequence[int]) -> bytes:
    numbers = array("i", token_ids)
    if sys.byteorder == "little":
        numbers.byteswap()
    digits, rows = numbers.tobytes(), bytearray(row * len(token_ids))
    for place in range(numbers.itemsize):
        rows[_NUMBER_AT + place :: len(row)] = digits[place :: numbers.itemsize]
    return bytes(rows)

"""What a COPY in PostgreSQL's binary format says, read field by field."""

from __future__ import annotations

from struct import unpack_from
from typing import NamedTuple
from uuid import UUID

_SIGNATURE = b"PGCOPY\n\xff\r\n\0"


class NewToken(NamedTuple):
    """A row as the leader makes it."""

    token_id: int
    node: str | None
    incarnation: UUID | None
    epoch: int
    version: int


def copied(data: bytes) -> list[NewToken]:
    """The rows of tokens in it."""
    assert data.startswith(_SIGNATURE)
    flags, extension = unpack_from(">ii", data, len(_SIGNATURE))
    assert (flags, extension) == (0, 0)
    at, rows = len(_SIGNATURE) + 8, list[NewToken]()
    while (count := unpack_from(">h", data, at)[0]) >= 0:
        at += 2
        fields = list[bytes | None]()
        for _ in range(count):
            (length,) = unpack_from(">i", data, at)
            at += 4
            fields.append(None if length < 0 else data[at : at + length])
            at += max(0, length)
        rows.append(_token(*fields))
    assert at + 2 == len(data)
    return rows


def _token(
    token_id: bytes, name: bytes | None, incarnation: bytes | None, epoch: bytes, version: bytes
) -> NewToken:
    assert [len(value) for value in (token_id, epoch, version)] == [4, 8, 8]
    return NewToken(
        int.from_bytes(token_id, "big"),
        None if name is None else name.decode(),
        None if incarnation is None else UUID(bytes=incarnation),
        int.from_bytes(epoch, "big"),
        int.from_bytes(version, "big"),
    )

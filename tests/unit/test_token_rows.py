"""New rows as COPY takes them, read back field by field."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from jobsync_async.core.distribution import Moves
from jobsync_async.core.rows import Identity
from jobsync_async.postgres.token_rows import token_rows
from tests.copies import NewToken, copied

names = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=20
)
owners = st.lists(st.none() | st.builds(Identity, names, st.uuids()), min_size=1, max_size=4)
numbers = st.integers(0, 2**63 - 1)


@given(st.data(), owners, numbers, numbers)
def test_each_token_has_its_row(
    data: st.DataObject, owners: list[Identity | None], epoch: int, version: int
):
    token_ids = data.draw(st.lists(st.integers(0, 999_999), unique=True, max_size=30))
    receivers = data.draw(
        st.lists(st.integers(0, len(owners)), min_size=len(token_ids), max_size=len(token_ids))
    )
    pieces = token_rows(Moves(token_ids, receivers), owners, epoch=epoch, version=version)
    whose = [None, *owners]
    assert copied(b"".join(pieces)) == [
        NewToken(token, *(whose[receiver] or (None, None)), epoch, version)
        for token, receiver in zip(token_ids, receivers, strict=True)
    ]


def test_hundreds_of_thousands_come_in_pieces():
    total, owner = 300_001, Identity("a", UUID(int=1))
    pieces = list(token_rows(Moves(list(range(total)), [1] * total), [owner], epoch=1, version=0))
    assert max(map(len, pieces)) < 100_000
    assert [row.token_id for row in copied(b"".join(pieces))] == list(range(total))

"""What the next rebalance would move. Nothing is written: the leader's own decision is made on a
reading of the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from jobsync_async.core.distribution import flows_told
from jobsync_async.core.hashing import token_hasher
from jobsync_async.core.leader_state import LeaderState, Reading
from jobsync_async.core.rows import Member
from jobsync_async.errors import ConfigError
from jobsync_async.postgres.store import Store


async def plan_ahead(
    store: Store, *, without: Sequence[str] = (), adding: Sequence[str] = ()
) -> dict[str, Any]:
    """The next rebalance, as the tables are now.

    Args:
        without: workers that are taken to be gone.
        adding: names of workers that are taken to have joined, with weight 1.

    Raises ConfigError for a name in `without` that no worker has, or in `adding` that one has;
    StoreUnavailable.
    """
    settings = await store.inspection.settings()
    reading = await store.leading.read(-1, -1)
    return planned(reading, settings.total_tokens, settings.hash_function, without, adding)


def planned(
    reading: Reading,
    total_tokens: int,
    hash_function: str,
    without: Sequence[str] = (),
    adding: Sequence[str] = (),
) -> dict[str, Any]:
    """`plan_ahead` on a reading that shows everything. Pure."""
    members = _suppose({member.name: member for member in reading.members}, without, adding)
    now = Counter({group.node: 0 for group in reading.groups})
    live = {member.incarnation for member in members.values()}
    for group in reading.groups:
        owner = group.node if group.incarnation in live else None
        now[owner] += len(group.token_ids)
    state = LeaderState(total_tokens, token_hasher(total_tokens, hash_function))
    state.update(reading._replace(members=list(members.values())))
    distribution = state.distribute()
    flows = Counter[tuple[str | None, str | None]]()
    if distribution is not None:
        flows = distribution.flows
    under_way = sum(len(group.token_ids) for group in reading.groups if group.next_node is not None)
    then = Counter(state.planned)
    return {
        "version": reading.cluster.version,
        "moved": flows.total(),
        "under_way": under_way,
        "moves": flows_told(flows),
        "nodes": [
            {
                "name": name,
                "state": "active" if member.active else "draining",
                "weight": member.weight,
                "tokens": now[name],
                "tokens_planned": then[name] if distribution is not None else now[name],
            }
            for name, member in members.items()
        ],
        "unmatched": [
            {"token_id": token, "node_patterns": list(p)}
            for token, p in sorted(state.unmatched.items())
        ],
    }


def _suppose(
    members: dict[str, Member], without: Sequence[str], adding: Sequence[str]
) -> dict[str, Member]:
    for name in without:
        if members.pop(name, None) is None:
            raise ConfigError(
                f"there is no worker named {name!r} to leave out; `jobsync-async status` lists them"
            )
    for name in adding:
        if name in members:
            raise ConfigError(f"there is a worker named {name!r} already; add one of another name")
        members[name] = Member(name, uuid4(), 0, 1.0, True)
    return members

"""The leader's picture, against tables as simple as can be: it always comes to rest where everybody
has his share."""

from __future__ import annotations

from collections import Counter
from itertools import count
from random import Random
from uuid import UUID, uuid4

import pytest

from jobsync_async.core.distribution import GONE, Distribution
from jobsync_async.core.leader_state import LeaderState, PinRow, Reading
from jobsync_async.core.patterns import eligible
from jobsync_async.core.rows import NOBODY, ClusterRow, Event, Member, TokenGroup

TOTAL = 60


class Tables:
    """Workers, tokens and pins, and the statements that change them."""

    def __init__(self) -> None:
        self.version = self.pin_version = self.youngest = self.planned_joined = 0
        self.members: dict[str, Member] = {}
        self.joined: dict[str, int] = {}
        # token: node, incarnation, next_node, version, epoch
        self.tokens: dict[int, tuple[str | None, UUID | None, str | None, int, int]] = {}
        self.pins: dict[str, tuple[str, ...]] = {}
        self.events: list[Event] = []
        self.numbers = count(1)

    def join(self, name: str, weight: float = 1.0) -> None:
        self.version += 1
        self.youngest += 1
        self.members[name] = Member(name, uuid4(), 0, weight, True, self.youngest)
        self.joined[name] = self.youngest
        self.tell("joined", name)

    def tell(self, kind: str, name: str | None) -> None:
        start = self.members[name].incarnation if name else None
        self.events.append(Event(next(self.numbers), kind, name, start))

    def die(self, name: str, how: str | None = "died") -> None:
        self.version += 1
        if how is not None:
            self.tell(how, name)
        del self.members[name]

    def drain(self, name: str, active: bool) -> None:
        self.version += 1
        m = self.members[name]
        self.members[name] = Member(m.name, m.incarnation, m.beat, m.weight, active, m.age)
        self.tell("undrained" if active else "drained", name)

    def pin(self, task: str, patterns: tuple[str, ...] | None) -> None:
        self.version += 1
        self.pin_version = self.version
        self.pins.pop(task, None)
        if patterns:
            self.pins[task] = patterns

    def read(self, state: LeaderState) -> Reading:
        groups: dict[tuple, list[int]] = {}
        for token, (node, incarnation, next_node, version, _) in self.tokens.items():
            if version > state.version:
                groups.setdefault((node, incarnation, next_node), []).append(token)
        pins = [PinRow(task, patterns, None) for task, patterns in self.pins.items()]
        return Reading(
            ClusterRow(self.version, 1, None, 1, self.pin_version, self.planned_joined),
            sorted(self.members.values(), key=lambda m: self.joined[m.name]),
            [TokenGroup(*key, tokens) for key, tokens in groups.items()],
            pins if self.pin_version != state.pin_version else None,
            max((self.joined[name] for name in self.members), default=0),
            self.events,
        )

    def alive(self, incarnation: UUID | None) -> bool:
        return any(member.incarnation == incarnation for member in self.members.values())

    def give(self, token: int, name: str | None, epoch: int) -> None:
        member = self.members.get(name or "")
        live = member is not None and member.active
        self.tokens[token] = (
            name if live else None,
            member.incarnation if live else None,
            None,
            self.version,
            epoch,
        )

    def write(self, distribution: Distribution, locked: set[int]) -> int:
        self.version += 1
        self.events = []
        self.planned_joined = distribution.planned_joined
        skipped = 0

        def name_of(receiver: int) -> str | None:
            return distribution.names[receiver - 1] if receiver else None

        for token, receiver in zip(
            distribution.create.token_ids, distribution.create.receivers, strict=True
        ):
            assert token not in self.tokens
            self.give(token, name_of(receiver), 1)
        for token, receiver in zip(
            distribution.assign.token_ids, distribution.assign.receivers, strict=True
        ):
            _, incarnation, _, _, epoch = self.tokens[token]
            assert not self.alive(incarnation), "takes a token away from a live worker"
            if token in locked:
                skipped += 1
            else:
                self.give(token, name_of(receiver), epoch + 1)
        for token, receiver in zip(
            distribution.revoke.token_ids, distribution.revoke.receivers, strict=True
        ):
            node, incarnation, _, _, epoch = self.tokens[token]
            assert self.alive(incarnation)
            if token in locked:
                skipped += 1
            else:
                self.tokens[token] = (node, incarnation, name_of(receiver), self.version, epoch)
        return skipped

    def acknowledge(self, tokens: list[int]) -> None:
        self.version += 1
        for token in tokens:
            _, incarnation, next_node, _, epoch = self.tokens[token]
            if next_node is not None and self.alive(incarnation):
                self.give(token, next_node, epoch + 1)


def token_of(task: object) -> int:
    return int(str(task)) % TOTAL


def lead(tables: Tables, state: LeaderState, locked: set[int] | None = None) -> Distribution | None:
    state.update(tables.read(state))
    distribution = state.distribute()
    if distribution is not None and tables.write(distribution, locked or set()):
        state.plan_again()
    return distribution


def come_to_rest(tables: Tables, state: LeaderState) -> None:
    for _ in range(20):
        distribution = lead(tables, state)
        going = [
            token
            for token, row in tables.tokens.items()
            if row[2] is not None and tables.alive(row[1])
        ]
        if distribution is None and not going:
            return
        tables.acknowledge(going)
    pytest.fail("it does not come to rest")


def check(tables: Tables) -> None:
    active = [name for name, member in tables.members.items() if member.active]
    wanted = {}
    for task, patterns in tables.pins.items():  # the oldest first
        wanted.setdefault(token_of(task), patterns)
    counts: Counter[str] = Counter()
    for token, (node, incarnation, next_node, _, _) in tables.tokens.items():
        assert next_node is None or not tables.alive(incarnation)
        allowed = eligible(wanted[token], active) if token in wanted else active
        if not allowed:
            assert node is None or not tables.alive(incarnation) or node not in active
            continue
        assert node in allowed, (token, node, allowed)
        assert tables.members[node].incarnation == incarnation
        counts[node] += 1
    if active and not wanted and len({tables.members[name].weight for name in active}) == 1:
        assert len(tables.tokens) == TOTAL
        assert max(counts.values()) - min(counts[name] for name in active) <= 1


@pytest.mark.parametrize("seed", range(200))
def test_whatever_happens_it_comes_to_rest_where_everybody_has_his_share(seed):
    random = Random(seed)
    tables, state, names = Tables(), LeaderState(TOTAL, token_of), count()
    tables.join("w0")
    for _ in range(60):
        members = list(tables.members)
        what = random.choice(
            [
                "join",
                "die",
                "drain",
                "undrain",
                "pin",
                "unpin",
                "lead",
                "lead",
                "ack",
                "ack",
                "restart",
                "new leader",
            ]
        )
        if what == "join" and len(members) < 7:
            tables.join(f"w{next(names) + 1}", random.choice([1.0, 1.0, 2.0]))
        elif what == "die" and len(members) > 1:
            tables.die(random.choice(members))
        elif what == "restart":
            name = random.choice(members)
            tables.die(name)
            tables.join(name)
        elif what in ("drain", "undrain"):
            tables.drain(random.choice(members), what == "undrain")
        elif what == "pin":
            patterns = tuple(
                random.sample(["w1", "w%2", "w_", "nobody", "%3"], random.randint(1, 2))
            )
            tables.pin(str(random.randrange(200)), patterns)
        elif what == "unpin" and tables.pins:
            tables.pin(random.choice(list(tables.pins)), None)
        elif what == "lead":
            lead(tables, state, locked=set(random.sample(range(TOTAL), random.choice([0, 0, 5]))))
        elif what == "ack":
            going = [token for token, row in tables.tokens.items() if row[2] is not None]
            tables.acknowledge(random.sample(going, random.randint(0, len(going))))
        elif what == "new leader":
            state = LeaderState(TOTAL, token_of)
    come_to_rest(tables, state)
    check(tables)
    state.update(tables.read(state))
    assert state.rebalance_reason() is None


def test_a_forming_cluster_waits_and_a_formed_one_does_not():
    tables, state = Tables(), LeaderState(TOTAL, token_of, minimum_nodes=2)
    tables.join("a")
    assert lead(tables, state) is None
    tables.join("b")
    assert lead(tables, state) is not None
    tables.die("b")
    assert lead(tables, state) is not None


def test_joins_are_not_urgent_and_deaths_are():
    tables, state = Tables(), LeaderState(TOTAL, token_of)
    tables.join("a")
    lead(tables, state)
    tables.join("b")
    state.update(tables.read(state))
    assert not state.rebalance_reason().urgent
    tables.die("b")
    tables.join("c")
    tables.die("a")
    state.update(tables.read(state))
    assert state.rebalance_reason().urgent
    assert state.rebalance_reason().reasons == ("a died", "c joined")


def test_a_new_leader_says_who_left_and_who_joined_since_the_distribution_of_the_one_before():
    tables = Tables()
    for name in ("c", "a", "b"):
        tables.join(name)
    come_to_rest(tables, LeaderState(TOTAL, token_of))
    tables.die("c")
    after_a_death = lead(tables, LeaderState(TOTAL, token_of))
    assert (after_a_death.reason, after_a_death.kind) == ("first look; c died", "first")
    assert (after_a_death.nodes_before, after_a_death.nodes_after) == (3, 2)
    tables.die("a")
    tables.join("a")
    tables.join("d")
    after_joins = lead(tables, LeaderState(TOTAL, token_of))
    assert (after_joins.reason, after_joins.nodes_before, after_joins.nodes_after) == (
        "first look; a, d joined",
        2,
        3,
    )


def test_a_token_changed_by_hand_is_found_when_everything_is_read_anew():
    tables, state = Tables(), LeaderState(TOTAL, token_of)
    tables.join("a")
    come_to_rest(tables, state)
    tables.tokens[5] = (None, None, None, 0, 9)  # no version was taken for it
    state.update(tables.read(state))
    assert state.rebalance_reason() is None
    state.read_anew()
    assert lead(tables, state).reason == "tokens astray"
    assert tables.tokens[5][0] == "a"


def test_a_draining_worker_is_revoked_to_nobody_when_there_is_nobody_else():
    tables, state = Tables(), LeaderState(TOTAL, token_of)
    tables.join("a")
    come_to_rest(tables, state)
    tables.drain("a", active=False)
    lead(tables, state)
    assert {row[2] for row in tables.tokens.values()} == {NOBODY}


def test_a_rebalance_concerns_those_who_give_get_or_no_longer_get_a_token():
    tables, state = Tables(), LeaderState(TOTAL, token_of)
    for name in "abcd":
        tables.join(name)
    first = lead(tables, state)
    assert first is not None
    assert first.concerned == {"a", "b", "c", "d"}
    tables.pin("1", ("d",))
    owner = tables.tokens[1][0]
    pinned = lead(tables, state)
    assert pinned is not None
    assert pinned.concerned == {owner, "d"}
    tables.pin("1", (str(owner),))
    withdrawn = lead(tables, state)
    assert withdrawn is not None
    assert withdrawn.concerned >= {owner, "d"}
    tables.die("b")
    after = lead(tables, state)
    assert after is not None
    assert "b" not in after.concerned


@pytest.mark.parametrize("way", GONE)
def test_a_rebalance_says_in_which_way_a_worker_went(way):
    tables, state = Tables(), LeaderState(TOTAL, token_of)
    for name in "abc":
        tables.join(name)
    come_to_rest(tables, state)
    tables.die("b", None if way == "gone" else way)
    tables.die("c", "left")
    after = lead(tables, state)
    expected = (
        "b, c left"
        if way == "left"
        else "; ".join(
            f"{name} {how}" for name, how in sorted([("b", way), ("c", "left")], key=_in_order)
        )
    )
    assert after.reason == expected
    assert after.kind == min((way, "left"), key=GONE.index)


def _in_order(pair: tuple[str, str]) -> int:
    return GONE.index(pair[1])


def test_a_rebalance_names_as_its_causes_what_it_answers_and_nothing_else():
    tables, state = Tables(), LeaderState(TOTAL, token_of)
    for name in "abc":
        tables.join(name)
    assert lead(tables, state).causes == (1, 2, 3)
    tables.join("d")
    tables.die("d")  # as if it had never been there
    tables.die("b", "expired")
    tables.tell("took over", None)
    tables.tell("pinned", None)
    assert (tables.events[2].kind, lead(tables, state).causes) == ("expired", (6,))
    tables.drain("a", active=False)
    tables.pin("7", ("c",))
    tables.tell("pinned", None)
    assert lead(tables, state).causes == (9, 10)
    tables.die("c")
    tables.tell("took over", None)
    assert lead(tables, LeaderState(TOTAL, token_of)).causes == (11, 12), "a new leader's first"

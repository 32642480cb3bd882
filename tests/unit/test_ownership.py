"""What a worker holds, against a simple model of the same; and that no reader is told of anything
that is not so."""

from __future__ import annotations

from uuid import uuid4

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jobsync_async.core.ownership import UNKNOWN, Ownership
from jobsync_async.core.rows import Snapshot, TokenRow

TOKENS = range(6)
ME = uuid4()


def snapshot(since: int, version: int, mine: list[TokenRow], others: list[int], me=ME) -> Snapshot:
    return Snapshot(me, since, version, 1, None, "active", True, mine, others)


class Database:
    """The tables as one worker sees them: epoch, version and state of each token."""

    def __init__(self) -> None:
        self.version = 0
        self.rows = dict.fromkeys(TOKENS, (1, 0, "others"))

    def set(self, token: int, state: str) -> None:
        epoch, _, before = self.rows[token]
        self.version += 1
        changed_owner = (state == "others") != (before == "others")
        self.rows[token] = (epoch + changed_owner, self.version, state)

    def read(self, since: int) -> Snapshot:
        seen = {token: row for token, row in self.rows.items() if row[1] > since}
        mine = [
            TokenRow(t, epoch, version, state == "revoking")
            for t, (epoch, version, state) in seen.items()
            if state != "others"
        ]
        others = [token for token, row in seen.items() if row[2] == "others" and since >= 0]
        return snapshot(since, self.version, mine, others)


class Machine(RuleBasedStateMachine):
    """Any order of changes, readings, uses and endings."""

    def __init__(self) -> None:
        super().__init__()
        self.database = Database()
        self.ownership: Ownership[str] = Ownership(ME)
        self.users: dict[str, int] = {}
        self.readers = [self.ownership.reader() for _ in range(2)]
        self.told: list[set[int]] = [set(), set()]
        self.letting_go: list[set[int]] = [set(), set()]
        self.away = [False, False]
        self.number = 0
        self.plan: frozenset[int] | None = None
        self.given: set[int] = set()

    @precondition(lambda self: self.plan is None)
    @rule(
        token=st.sampled_from(TOKENS),
        state=st.sampled_from(["owned", "owned", "revoking", "others"]),
    )
    def the_leader_changes(self, token, state):
        before = self.database.rows[token][2]
        if (state == "revoking") <= (before != "others") and state != before:
            self.database.set(token, state)
            self.given.discard(token)

    @precondition(lambda self: self.plan is None)
    @rule(token=st.sampled_from(TOKENS))
    def it_goes_and_comes_back(self, token):
        self.database.set(token, "others")
        self.database.set(token, "owned")
        self.given.discard(token)

    @precondition(lambda self: self.plan is None)
    @rule(tokens=st.sets(st.sampled_from(TOKENS)))
    def it_leads_and_begins_to_give_tokens_away(self, tokens):
        before = self.ownership.owned
        change = self.ownership.hand_on(sorted(tokens), self.database.version + 1, now=0)
        assert change.revoked <= before & tokens
        assert not change.revoked & set(self.users.values())
        assert not change.revoked & self.waited_for()
        self.plan = change.revoked

    @precondition(lambda self: self.plan is not None)
    @rule()
    def the_plans_answer_is_lost(self):
        self.ownership.read_anew()

    @precondition(lambda self: self.plan is not None)
    @rule(skipped=st.sets(st.sampled_from(TOKENS)), answered=st.booleans())
    def the_plan_is_committed(self, skipped, answered):
        given = self.plan - skipped
        self.plan = None
        self.database.version += 1
        for token in given:
            if self.database.rows[token][2] != "others":
                epoch = self.database.rows[token][0]
                self.database.rows[token] = (epoch + 1, self.database.version, "others")
                self.given.add(token)
        if answered and not skipped:
            self.ownership.released(given)
        else:
            self.ownership.read_anew()

    @rule()
    def read(self):
        self.ownership.apply(self.database.read(self.ownership.since), now=0)

    @rule()
    def a_stale_reading_is_refused(self):
        version = self.ownership.version
        assert (
            self.ownership.apply(snapshot(version + 1, version + 5, [], list(TOKENS)), now=0)
            is None
        )
        assert (
            self.ownership.apply(
                snapshot(version, version + 5, [], list(TOKENS), me=uuid4()), now=0
            )
            is None
        )

    @rule(token=st.sampled_from(TOKENS))
    def begin_to_use(self, token):
        self.number += 1
        user = f"user {self.number}"
        epoch = self.ownership.enter(token, user)
        assert (epoch is None) == (token not in self.ownership.owned)
        if epoch is not None:
            self.users[user] = token

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def stop_using(self, data):
        user = data.draw(st.sampled_from(sorted(self.users)))
        self.ownership.leave(self.users.pop(user), user)

    def waited_for(self) -> set[int]:
        readers = zip(self.told, self.letting_go, self.away, strict=True)
        return set().union(*(told | going for told, going, away in readers if not away))

    @rule(which=st.sampled_from([0, 1]))
    def the_task_of_a_reader_ends(self, which):
        self.ownership.forget_reader(self.readers[which])
        self.away[which], self.letting_go[which] = True, set()

    @rule(which=st.sampled_from([0, 1]))
    def a_reader_asks(self, which):
        reader = self.readers[which]
        reader.come_back()
        self.letting_go[which] = set()
        self.ownership.readmit(reader)
        self.away[which] = False
        change = reader.next_change()
        if change is None:
            return
        told = self.told[which]
        assert change.revoked <= told
        assert change.lost <= told
        assert not (change.assigned - change.lost) & told, (
            "told twice of a token without a word of its going in between"
        )
        self.told[which] = (told - change.revoked - change.lost) | change.assigned
        self.letting_go[which] = set(change.revoked)
        assert self.told[which] == change.owned == self.ownership.owned

    @rule()
    def acknowledge(self):
        gone = []
        for token, version in self.ownership.releasable():
            assert token not in self.users.values()
            assert token not in self.waited_for()
            # As the statement's WHERE says; while a plan is under way it waits for that one's lock.
            if self.plan is None and self.database.rows[token][1:] == (
                version,
                "revoking",
            ):
                self.database.set(token, "others")
                gone.append(token)
        self.ownership.released(gone)

    @rule()
    def the_lease_ends(self):
        self.ownership.forget()
        assert not self.ownership.holds_anything()
        assert self.ownership.version == UNKNOWN

    @invariant()
    def what_is_owned_is_what_is_granted(self):
        assert self.ownership.owned == set(self.ownership.grants)
        assert not set(self.ownership.grants) & set(self.ownership.revoking)

    @invariant()
    def nothing_that_was_given_away_is_held(self):
        assert not self.given & self.ownership.owned

    @invariant()
    def nobody_may_still_claim_what_a_plan_gives_away(self):
        assert not any(going & (self.plan or set()) for going in self.letting_go)

    @invariant()
    def what_was_read_is_what_is_held(self):
        if self.ownership.since == self.database.version and self.plan is None:
            owned = {token for token, row in self.database.rows.items() if row[2] == "owned"}
            assert self.ownership.owned == owned

    @invariant()
    def nothing_in_use_may_go(self):
        going = {token for token, _ in self.ownership.releasable()}
        assert not going & set(self.users.values())


TestOwnership = Machine.TestCase
TestOwnership.settings = settings(max_examples=150, stateful_step_count=40)


def owned(*tokens: int) -> Ownership[str]:
    made: Ownership[str] = Ownership(ME)
    made.apply(snapshot(-1, 1, [TokenRow(token, 7, 1, False) for token in tokens], []), now=0)
    return made


def test_a_withdrawn_revocation_is_the_same_stay():
    it = owned(1)
    grant = it.grants[1]
    it.apply(snapshot(1, 2, [TokenRow(1, 7, 2, True)], []), now=0)
    it.apply(snapshot(2, 3, [TokenRow(1, 7, 3, False)], []), now=0)
    assert it.grants == {1: grant}


def test_a_token_that_left_and_came_back_between_two_readings_is_another_stay():
    it = owned(1)
    grant = it.grants[1]
    change = it.apply(snapshot(1, 9, [TokenRow(1, 9, 9, False)], []), now=0)
    assert change.lost == change.assigned == {1}
    assert it.grants[1] != grant


def test_a_token_goes_when_its_last_user_has_left():
    ownership = owned(1, 2)
    ownership.enter(1, "one")
    ownership.enter(1, "another")
    ownership.apply(snapshot(1, 2, [TokenRow(token, 7, 2, True) for token in (1, 2)], []), now=0)
    assert ownership.releasable() == [(2, 2)]
    assert ownership.busy() == [1]
    assert not ownership.leave(1, "one")
    assert ownership.releasable() == [(2, 2)]
    assert ownership.leave(1, "another")
    assert sorted(ownership.releasable()) == [(1, 2), (2, 2)]


def test_a_reader_that_is_dropped_holds_nothing():
    it = owned(1)
    reader = it.reader()
    reader.next_change()
    it.apply(snapshot(1, 2, [TokenRow(1, 7, 2, True)], []), now=0)
    assert it.releasable() == []
    del reader
    assert it.releasable() == [(1, 2)]


def test_a_leaver_starts_nothing_and_acknowledges_only_what_the_leader_asked_for():
    it = owned(1, 2)
    change = it.let_go(now=0)
    assert change.revoked == {1, 2}
    assert it.enter(1, "user") is None
    assert it.releasable() == []
    it.apply(snapshot(1, 2, [TokenRow(2, 7, 2, True)], []), now=0)
    assert it.releasable() == [(2, 2)]


def test_a_leader_gives_away_only_what_nobody_uses():
    it = owned(*range(4))
    it.apply(snapshot(1, 2, [TokenRow(3, 7, 2, True)], []), now=0)
    it.enter(2, "user")
    assert it.hand_on([1, 2, 3, 9], 3, now=0).revoked == {1}
    assert it.enter(1, "user") is None
    assert it.releasable() == [(3, 2)], "nobody asks for an acknowledgement of it"
    it.released([1])
    assert it.owned == {0, 2}
    reader = it.reader()
    reader.next_change()
    assert not it.hand_on([0], 4, now=0)


def test_a_plan_that_gives_nothing_away_has_no_reading_refused():
    it = owned(1)
    it.enter(1, "user")
    assert not it.hand_on([1, 9], 3, now=0)
    assert it.apply(snapshot(1, 2, [], []), now=0) is not None


def test_what_is_let_go_of_while_a_reader_is_away_is_lost_to_it():
    """It was told of the token, but the token did not wait for it: whether by a plan or by an
    acknowledgement, it may be another's before the reader is back."""
    it = owned(1, 2, 3, 4)
    reader = it.reader()
    reader.next_change()
    it.forget_reader(reader)
    it.enter(3, "user")
    it.apply(snapshot(1, 2, [TokenRow(token, 7, 2, True) for token in (2, 3)], []), now=0)
    assert it.hand_on([1], 3, now=0).revoked == {1}
    assert it.releasable() == [(2, 2)]
    it.readmit(reader)
    reader.come_back()
    change = reader.next_change()
    assert change is not None and (change.lost, change.revoked) == ({1, 2}, {3})
    assert not any(map(reader.lets_go_of, (1, 2)))
    assert it.releasable() == [(2, 2)]


def test_what_a_reader_lost_while_it_was_away_and_stays_after_all_is_new_to_it():
    it = owned(1)
    reader = it.reader()
    reader.next_change()
    it.forget_reader(reader)
    it.hand_on([1], 2, now=0)
    it.readmit(reader)
    it.read_anew()
    it.apply(snapshot(UNKNOWN, 2, [TokenRow(1, 7, 1, False)], []), now=0)
    change = reader.next_change()
    assert change is not None and change.lost == change.assigned == {1}


def test_nothing_that_was_read_before_a_plan_brings_back_what_it_gives_away():
    it = owned(1, 2)
    both = [TokenRow(token, 7, 1, False) for token in (1, 2)]
    it.hand_on([1], 3, now=0)
    assert it.apply(snapshot(1, 2, both, []), now=0) is None
    it.read_anew()
    assert it.known and it.owned == {2}
    assert it.apply(snapshot(UNKNOWN, 2, both, []), now=0) is None
    assert it.apply(snapshot(UNKNOWN, 3, both[1:], []), now=0).lost == {1}
    assert not it.revoking


def test_what_a_plan_did_not_give_away_after_all_is_the_same_stay():
    it = owned(1, 2)
    grant = it.grants[1]
    it.hand_on([1], 2, now=0)
    it.read_anew()
    rows = [TokenRow(token, 7, 1, False) for token in (1, 2)]
    assert it.apply(snapshot(UNKNOWN, 2, rows, []), now=0).assigned == {1}
    assert it.grants == {1: grant, 2: grant}
    assert it.since == 2


def test_a_set_that_another_thread_made_while_tokens_changed_is_not_kept_as_the_answer():
    it = owned(1, 2)
    before = it.owned

    class Interrupted(dict):  # type: ignore[type-arg]
        """Tokens that change when all of them have been read, and before whoever reads has done
        anything with them."""

        def __iter__(self):
            yield from list(super().__iter__())
            it.grants = dict(self)
            it.apply(snapshot(2, 3, [TokenRow(1, 7, 3, True)], []), now=0)

    it.apply(snapshot(1, 2, [TokenRow(3, 8, 2, False)], []), now=0)
    it.grants = Interrupted(it.grants)
    assert it.owned == {1, 2, 3} != before
    assert it.owned == {2, 3} == it.grants.keys()

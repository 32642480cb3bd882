"""The observer's picture: what a reader is told always adds up to what is so, however slow it
reads."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from jobsync_async.core.observer_state import ClusterReading, ObserverState, SeenWorker

TOKENS = 6


def look(since, version, workers, tokens=None, *, generation=1):
    tokens = tokens or {}
    seen = [SeenWorker(number, f"w{number % 4}", f"at {number}") for number in sorted(workers)]
    leader = seen[0].name if seen else None
    return ClusterReading(
        since,
        version,
        1,
        generation,
        leader,
        TOKENS,
        "md5",
        seen,
        list(tokens),
        list(tokens.values()),
    )


def test_the_first_item_shows_everything_and_the_next_only_what_changed():
    state = ObserverState()
    reader = state.reader()
    assert reader.next_change() is None
    state.update(look(-1, 3, {1, 2}, {0: 1, 1: 2, 2: None}))
    first = reader.next_change()
    assert first.is_initial
    assert dict(first.moved) == {0: "w1", 1: "w2", 2: None, 3: None, 4: None, 5: None}
    assert dict(first.workers) == {"w1": "at 1", "w2": "at 2"}
    assert (first.joined, first.left, first.leader) == ({"w1", "w2"}, frozenset(), "w1")
    assert reader.next_change() is None

    state.update(look(3, 4, {1, 2}, {1: 1}))
    second = reader.next_change()
    assert (dict(second.moved), second.joined, second.left, second.version) == (
        {1: "w1"},
        frozenset(),
        frozenset(),
        4,
    )


def test_a_version_without_any_move_is_an_item_and_a_look_that_found_nothing_is_none():
    state = ObserverState()
    reader = state.reader()
    state.update(look(-1, 3, {1}, {0: 1}))
    reader.next_change()
    state.update(look(3, 3, {1}))
    assert reader.next_change() is None
    state.update(look(3, 4, {1}))
    assert reader.next_change().version == 4


def test_tokens_of_a_worker_whose_row_is_gone_are_nobodys():
    state = ObserverState()
    reader = state.reader()
    state.update(look(-1, 3, {1, 2}, {0: 1, 1: 2}))
    reader.next_change()
    state.update(look(3, 4, {2}))
    change = reader.next_change()
    assert (change.left, dict(change.moved)) == ({"w1"}, {0: None})


def test_a_worker_started_anew_under_its_name_left_and_joined_and_its_tokens_moved():
    state = ObserverState()
    reader = state.reader()
    state.update(look(-1, 3, {1}, {0: 1}))
    reader.next_change()
    state.update(look(3, 4, {5}, {0: 5}))
    change = reader.next_change()
    assert change.left == change.joined == {"w1"}
    assert dict(change.moved) == {0: "w1"}
    assert dict(change.workers) == {"w1": "at 5"}


def test_lost_commits_make_it_look_at_everything_anew():
    for version, generation in ((2, 1), (9, 2)):
        state = ObserverState()
        state.update(look(-1, 3, {1}, {0: 1}))
        assert not state.update(look(3, version, {1}, generation=generation))
        assert state.version == -1
        assert state.update(look(-1, version, {1}, {0: None}, generation=generation))
        assert state.owner(0) is None


steps = st.lists(
    st.tuples(
        # Names are unique.
        st.sets(st.integers(1, 6)).map(
            lambda numbers: {n for n in numbers if n + 4 not in numbers}
        ),
        st.dictionaries(st.integers(0, TOKENS - 1), st.integers(1, 6)),
        st.sets(st.sampled_from(["quick", "slow"])),
    ),
    max_size=12,
)


@given(steps)
@settings(max_examples=300)
def test_what_each_reader_was_told_adds_up_to_what_is_so(steps):
    """Against the simplest model: the owner of each token by the last thing written, if that worker
    still is there."""
    state = ObserverState()
    readers = {"quick": state.reader(), "slow": state.reader()}
    tables = {name: {} for name in readers}
    members = {name: set() for name in readers}
    truth, workers = {}, set()
    state.update(look(-1, 0, set()))
    for version, (present, writes, readings) in enumerate([*steps, (set(), {}, {"quick", "slow"})]):
        workers = present
        truth = {t: n for t, n in {**truth, **writes}.items() if n in workers}
        shown = {t: n if n in workers else None for t, n in writes.items()}
        state.update(look(version, version + 1, workers, shown))
        for name in readings:
            change = readers[name].next_change()
            tables[name].update(change.moved)
            members[name] = (members[name] - change.left) | change.joined
            assert members[name] == set(change.workers)
            assert tables[name] == {
                t: f"w{truth[t] % 4}" if t in truth else None for t in range(TOKENS)
            }
            assert readers[name].next_change() is None

"""When the absence of a lock is taken for a death."""

from __future__ import annotations

import datetime as dt
from uuid import UUID

from jobsync_async.core.lease import Beat
from jobsync_async.core.session_loss import Session, SessionReading, SessionWatch, WatcherSession

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
WATCHER = WatcherSession(START, 10, START)


def session(held: bool, *, number: int = 1, beat: int = 5) -> Session:
    return Session(Beat(f"w{number}", UUID(int=number), beat), None, held)


def watch_that_saw_it_held() -> SessionWatch:
    watch = SessionWatch(grace_sec=1, gap_sec=1)
    watch.observe(SessionReading(WATCHER, [session(True)]), 100)
    return watch


def look(
    watch: SessionWatch, now: float, *sessions: Session, watcher: WatcherSession = WATCHER
) -> list[Session]:
    watch.observe(SessionReading(watcher, sessions), now)
    return watch.gone(now)


def test_a_lock_that_stays_absent_for_the_grace_is_gone():
    watch = watch_that_saw_it_held()
    assert look(watch, 100.5, session(False)) == []
    assert watch.next_due() == 101.5
    assert look(watch, 101.4, session(False)) == []
    assert look(watch, 101.5, session(False)) == [session(False)]


def test_a_lock_that_comes_back_within_the_grace_is_not():
    watch = watch_that_saw_it_held()
    look(watch, 100.5, session(False))
    assert look(watch, 101, session(True)) == []
    assert look(watch, 101.8, session(False)) == []
    assert look(watch, 102.5, session(False)) == [], "the grace begins anew"
    assert look(watch, 102.9, session(False)) == [session(False)]


def test_a_lock_that_was_never_seen_held_is_not_missed():
    watch = SessionWatch(grace_sec=1, gap_sec=1)
    assert [look(watch, 100 + n / 2, session(False)) for n in range(9)] == [[]] * 9


def test_another_incarnation_of_the_name_is_not_missed():
    watch = watch_that_saw_it_held()
    assert [look(watch, 100.5 + n / 2, session(False, number=2)) for n in range(9)] == [[]] * 9


def test_a_beat_that_moves_is_a_sign_of_life():
    watch = watch_that_saw_it_held()
    assert [look(watch, 100.5 + n / 2, session(False, beat=5 + n)) for n in range(9)] == [[]] * 9


def test_nobody_is_missed_after_the_watchers_own_session_or_the_server_was_another():
    later = START + dt.timedelta(seconds=1)
    for watcher in (
        WATCHER._replace(pid=11),
        WATCHER._replace(backend_start=later),
        WATCHER._replace(server_started=later),
    ):
        watch = watch_that_saw_it_held()
        look(watch, 100.5, session(False))
        assert [look(watch, 101 + n / 2, session(False), watcher=watcher) for n in range(9)] == [
            []
        ] * 9


def test_a_gap_in_the_watchers_own_readings_begins_the_grace_anew():
    watch = watch_that_saw_it_held()
    look(watch, 100.5, session(False))
    assert look(watch, 101.6, session(False)) == []
    assert look(watch, 102.6, session(False)) == [session(False)]


def test_what_was_forgotten_is_not_missed():
    watch = watch_that_saw_it_held()
    watch.forget()
    assert [look(watch, 100.5 + n / 2, session(False)) for n in range(9)] == [[]] * 9

"""What users' code can do to its own worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import psycopg

from tests.faults.conftest import STEADY, MakeFleet
from tests.faults.fleet import SLACK_SEC, Fleet


@contextmanager
def heartbeats_on_time(fleet: Fleet, name: str) -> Iterator[None]:
    """Notes when each of a worker's heartbeats was committed while the block runs: none comes
    late."""
    fleet.admin.execute("CREATE TABLE beats (at double precision)")
    fleet.admin.execute(
        f"""CREATE FUNCTION note_beat() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF NEW.name = '{name}' THEN
                    INSERT INTO public.beats VALUES (extract(epoch FROM clock_timestamp()));
                END IF;
                RETURN NULL;
            END $$;
            CREATE TRIGGER note_beat AFTER UPDATE ON sync_node
                FOR EACH ROW EXECUTE FUNCTION note_beat()""".encode()
    )
    yield
    times = [at for (at,) in fleet.admin.execute("SELECT at FROM beats ORDER BY at")]
    assert len(times) > 2
    assert max(b - a for a, b in pairwise(times)) <= fleet.interval_sec + SLACK_SEC


def test_calls_that_use_up_every_pooled_connection_delay_no_heartbeat(make_fleet: MakeFleet):
    fleet = make_fleet(STEADY)
    fleet.start("a", "b", "c")
    with psycopg.connect(fleet.dsn) as locker:
        locker.execute("LOCK TABLE sync_audit IN ACCESS EXCLUSIVE MODE")
        with heartbeats_on_time(fleet, "a"), fleet.no_token_moves():
            fleet.tell("a", "call_in_crowds", seconds=3, callers=40)
            waiting = """SELECT count(*) FROM pg_stat_activity
                         WHERE application_name LIKE 'jobsync_async %% a calls'
                             AND wait_event = 'relation'"""
            fleet.until(lambda: fleet.value(waiting) >= 4, 5, "every connection is in use")
            fleet.until(lambda: fleet["a"].said("said", "called"), 20, "the calls have ended")


def test_a_transaction_that_holds_a_fence_for_long_delays_only_its_own_token(make_fleet: MakeFleet):
    fleet = make_fleet(STEADY)
    fleet.start("a", "b", "c")
    held, *others = sorted(fleet["a"].state[3])
    with heartbeats_on_time(fleet, "a"):
        fleet.tell("a", "hold_fence", task=held, seconds=4)
        fleet.until(lambda: fleet["a"].said("said", "holding", held), 5, "the fence is held")
        holding_at = fleet["a"].said("said", "holding", held)[0][1]
        pinned = fleet.now()
        fleet.tell("c", "pin", tasks=[held, *others[:3]], to="b")
        assert fleet.begun(others[:3], pinned, 5) <= 1 + SLACK_SEC
        assert not fleet["b"].said("begin", held, since=pinned)
        fleet.begun([held], pinned, 10)
        began = fleet["b"].said("begin", held, since=pinned)[0][1]
        assert holding_at + 4 <= began <= holding_at + 4 + 1 + SLACK_SEC
    assert fleet["a"].said("said", "done", held)
    assert fleet["a"].said("commit", held, since=0)[-1][1] <= began, "it was committed before"

"""Coming back for locked rows."""

from __future__ import annotations

from itertools import accumulate

from jobsync_async.core.retries import Retries


def test_waits_grow_to_a_second_and_each_is_followed_by_a_short_one():
    retries = Retries()

    def wait_sec() -> float:
        retries.missed(now=0)
        return retries.due_at

    waits = [wait_sec() for _ in range(40)]
    assert max(waits) == 1
    assert all(wait == 0.05 for wait in waits[::2])
    assert waits[1::2] == sorted(waits[1::2])
    assert list(accumulate(waits))[6] < 1, (
        "a short transaction is not waited for much longer than it takes"
    )
    retries.done()
    assert retries.due_at == float("inf")
    assert wait_sec() == 0.05

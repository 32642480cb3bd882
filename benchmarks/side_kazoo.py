"""A worker of kazoo's SetPartitioner, in its own environment: ``side_kazoo.py worker HOSTS TOTAL
BOUNDARY_SEC SESSION_SEC NAME`` tells of every change of its elements."""

from __future__ import annotations

import sys
import threading

from kazoo.client import KazooClient
from side_common import Holdings, run, tell


def worker(hosts: str, total: str, boundary_sec: str, session_sec: str, name: str) -> None:
    client = KazooClient(hosts, timeout=float(session_sec))
    client.start()
    changed = client.handler.event_object()
    holdings = Holdings()
    tell(joining=True)
    partitioner = client.SetPartitioner(
        "/work",
        [f"{number:07}" for number in range(int(total))],
        identifier=name,
        time_boundary=float(boundary_sec),
        state_change_event=changed,
    )

    def follow() -> None:
        """As its documentation says: while it asks for the release, stop, and give everything
        back."""
        while not partitioner.failed:
            if partitioner.release:
                holdings.now(frozenset())
                partitioner.release_set()
            elif partitioner.acquired:
                holdings.now(frozenset(map(int, partitioner)))
            changed.wait()
            changed.clear()

    following = threading.Thread(target=follow, daemon=True)
    following.start()
    sys.stdin.readline()
    tell(leaving=True)
    partitioner.finish()
    tell(left=True)
    following.join()
    client.stop()


if __name__ == "__main__":
    run(globals())

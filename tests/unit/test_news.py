"""What `watch` says of the difference between two looks."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from jobsync_async.cli.news import news

BEFORE: dict[str, Any] = {
    "version": 7,
    "term": 1,
    "leader": "anna",
    "generation": 1,
    "paused": None,
    "nodes": [
        {
            "name": "anna",
            "joined": 1,
            "tokens": 60,
            "state": "active",
            "heartbeat_age_sec": 1.0,
            "beat": 9,
        },
        {
            "name": "berta",
            "joined": 2,
            "tokens": 60,
            "state": "active",
            "heartbeat_age_sec": 1.0,
            "beat": 9,
        },
    ],
    "handoffs": [],
}
CARLA = {
    "name": "carla",
    "joined": 3,
    "tokens": 0,
    "state": "active",
    "heartbeat_age_sec": 0.1,
    "beat": 0,
}
HANDOFF = {"node": "anna", "receiver": "carla", "tokens": 20, "oldest_sec": 0.1}


def change(seen: dict[str, Any], number: int, **values: Any) -> None:
    seen["nodes"][number].update(values)


@pytest.mark.parametrize(
    ("happened", "told"),
    [
        (lambda s: change(s, 0, beat=10, heartbeat_age_sec=14.9), []),
        (lambda s: s.update(version=8), ["something changed"]),
        (lambda s: s["nodes"].append(CARLA), ["carla joined"]),
        (lambda s: s["nodes"].pop(1), ["berta is gone", "tokens: berta 60 → 0"]),
        (lambda s: change(s, 1, joined=9), ["berta joined"]),
        (lambda s: change(s, 1, state="draining"), ["berta is draining"]),
        (
            lambda s: (change(s, 0, tokens=70), change(s, 1, tokens=50)),
            ["tokens: anna 60 → 70, berta 60 → 50"],
        ),
        (lambda s: s.update(leader="berta", term=2), ["berta leads in term 2"]),
        (lambda s: s.update(leader=None), ["nobody leads in term 1"]),
        (lambda s: s.update(generation=2), ["generation 2 began: the server had lost commits"]),
        (lambda s: s.update(handoffs=[HANDOFF]), ["20 tokens are being handed on"]),
        (lambda s: s.update(paused={"by": "anna"}), ["paused by anna"]),
    ],
)
def test_each_difference_is_told_once_and_heartbeats_are_none(happened, told):
    after = copy.deepcopy(BEFORE)
    happened(after)
    assert news(BEFORE, after) == told
    assert news(after, after) == []


def test_what_is_over_is_told_too():
    during = {**copy.deepcopy(BEFORE), "handoffs": [HANDOFF]}
    assert news(during, BEFORE) == ["every token is handed on"]

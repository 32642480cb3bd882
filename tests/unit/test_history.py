"""The history for people: its words, its order, who led when; who types; and forgetting."""

from __future__ import annotations

import asyncio
import getpass
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from jobsync_async.cli.history import span
from jobsync_async.errors import SchemaError, StoreUnavailable
from jobsync_async.host.person import NOBODY_KNOWN, person
from jobsync_async.operations.history import in_order, terms, what_happened, why
from jobsync_async.tasks import forgetting


def event(kind: str, node: str | None = "anna", **told: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("by", "term", "reason", "silent_sec", "details"))
    return {"id": 1, "version": 1, "kind": kind, "node": node, **empty, **told}


REBALANCE = {
    "version": 2, "reason": "anna died", "nodes_before": 2, "nodes_after": 1,
    "tokens_moved": 5000, "duration_ms": 9.84, "causes": [1],
}  # fmt: skip
JOINED = {"host": "here", "pid": 7, "library": "1.2", "weight": 1, "state": "draining"}


@pytest.mark.parametrize(
    ("entry", "what", "because"),
    [
        (event("left"), "anna left", ""),
        (
            event("joined", details=JOINED),
            "anna joined",
            "on host here, pid 7, version 1.2, draining",
        ),
        (
            event("died", reason="its process has ended", silent_sec=1.26),
            "anna died",
            "its process has ended, silent for 1.3 s",
        ),
        (event("expired", silent_sec=0.0), "anna expired", "silent for 0.0 s"),
        (event("took over", term=3, reason="berta died"), "anna leads in term 3", "berta died"),
        (event("generation", None, details={"generation": 9}), "generation 9 begins", ""),
        (event("paused", None, reason="for the night"), "paused", "for the night"),
        (REBALANCE, "5,000 tokens move, 2 → 1 workers, 9.8 ms", "anna died"),
    ],
)
def test_a_row_of_the_history_is_told_in_a_few_words(entry, what, because):
    assert (what_happened(entry), why(entry)) == (what, because)


def test_a_rebalance_stands_above_what_it_answers_and_the_newest_first():
    events = [event("expired", id=4, version=7), event("joined", id=3, version=5)]
    rebalances = [{**REBALANCE, "version": 7}, {**REBALANCE, "version": 6}]
    shown = in_order({"events": events, "rebalances": rebalances})
    assert shown == [rebalances[0], events[0], rebalances[1], events[1]]


def begun(term: int, node: str | None, **told: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("by", "how", "gone_at", "gone"))
    return {"term": term, "node": node, "at": f"t{term}", "kind": "took over", **empty, **told}


def shown(leader: str | None, term: int, *rows: dict[str, Any]) -> list[tuple[Any, ...]]:
    told = terms({"leader": leader, "term": term}, rows)
    return [(one["term"], one["node"], one["since"], one["until"], one["ended"]) for one in told]


def test_a_term_ends_with_its_leader_or_with_the_next_one():
    rows = (
        begun(4, "d", how="restarted"),
        begun(3, "d", how="died"),
        begun(2, "b", gone="died", gone_at="earlier"),
        begun(1, "a"),
    )
    assert shown("d", 4, *rows) == [
        (4, "d", "t4", None, None),
        (3, "d", "t3", "t4", "restarted"),
        (2, "b", "t2", "earlier", "died"),
        (1, "a", "t1", "t2", "gone"),
    ]


def test_a_generation_ends_the_term_and_has_no_leader_at_first():
    rows = (begun(2, None, kind="generation"), begun(1, "a"))
    assert shown(None, 2, *rows) == [(1, "a", "t1", "t2", "generation")]
    after = begun(3, "a", reason="nobody led")
    assert shown("a", 3, after, *rows)[0] == (3, "a", "t3", None, None)


def test_what_is_not_known_of_a_term_is_not_made_up():
    assert shown(None, 0) == []
    assert shown("old", 5, begun(3, "a")) == [
        (5, "old", None, None, None),
        (3, "a", "t3", None, None),
    ]
    assert shown("c", 4, begun(4, "c"), begun(2, "a"))[1] == (2, "a", "t2", None, None), (
        "the term between the two may have begun at any time"
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("30min", 1800), ("1h", 3600), ("1d12h", 129_600), ("0.5h", 1800)],
)
def test_a_length_of_time_is_read_with_its_units(text, seconds):
    assert span(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "h", "1y", "1h 5min", "-1h", "1hour"])
def test_what_is_no_length_of_time_is_refused(text):
    with pytest.raises(typer.BadParameter, match="length of time"):
        span(text)


def test_who_types_is_known_by_the_login_name_in_characters_that_the_database_has(monkeypatch):
    monkeypatch.setenv("LOGNAME", "żaneta")
    assert person() == "żaneta"
    assert person("latin-1") == "\\u017caneta"


@pytest.mark.parametrize("error", [OSError, KeyError, ImportError])
def test_where_the_system_knows_nobody_somebody_types(monkeypatch, error):
    def nobody() -> str:
        raise error("no such user")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert person() == NOBODY_KNOWN


async def test_old_rows_go_while_this_worker_leads_in_portions_and_an_outage_is_waited_out(
    monkeypatch, caplog
):
    worker: Any = SimpleNamespace(
        config=SimpleNamespace(keep_history_days=3),
        identity=SimpleNamespace(name="anna"),
        leads=False,
        may_act=lambda: True,
    )
    most = forgetting._MOST_ROWS
    answers = [(most, 0), (1, most), (5, 5), StoreUnavailable("away"), SchemaError("no right")]
    waits: list[float] = []

    async def forget(asked: int, *, days: float) -> tuple[int, int]:
        assert (asked, days) == (most, 3)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        worker.leads = True
        if not answers:
            raise asyncio.CancelledError

    monkeypatch.setattr(forgetting, "asyncio", SimpleNamespace(sleep=sleep))
    history: Any = SimpleNamespace(forget=forget)
    with pytest.raises(asyncio.CancelledError):
        await forgetting.forget_old(worker, history)
    look, soon = forgetting._LOOK_SEC, forgetting._NEXT_PORTION_SEC
    assert waits == [forgetting._TURN_SEC, soon, soon, look, look, look]
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warned == ["anna: old rows of the history are not deleted now: no right"]
    worker.config.keep_history_days = None
    await forgetting.forget_old(worker, history)
